"""Training runs as their folders tell them: settings, numbers, and what is known of the SAE; no weights."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from saelens_lite.errors import SaelensLiteError
from saelens_lite.formats import saelens
from saelens_lite.json_data import loads, misfit
from saelens_lite.sae.config import SAEConfig
from saelens_lite.sae.folder import CFG

from .metric_columns import MetricColumns, metric_columns

METRICS, SETTINGS = "metrics.jsonl", "train_config.json"
_NO_RUNS = ("state", "wandb", "damaged", "shards")
"""Folders of runs and stores in which there is none: checkpoints hold SAEs too."""
KEEP_K = ("topk", "batchtopk", "matryoshka")
"""Kinds of training that keep k latents a token; the last two are saved as jumprelu."""

_SETTINGS = {
    "kind?": str, "k?": int, "d_sae?": int, "batch_size_rows?": int, "n_steps?": int, "lr?": float,
    "hook_point?": str, "freeze_decoder?": bool,
}  # fmt: skip
_FACTS = {
    "store?": str, "version?": str, "steps?": int, "tokens?": int, "lr?": float,
    "held_out_fvu?": float, "held_out_l0?": float, "held_out_delta_ce?": float,
}  # fmt: skip
_EVALUATION = {"hook_point": str, "rows": [{"name?": str}]}
"""What a report relies on of train_config.json, of our facts in cfg.json, and of an evaluation."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Run:
    """What a folder holds of one run.

    name: the folder's, with as much of its path as tells it from others; of an evaluation alone, its file's
    metrics: the lines of metrics.jsonl
    settings, config: of train_config.json and cfg.json; empty and None before the first checkpoint
    evaluations: what `saelens-lite evaluate --output` wrote into the folder, by file name
    unfinished: whether training left a checkpoint to resume from
    problems: sentences on what could not be read
    """

    name: str
    folder: Path
    metrics: MetricColumns = field(default_factory=MetricColumns)
    settings: dict[str, Any] = field(default_factory=dict)
    config: SAEConfig | None = None
    evaluations: dict[str, dict[str, Any]] = field(default_factory=dict)
    unfinished: bool = False
    problems: Sequence[str] = ()

    @property
    def facts(self) -> dict[str, Any]:
        """What our training wrote into the SAE's metadata; empty for one from elsewhere."""
        facts = self.config.metadata.get("saelens_lite") if self.config else None
        return {} if facts is None or misfit(facts, _FACTS) else facts

    @property
    def kind(self) -> str | None:
        """As it was trained: a batchtopk SAE is saved as jumprelu."""
        return self.settings.get("kind") or (self.config.kind if self.config else None)

    @property
    def k(self) -> int | None:
        """Latents kept a token, of the kinds that keep k."""
        if self.settings.get("kind") in KEEP_K:
            return self.settings.get("k")
        return self.config.k if self.config else None

    @property
    def steps(self) -> int | None:
        """Optimiser steps up to the last number, or those of the SAE where there are no numbers."""
        return self.metrics.of("step").last if self.metrics.n_lines else self.facts.get("steps")

    @property
    def tokens_per_step(self) -> float | None:
        """From a line that has both, else the batch size of the settings; None where neither is known."""
        tokens = self.metrics.of("tokens")
        steps = self.metrics.steps(tokens)
        (both,) = np.nonzero(~np.isnan(tokens.values) & (steps > 0))
        if len(both):
            return float(tokens.values[both[-1]] / steps[both[-1]])
        return self.settings.get("batch_size_rows")

    @property
    def tokens(self) -> int | None:
        if self.steps is None or self.tokens_per_step is None:
            return self.facts.get("tokens")
        return round(self.steps * self.tokens_per_step)

    def points(self, name: str, over_tokens: bool) -> NDArray[np.float64]:
        """float64[n 2]: tokens or steps, and the value there or NaN, of the lines with the name, in order."""
        column = self.metrics.of(name)
        x = self.metrics.steps(column) * (self.tokens_per_step if over_tokens else 1)
        points = np.stack([x, column.values], axis=1)
        in_order = (x[1:] >= x[:-1]).all()
        return points if in_order else points[np.argsort(x, kind="stable")]


def find_runs(folders: Sequence[str | Path]) -> list[Run]:
    """The runs in these folders, in order. A folder stands for every run at or below it, by name; the JSON of
    an evaluation for an SAE of which nothing else is known.

    raises: ValueError for no folder, one without a run, or metrics.jsonl with a broken line before its last
    """
    if not folders:
        raise ValueError("expected at least one folder of a run, got none")
    found: dict[Path, None] = {}
    for folder in map(Path, folders):
        if folder.is_file() and _evaluation(folder) is not None:
            found[folder.resolve()] = None
            continue
        members = list(_runs_below(folder))
        if not members:
            other = "a file" if folder.exists() else "nothing there"
            what = "a folder without them" if folder.is_dir() else other
            raise ValueError(
                f"{folder} expected a run ({METRICS} or {CFG}) or a folder of runs, got {what}; a run is the "
                "--output of `saelens-lite train` or an SAE folder of SAELens, an evaluation that of "
                "`saelens-lite evaluate`"
            )
        found |= dict.fromkeys(member.resolve() for member in members)
    return [_read(folder, name) for folder, name in zip(found, _names(list(found)))]


def _runs_below(folder: Path) -> Iterator[Path]:
    """The folder if it is a run, and every run below it: of a grid, its members; of a run, its baseline."""
    if _is_run(folder):
        yield folder
    for path in sorted(folder.iterdir()) if folder.is_dir() else ():
        if path.is_symlink():  # of itself, not of what it leads to further down
            yield from [path] if _is_run(path) else []
        elif path.is_dir() and not path.name.startswith(".") and path.name not in _NO_RUNS:
            yield from _runs_below(path)


def _is_run(folder: Path) -> bool:
    return (folder / METRICS).is_file() or (folder / CFG).is_file()


def _names(folders: list[Path]) -> list[str]:
    """The last part of each path; of those that share it, what follows the folder that all have in common."""
    short = [folder.name for folder in folders]
    if len(set(short)) == len(short):
        return short
    common = os.path.commonpath(folders)
    return [os.path.relpath(folder, common) for folder in folders]


def _read(folder: Path, name: str) -> Run:
    problems: list[str] = []
    if folder.is_file():
        evaluations = {folder.name: _evaluation(folder) or {}}
        return Run(name=name.removesuffix(".json"), folder=folder, evaluations=evaluations)
    metrics = folder / METRICS
    return Run(
        name=name,
        folder=folder,
        metrics=metric_columns(metrics) if metrics.is_file() else MetricColumns(),
        settings=_object(folder / SETTINGS, problems, _SETTINGS),
        config=_config(folder, problems),
        evaluations=_evaluations(folder),
        unfinished=(folder / "state").is_dir(),
        problems=problems,
    )


def _config(folder: Path, problems: list[str]) -> SAEConfig | None:
    cfg = _object(folder / CFG, problems)
    try:
        return saelens.from_cfg(cfg, CFG) if cfg else None
    except (ValueError, SaelensLiteError) as error:
        problems.append(str(error))
        return None


def _object(file: Path, problems: list[str], form: dict[str, Any] = {}) -> dict[str, Any]:  # noqa: B006
    """A JSON object of a form, empty where there is no file; what else the file holds is a problem."""
    if not file.is_file():
        return {}
    try:
        values = loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        problems.append(f"{file.name} expected JSON: {error}")
        return {}
    if found := misfit(values, form):
        problems.append(f"{file.name}: {found}")
        return {}
    return values


def _evaluations(folder: Path) -> dict[str, dict[str, Any]]:
    found = {file.name: _evaluation(file) for file in sorted(folder.glob("*.json"))}
    return {name: values for name, values in found.items() if values is not None}


def _evaluation(file: Path) -> dict[str, Any] | None:
    """What a file holds that looks like Evaluation.to_dict(), else None."""
    values = _object(file, [])
    return None if misfit(values, _EVALUATION) else values
