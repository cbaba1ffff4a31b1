"""The device of a computation: the one that the user names, or the best one here."""

from __future__ import annotations

import torch
from torch import Tensor


def best_device() -> str:
    """cuda, mps or cpu: the first that exists."""
    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"


def chosen_device(name: str | None) -> str:
    """The device of that name; None gives the best one here.

    raises: ValueError for a name that torch does not know, or cuda or mps where it sees none
    """
    if name is None:
        return best_device()
    try:
        kind = torch.device(name).type
    except RuntimeError as error:
        raise ValueError(f"device expected cuda, mps or cpu, got {name!r}") from error
    seen = {"cuda": torch.cuda.is_available, "mps": torch.backends.mps.is_available}
    if kind in seen and not seen[kind]():
        raise ValueError(
            f"device {name} expected one that torch {torch.__version__} sees here, it sees {best_device()}"
        )
    return name


def in_float64(tensor: Tensor) -> Tensor:
    """The tensor in float64, on the CPU where its device has no such type (mps)."""
    return tensor.cpu().double() if tensor.device.type == "mps" else tensor.double()
