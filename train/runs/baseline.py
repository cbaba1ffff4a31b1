"""The frozen-decoder baseline of a run: the same with random decoder rows, trained beside it on the same
rows.

It stands in the folder `frozen` of the run's output and goes ahead of the run, so that a line of the run's
metrics.jsonl can take over what the baseline's own says of that step. This holds however often both are
killed: what is ahead has logged.
"""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path

from saelens_lite.run_log import read_metrics

from ..config import TrainConfig


def baseline_of(config: TrainConfig) -> TrainConfig:
    """The run that `config.baseline` asks for beside the one of `config`; decoder rows that stay are not
    resampled."""
    fields = {
        "freeze_decoder": True,
        "resample_every_steps": None,
        "output": str(Path(config.output) / "frozen"),
    }
    return dataclasses.replace(config, baseline=False, **fields)


def remove_baseline(output: Path) -> None:
    """Remove what an earlier run left in `output` as its baseline, if anything: it is none of the run that
    begins there."""
    folder = output / "frozen"
    settings = folder / "train_config.json"
    if settings.exists() and json.loads(settings.read_text(encoding="utf-8")).get("freeze_decoder"):
        shutil.rmtree(folder)


def baseline_fvu(config: TrainConfig, step: int) -> float | None:
    """What the baseline of a run logged as its fvu on held-out rows at that step; None if it did not score
    them then."""
    metrics = Path(baseline_of(config).output) / "metrics.jsonl"
    lines = read_metrics(metrics) if metrics.exists() else []
    found = [line["held_out_fvu"] for line in lines if line["step"] == step and "held_out_fvu" in line]
    return found[-1] if found else None
