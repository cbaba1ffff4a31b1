"""Results as people, JSON and pandas take them: aligned text, numbers in words, plain values, data frames."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pandas import DataFrame


def aligned(lines: Sequence[Sequence[str]], left: int = 1) -> str:
    """Cells as text, the first `left` columns to the left and the others to the right.

    lines: the first has all columns; another has as many, or fewer that widen the first column only
    """
    full = [line for line in lines if len(line) == len(lines[0])]
    widths = [max(len(line[i]) for line in full) for i in range(len(lines[0]))]
    widths[0] = max(len(line[0]) for line in lines)
    sides = [str.ljust] * left + [str.rjust] * len(widths)
    padded = [[side(*cell) for side, *cell in zip(sides, line, widths)] for line in lines]
    return "\n".join("  ".join(cells).rstrip() for cells in padded)


def filled_columns(lines: Sequence[Sequence[str]]) -> list[tuple[str, ...]]:
    """The lines without the columns that have a head only; the first column stays."""
    columns = list(zip(*lines))
    return list(zip(*(column for i, column in enumerate(columns) if i == 0 or any(column[1:]))))


def number(value: float | None, spec: str, absent: str = "n/a") -> str:
    """A number in a format such as ".3f"; `absent` for None and nan."""
    return absent if value is None or math.isnan(value) else format(value, spec)


def span(low: float, high: float, spec: str) -> str:
    """The ends of an interval: "0.21 to 0.35"."""
    return f"{low:{spec}} to {high:{spec}}"


def short(value: float) -> str:
    """Four significant digits: 0.1416, 12.5, 200k, 1.5M, 3e-05."""
    for unit, suffix in ((1e9, "B"), (1e6, "M"), (1e4, "k")):
        if unit <= abs(value) < 1e15:
            return f"{value / (1e3 if suffix == 'k' else unit):.4g}{suffix}"
    return f"{value:.4g}"


def cell(value: Any) -> str:
    """Any value in a table: four significant digits, thousands apart, a dash for what is not known."""
    if value is None:
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    return short(value) if isinstance(value, float) else str(value)


def rounded(value: float) -> float:
    return float(f"{value:.4g}")


def plain(value: Any) -> Any:
    """As JSON has it: None for nan and infinity, lists for tuples."""
    if isinstance(value, dict):
        return {key: plain(held) for key, held in value.items()}
    if isinstance(value, list | tuple):
        return [plain(held) for held in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def frame(rows: Sequence[Mapping[str, Any]]) -> DataFrame:
    """A line for each row; what a row holds by name becomes columns such as "effect.low".

    raises: ImportError without pandas
    """
    try:
        import pandas
    except ImportError as error:
        raise ImportError("to_frame expected pandas, which is not installed: pip install pandas") from error
    return pandas.json_normalize(list(rows))
