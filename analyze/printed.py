"""What was found, as people and as JSON take it: aligned text, and values that JSON has."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any


def aligned(lines: Sequence[Sequence[str]]) -> str:
    """Cells as text, the first column to the left and the others to the right.

    lines: the first has all columns; another has as many, or its first cell alone
    """
    full = [line for line in lines if len(line) == len(lines[0])]
    widths = [max(len(line[i]) for line in full) for i in range(len(lines[0]))]
    widths[0] = max(len(line[0]) for line in lines)
    return "\n".join(
        "  ".join([line[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(line[1:], widths[1:]))]).rstrip()
        for line in lines
    )


def plain(value: Any) -> Any:
    """The same with None for nan and infinity, which JSON has no number for, and lists for tuples."""
    if isinstance(value, dict):
        return {key: plain(held) for key, held in value.items()}
    if isinstance(value, list | tuple):
        return [plain(held) for held in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
