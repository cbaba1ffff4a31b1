"""The kind that a configuration asks for.

A kind is a file of this folder with the name that `TrainConfig.kind` has, and calls its subclass of `Kind`
KIND. To add one, write that file, which says too what fields it takes and what it asks of them, and add its
name to `config.KindName`.
"""

from __future__ import annotations

from dataclasses import fields
from importlib import import_module
from typing import get_args

from torch import nn

from saelens_lite.sae.autoencoder import SparseAutoencoder

from ..comm import Alone
from ..config import KindName, TrainConfig
from ..rows.protocol import Rows
from ..rows.store_contexts import StoreContexts
from .end_to_end import EndToEnd
from .kind import Kind


def kind_class(name: str) -> type[Kind]:
    return import_module(f".{name}", __package__).KIND


def check_kind(config: TrainConfig) -> None:
    """raises: ValueError for a field that the configuration's kind does not take, or as it must not be"""
    kind, every = kind_class(config.kind), {name: kind_class(name) for name in get_args(KindName)}
    for field in fields(config):
        taken_by = [name for name, other in every.items() if field.name in other.fields]
        if taken_by and config.kind not in taken_by:
            expected = f"{field.default} for the kind {config.kind} ({', '.join(taken_by)} take it)"
            config.expect(getattr(config, field.name) == field.default, field.name, expected)
    kind.check(config)
    if config.end_to_end is not None:
        config.expect(not kind.not_end_to_end, "kind", kind.not_end_to_end)
        EndToEnd.check(config)


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
