"""Where this process computes, and whether it is the one that writes."""

from __future__ import annotations

import torch

from saelens_lite import distributed
from saelens_lite.device import chosen_device

from ..run_config import RunConfig


def device_of(config: RunConfig) -> torch.device:
    """The device of this process."""
    return torch.device(distributed.own_device(chosen_device(config.device)))


def writes() -> bool:
    """Whether this process writes and speaks: only the first does."""
    return distributed.rank() == 0
