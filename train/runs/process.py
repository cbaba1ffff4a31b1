"""TODO clause of train/runs/process.py."""

from __future__ import annotations

import torch

from saelens_lite import distributed
from saelens_lite.device import chosen_device

from ..config import TrainConfig


def device_of(config: TrainConfig) -> torch.device:
    """Where this process computes."""
    return torch.device(distributed.own_device(chosen_device(config.device)))


def writes() -> bool:
    """Whether this process writes and speaks: of several, which all do the same, the first."""
    return distributed.rank() == 0
