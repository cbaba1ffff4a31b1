"""Where this process computes, and whether it is the one that writes."""

from __future__ import annotations

import torch

from saelens_lite import distributed
from saelens_lite.device import chosen_device

from ..config import TrainConfig


def device_of(config: TrainConfig) -> torch.device:
    """The device of this process."""
    return torch.device(distributed.own_device(chosen_device(config.device)))


def writes() -> bool:
    """Whether this process writes and speaks: only the first does."""
    return distributed.rank() == 0
