"""train_grid: many SAEs from one pass over a store, each a whole run in a folder of its own.

Members that read the same rows train side by side: a buffer is read and mixed once, and each batch goes to
one member after another. Members of another hook point, batch size or row order form another group, with a
pass of its own; groups follow each other. So memory holds one buffer, and the SAEs of one group with what
training needs beside them (four times their weights).

A member is a run of its configuration and nothing else: trained alone with the train_config.json of its
folder it is the same, bit for bit on a CPU, and so are its checkpoints.
"""

from __future__ import annotations

import ast
import dataclasses
import itertools
import logging
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import nn

from saelens_lite import distributed
from saelens_lite.config import takes_fields, to_mapping
from saelens_lite.misfits import described, names_misfits
from saelens_lite.run_log import read_metrics
from saelens_lite.sae.autoencoder import SparseAutoencoder
from saelens_lite.store.reader import ActivationStore
from saelens_lite.text_table import aligned

from .config import TrainConfig
from .kinds.choice import filled, settled, unused
from .rows.protocol import ROW_FIELDS
from .runs.baseline import baseline_of
from .runs.identity import finished
from .runs.process import device_of, writes
from .runs.run import Run
from .runs.side_by_side import rows_for, train_runs
from .single import Store, configured, opened

log = logging.getLogger(__name__)

Grid = Mapping[str, Iterable[Any]] | Sequence[Mapping[str, Any]]

_COMMON_FIELDS = ("store", "output", "overwrite", "device", "progress", "baseline", "latent_shards")
"""What all members of a grid share."""


@takes_fields(TrainConfig)
@names_misfits
def train_grid(
    store: Store | Sequence[Store],
    grid: Grid,
    config: TrainConfig | None = None,
    *,
    model: nn.Module | None = None,
    **fields: Any,
) -> dict[str, SparseAutoencoder]:
    """Train many sparse autoencoders in one pass over the rows of a store, and save each in its own folder.

        saes = train_grid("store/", {"k": [16, 32, 64], "seed": [0, 1]}, output="runs/grid", expansion=16)
        saes["k=16,seed=0"]  # also in runs/grid/k=16,seed=0

    After a stop or a kill, make the same call again: each member resumes at its last checkpoint, those behind
    first. Finished members stay as they are; overwrite=True starts all anew. A member whose numbers
    break ends alone.

    store: an open store or its folder, or several, as for train_sae
    grid: fields of TrainConfig and their values, whose every combination is a member; or the members, each a
        mapping of the fields that tell it apart. Without order_seed, rows have the order of the common seed
        for all. Members that differ in what decides the rows cost a pass each
    config, model, fields: what the members have in common, as for train_sae; `output` is the folder above
        theirs
        A field in common that only some of the kinds use is left out of the others, which a line says
    returns: the SAEs by the names of their folders, as train_sae returns them
    raises: as train_sae, and ValueError for a grid without members, with two of one name, or over a field
        that all share. FloatingPointError once the others are trained, with the names of the members that
        broke
    """
    stores = opened([store] if isinstance(store, Store) else store)
    members, left_out = _members(stores, grid, config, fields)
    for name, kinds in left_out.items() if writes() else ():
        log.warning("%s is left out where the kind does not use it: %s", name, ", ".join(kinds))
    common = next(iter(members.values()))
    with distributed.joined(device_of(common), common.latent_shards):
        saes, broken = _train(stores, members, model)
    if broken:
        raise FloatingPointError(
            f"{len(broken)} of {len(members)} members broke: "
            + "; ".join(f"{name}: {error}" for name, error in broken.items())
            + (f". The others are trained: {', '.join(saes)}" if saes else "")
        ) from next(iter(broken.values()))
    return {name: saes[name] for name in members}


def grid_members(
    store: Store | Sequence[Store], grid: Grid, config: TrainConfig | None = None, **fields: Any
) -> dict[str, TrainConfig]:
    """The configurations of a grid's members by name, with arguments and errors as of train_grid."""
    return _members(store, grid, config, fields)[0]


def _members(
    store: Store | Sequence[Store], grid: Grid, config: TrainConfig | None, fields: Mapping[str, Any]
) -> tuple[dict[str, TrainConfig], dict[str, list[str]]]:
    """The configurations by name, and the fields left out of some kinds, each with these kinds."""
    stores = [store] if isinstance(store, Store) else store
    if isinstance(grid, Mapping):
        grid = [
            dict(zip(grid, values, strict=True))
            for values in itertools.product(*map(_values, grid, grid.values()))
        ]
    common = (to_mapping(config) if config else {}) | fields
    if not isinstance(folder := common.get("output", TrainConfig().output), str | os.PathLike):
        raise ValueError(f"output expected the folder above the members', got {described(folder)}")
    output = Path(folder)
    if (order_seed := common.get("order_seed")) is None:
        order_seed = common.get("seed", 0)
    members: dict[str, TrainConfig] = {}
    for member in grid or [{}]:
        if not member or (shared := [field for field in _COMMON_FIELDS if field in member]):
            what = f"{', '.join(shared)}, which all members share" if member else "none"
            raise ValueError(
                f'grid expected fields that tell members apart, such as {{"k": [16, 32]}}, got {what}'
            )
        name = _name(member)
        if name in members:
            raise ValueError(f"grid expected members that differ, got {name} twice")
        own = {**fields, "order_seed": order_seed, **member, "output": str(output / name)}
        members[name] = filled(configured(config, own, stores))
    left_out = _leave_out_unused_(members)
    return {name: settled(member) for name, member in members.items()}, left_out


def _leave_out_unused_(members: dict[str, TrainConfig]) -> dict[str, list[str]]:
    """Give fields that a member does not use, though others do, their defaults.

    returns: the fields that had another value, each with the kinds that do not use it
    raises: ValueError for two members that are one without them
    """
    unused_by = {name: unused(member) for name, member in members.items()}
    of_none = set.intersection(*map(set, unused_by.values()))
    defaults, left_out, found = to_mapping(filled(TrainConfig())), {}, {}
    for name, member in members.items():
        given = to_mapping(member)
        dropped = {f for f in unused_by[name].keys() - of_none if given[f] != defaults[f]}
        for field in sorted(dropped):
            left_out.setdefault(field, dict[str, None]())[str(member.kind)] = None
        members[name] = dataclasses.replace(member, **{field: defaults[field] for field in dropped})
        other = found.setdefault(repr(dataclasses.replace(members[name], output="-")), name)
        if other != name:
            raise ValueError(
                f"grid expected members that differ, got {other} and {name}: the kind {member.kind} does not "
                f"use {', '.join(sorted(dropped))}. Give a grid of its own to that kind"
            )
    return {field: list(kinds) for field, kinds in left_out.items()}


def grid_table(members: Mapping[str, TrainConfig]) -> str:
    """What the members' metrics.jsonl say at their ends: fvu and l0 on held-out rows, dead latents by
    window."""
    found = {}
    for name, config in members.items():
        metrics = Path(config.output) / "metrics.jsonl"
        last: dict[str, Any] = {}
        for line in read_metrics(metrics) if metrics.exists() else []:
            last |= line
        found[name] = last
    windows = sorted({key for last in found.values() for key in last if key.startswith("dead@")}, key=len)
    baseline = ["baseline_fvu"] * any("baseline_fvu" in last for last in found.values())
    columns = ["step", "held_out_fvu", *baseline, "held_out_l0", *windows]
    formats = {"step": ",", "held_out_l0": ".1f"}
    rows = [["member", *(column.removeprefix("held_out_") for column in columns)]]
    for name, last in found.items():
        cells = [
            format(last[c], formats.get(c, ".4f")) if last.get(c) is not None else "n/a" for c in columns
        ]
        rows.append([name, *cells])
    return aligned(rows)


def parsed_grid(words: Sequence[str]) -> dict[str, list[Any]]:
    """The grid that is written as field=value,value on a command line.

    raises: ValueError for a word of another form, or a field that is given twice
    """
    grid: dict[str, list[Any]] = {}
    for word in words:
        field, equals, values = word.partition("=")
        field = field.replace("-", "_")
        if not equals or field in grid:
            raise ValueError(
                f"--grid expected each field once, as in k=16,32,64 seed=0,1, got {' '.join(words)}"
            )
        grid[field] = [_literal(value) for value in values.split(",")]
    return grid


def _train(
    stores: Sequence[ActivationStore], members: Mapping[str, TrainConfig], model: nn.Module | None
) -> tuple[dict[str, SparseAutoencoder], dict[str, FloatingPointError]]:
    """(the SAEs of the members, what broke in others or in baselines), by name."""
    wanted = {}
    for name, config in members.items():
        if config.baseline:
            wanted[f"{name}/frozen"] = baseline_of(config)
        wanted[name] = config
    groups: dict[Any, dict[str, TrainConfig]] = {}
    for name, config in wanted.items():
        groups.setdefault(_rows_of(stores[0], config), {})[name] = config

    found: dict[str, SparseAutoencoder | FloatingPointError] = {}
    to_train = []
    for group in groups.values():
        rows = rows_for(stores, next(iter(group.values())))
        found |= {name: sae for name, config in group.items() if (sae := finished(rows, config)) is not None}
        to_train.append((rows, {name: config for name, config in group.items() if name not in found}))
    if found and writes():
        log.info("finished already: %s", ", ".join(found))
    while to_train:
        rows, group = to_train.pop(0)
        if group:
            found |= zip(
                group, train_runs([Run(rows, config, model) for config in group.values()]), strict=True
            )
        broken = {name: error for name, error in found.items() if isinstance(error, FloatingPointError)}
        for error in broken.values():
            error.__traceback__ = None  # it would keep the weights of its group in memory
        del rows
    return {name: found[name] for name in members if name not in broken}, broken


def _rows_of(store: ActivationStore, config: TrainConfig) -> tuple[Any, ...]:
    """Equal for configurations whose runs read the same rows in the same order."""
    hook_point = store.hook_point(config.hook_point)
    return tuple(hook_point if field == "hook_point" else getattr(config, field) for field in ROW_FIELDS)


def _values(field: str, values: Any) -> list[Any]:
    if isinstance(values, str) or not isinstance(values, Iterable) or not (values := list(values)):
        raise ValueError(f"grid expected a list of values for {field}, got {values!r}")
    return values


def _name(member: Mapping[str, Any]) -> str:
    """The folder of a member: "k=16,seed=0", of characters that any file system takes."""

    def plain(value: Any) -> str:
        return "-".join(map(str, value)) if isinstance(value, (tuple, list)) else str(value)

    return ",".join(re.sub(r"[^\w.+=-]", "-", f"{field}={plain(value)}") for field, value in member.items())


def _literal(word: str) -> Any:
    """A number, true, false or none where the word is one, in whatever case, else the word."""
    try:
        return ast.literal_eval(word.title() if word.lower() in ("true", "false", "none") else word)
    except (ValueError, SyntaxError):
        return word
