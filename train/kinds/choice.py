"""The kind that a configuration asks for.

A kind is a file of this folder with the name that `TrainConfig.kind` has, and calls its subclass of `Kind`
KIND. To add one, write that file and add its name to `config.KindName`.
"""

from __future__ import annotations

from importlib import import_module

from torch import nn

from saelens_lite.sae.autoencoder import SparseAutoencoder

from ..comm import Alone
from ..config import TrainConfig
from ..rows.protocol import Rows
from ..rows.store_contexts import StoreContexts
from .end_to_end import EndToEnd
from .kind import Kind


def kind_class(name: str) -> type[Kind]:
    """The class that trains SAEs of TrainConfig.kind `name`."""
    return import_module(f".{name}", __package__).KIND


def kind_for(
    config: TrainConfig, sae: SparseAutoencoder, model: nn.Module | None, rows: Rows, comm: Alone
) -> Kind:
    """What trains the SAE on these rows.

    raises: ValueError for `end_to_end` without a model, or with one that does not give these rows
    """
    kind = kind_class(config.kind)(sae, config, comm)
    if config.end_to_end is None:
        return kind
    if model is None:
        raise ValueError(
            "end_to_end expected model=, the language model that was harvested (--eval-model), got none"
        )
    assert isinstance(rows, StoreContexts)
    rows.check_model(model)
    return EndToEnd(kind, model, rows.hook_point, rows.scale)
