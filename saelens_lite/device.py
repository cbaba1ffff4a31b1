"""Where work goes: what the user says, or the best there is."""

from __future__ import annotations

import torch


def best_device() -> str:
    """cuda, mps or cpu: the first that is there."""
    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"


def chosen_device(name: str | None) -> str:
    """The device of that name; None gives the best there is.

    raises: ValueError for a name that torch does not know, or cuda or mps where it sees none
    """
    if name is None:
        return best_device()
    try:
        kind = torch.device(name).type
    except RuntimeError as error:
        raise ValueError(f"device expected cuda, mps or cpu, got {name!r}") from error
    if (kind == "cuda" and not torch.cuda.is_available()) or (
        kind == "mps" and not torch.backends.mps.is_available()
    ):
        raise ValueError(
            f"device {name} expected one that torch {torch.__version__} sees here, it sees {best_device()}"
        )
    return name
