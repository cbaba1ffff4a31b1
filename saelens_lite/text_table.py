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
        "  ".join(
            [line[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(line[1:], widths[1:]))]
        ).rstrip()
        for line in lines
    )


def plain(value: Any) -> Any:
    """The same with None for nan and infinity, which JSON has no number for, and lists for tuples."""
    if isinstance(value, dict):
        return {key: plain(held) for key, held in value.items()}
    if isinstance(value, list | tuple):
        return [plain(held) for held in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def short(value: float) -> str:
    """Four significant digits: 0.1416, 12.5, 200k, 1.5M, 3e-05."""
    for unit, suffix in ((1e9, "B"), (1e6, "M"), (1e4, "k")):
        if unit <= abs(value) < 1e15:
            return f"{value / (1e3 if suffix == 'k' else unit):.4g}{suffix}"
    return f"{value:.4g}"
