"""Where work goes when the user does not say."""

from __future__ import annotations

import torch


def best_device() -> str:
    """cuda, mps or cpu: the first that is there."""
    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"
