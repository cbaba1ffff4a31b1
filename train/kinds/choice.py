"""The kind that a configuration asks for, and what it does not use.

A kind is a file of this folder with the name that `TrainConfig.kind` has, and calls its subclass of `Kind`
KIND. To add one, write that file, which says too what fields it takes and what it asks of them, and add its
name to `config.KindName`.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Mapping
from dataclasses import fields, replace
from importlib import import_module
from pathlib import Path
from typing import Any, get_args

from torch import nn

from saelens_lite.config import to_record
from saelens_lite.sae.autoencoder import SparseAutoencoder

from ..comm import Alone
from ..config import LEFT_OPEN, KindName, TrainConfig
from ..rows.protocol import Rows
from ..rows.store_contexts import StoreContexts
from .end_to_end import EndToEnd
from .kind import Kind


def kind_class(name: str) -> type[Kind]:
    return import_module(f".{name}", __package__).KIND


def settled(config: TrainConfig) -> TrainConfig:
    """The configuration, checked, with what it leaves open as `init_from` has it, else as by default.

    raises: ValueError for a field that changes nothing, or is as the kind must not have it; CheckpointError
        for an init_from that cannot be read
    """
    config = filled(config)
    defaults = {field.name: field.default for field in fields(config)}
    for name, why in unused(config).items():
        default, as_filled = defaults[name], LEFT_OPEN.get(name, defaults[name])
        value = getattr(config, name)
        value = tuple(value) if isinstance(value, list) else value  # of JSON
        config.expect(value in (default, as_filled), name, f"{default} {why}")
    kind = kind_class(str(config.kind))
    kind.check(config)
    if config.end_to_end is not None:
        config.expect(not kind.not_end_to_end, "kind", kind.not_end_to_end)
        EndToEnd.check(config)
    return config


def filled(config: TrainConfig) -> TrainConfig:
    """The configuration with what it leaves open. raises: CheckpointError"""
    left_open = [name for name in LEFT_OPEN if getattr(config, name) is None]
    source = _source_of(config) if left_open and config.init_from is not None else {}
    taken = kind_class(config.kind or source.get("kind") or LEFT_OPEN["kind"]).fields | {"kind"}
    found = {name: source.get(name) if name in taken else None for name in left_open}
    values = {name: LEFT_OPEN[name] if value is None else value for name, value in found.items()}
    return replace(config, **{k: tuple(v) if isinstance(v, list) else v for k, v in values.items()})


def _source_of(config: TrainConfig) -> dict[str, Any]:
    """Settings of the SAE in `init_from`; of a run in `output` that started there its own."""
    assert config.init_from is not None
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
        own = json.loads((Path(config.output) / "train_config.json").read_bytes())
        same = own["init_from"] == to_record(config)["init_from"] and own["kind"] in get_args(KindName)
        if same and not config.overwrite:
            return own
    sae = SparseAutoencoder.read_config(config.init_from)
    facts = sae.metadata.get("saelens_lite")
    trained = facts.get("train") if isinstance(facts, Mapping) else None
    trained = trained if isinstance(trained, Mapping) else {}
    name = trained.get("kind")
    same = name in get_args(KindName) and kind_class(name).sae_kind == sae.kind
    return {**trained, "kind": name if same else sae.kind, "k": sae.k or trained.get("k")}


def unused(config: TrainConfig) -> dict[str, str]:
    """Fields of kinds that change nothing in a run of this configuration, and what stands against each."""
    every = {name: kind_class(name) for name in get_args(KindName)}
    kind, found = every[str(config.kind)], {}
    for field in fields(config):
        taken_by = [name for name, other in every.items() if field.name in other.fields]
        if not taken_by:
            continue
        if config.kind not in taken_by:
            found[field.name] = f"for the kind {config.kind} ({', '.join(taken_by)} take it)"
        elif config.end_to_end is not None and field.name not in EndToEnd.fields_of(kind):
            found[field.name] = "with end_to_end"
        elif not getattr(config, needs := _ONLY_WITH.get(field.name, "kind")) and not config.freeze_decoder:
            found[field.name] = f"without {needs}"
    return found | kind.idle(config)


_ONLY_WITH = {
    "k_anneal_start": "k_anneal_fraction",
    "k_aux": "aux_coeff",
    "resample_fraction": "resample_every_steps",
}
"""Fields that only matter with another one."""


def kind_for(
    config: TrainConfig,
    sae: SparseAutoencoder,
    model: nn.Module | None,
    rows: Rows,
    scale: float,
    comm: Alone,
) -> Kind:
    """What trains the SAE on these rows.

    raises: ValueError for `end_to_end` without a model, or with one that does not give these rows
    """
    kind = kind_class(str(config.kind))(sae, config, comm)
    if config.end_to_end is None:
        return kind
    if model is None:
        raise ValueError(
            "end_to_end expected model=, the language model that was harvested (--eval-model), got none"
        )
    assert isinstance(rows, StoreContexts)
    rows.check_model(model)
    return EndToEnd(kind, model, rows.hook_point, scale)
