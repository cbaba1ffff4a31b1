"""The numbers of a metrics.jsonl as columns: about 8 bytes a number, whatever the length of the run."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from saelens_lite.json_data import is_number

NOT_NUMBERS = ("step", "tokens")
"""Columns of metrics.jsonl that say when, not what."""


@dataclass(frozen=True, slots=True, eq=False)
class Column:
    """What lines say under one name.

    lines: int64[n], which lines these are, in order; columns of the same lines share the array
    values: float64[n], NaN for what is no number
    whole: whether all of its numbers are integers
    """

    lines: NDArray[np.int64] = field(default_factory=lambda: np.empty(0, np.int64))
    values: NDArray[np.float64] = field(default_factory=lambda: np.empty(0))
    whole: bool = False

    def told(self, number: np.float64) -> float:
        """A number of the column as JSON had it: an int where all of them are."""
        return int(number) if self.whole else float(number)

    @property
    def last(self) -> float | None:
        """The last number; None where there is none."""
        (at,) = np.nonzero(~np.isnan(self.values))
        return self.told(self.values[at[-1]]) if len(at) else None

    @property
    def highest(self) -> float | None:
        finite = self.values[~np.isnan(self.values)]
        return self.told(finite.max()) if len(finite) else None


@dataclass(frozen=True, slots=True, eq=False)
class MetricColumns:
    """The lines of a metrics.jsonl that have a number as their step, by name."""

    columns: dict[str, Column] = field(default_factory=dict)

    @property
    def n_lines(self) -> int:
        return len(self.of("step").lines)

    @property
    def names(self) -> list[str]:
        """Columns that hold a number, without those of time, in the order of their appearance."""
        return [
            name
            for name, column in self.columns.items()
            if name not in NOT_NUMBERS and not np.isnan(column.values).all()
        ]

    def of(self, name: str) -> Column:
        """The column of a name; empty where no line has it."""
        return self.columns.get(name, Column())

    def steps(self, column: Column) -> NDArray[np.float64]:
        """The step of each line of a column."""
        steps = self.of("step")
        same = column.lines is steps.lines
        return steps.values if same else steps.values[np.searchsorted(steps.lines, column.lines)]


def metric_columns(chunks: Iterable[Sequence[dict[str, Any]]]) -> MetricColumns:
    """The columns of lines that come a stretch at a time."""
    parts: dict[str, list[Column]] = {}
    n_read = 0
    for lines in chunks:
        alike: dict[tuple[str, ...], list[int]] = {}
        for i, line in enumerate(lines):
            alike.setdefault(tuple(line), []).append(i)
        for names, members in alike.items():
            if "step" in names:
                columns = [_numbers(values) for values in zip(*(lines[i].values() for i in members))]
                with_step = ~np.isnan(columns[names.index("step")][0])
                at = (np.array(members) + n_read)[with_step]
                for name, (values, whole) in zip(names, columns) if len(at) else ():
                    parts.setdefault(name, []).append(Column(at, values[with_step], whole))
        n_read += len(lines)
    found: dict[str, Column] = {}
    shared: dict[tuple[int, int], NDArray[np.int64]] = {}
    for name in list(parts):
        column = _joined(parts.pop(name))
        lines = shared.setdefault((len(column.lines), int(column.lines.sum())), column.lines)
        if np.array_equal(lines, column.lines):
            column = Column(lines, column.values, column.whole)
        found[name] = column
    return MetricColumns(found)


def _joined(parts: Sequence[Column]) -> Column:
    lines = np.concatenate([part.lines for part in parts])
    values = np.concatenate([part.values for part in parts])
    order = np.argsort(lines, kind="stable")
    return Column(lines[order], values[order], all(part.whole for part in parts))


def _numbers(values: Sequence[Any]) -> tuple[NDArray[np.float64], bool]:
    """Column.values and whole."""
    kinds = set(map(type, values))
    if kinds <= {int, float, type(None)}:
        try:
            found = np.array(values, dtype=np.float64)
            found[np.isinf(found)] = np.nan
            return found, float not in kinds
        except OverflowError:  # an int beyond float64
            pass
    kept = [value if is_number(value) else None for value in values]
    return np.array(kept, dtype=np.float64), float not in map(type, kept)
