"""The frozen-decoder baseline of a run: the same run with random decoder rows, on the same batches.

Its output is the folder `frozen` of the run's. It takes each step before the run does, so that the run's
metrics.jsonl can quote the baseline's score of the same step, however often both are killed.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

from saelens_lite.run_log import read_metrics

from ..config import TrainConfig


def baseline_of(config: TrainConfig) -> TrainConfig:
    """The configuration of the baseline of a run; frozen decoder rows are not resampled."""
    fields = {
        "freeze_decoder": True,
        "resample_every_steps": None,
        "output": str(Path(config.output) / "frozen"),
    }
    return dataclasses.replace(config, baseline=False, **fields)


def baseline_fvu(config: TrainConfig, step: int) -> float | None:
    """The held-out fvu that the baseline of a run logged at a step, or None."""
    metrics = Path(baseline_of(config).output) / "metrics.jsonl"
    lines = read_metrics(metrics) if metrics.exists() else []
    found = [line["held_out_fvu"] for line in lines if line["step"] == step and "held_out_fvu" in line]
    return found[-1] if found else None
