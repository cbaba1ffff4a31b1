"""The numbers of a metrics.jsonl as columns: about 8 bytes a number, whatever the length of the run."""

from __future__ import annotations

from array import array
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from saelens_lite.json_data import is_number
from saelens_lite.run_log import line_stretches, parsed

NOT_NUMBERS = ("step", "tokens")
"""Columns of metrics.jsonl that say when, not what."""

_MANY_LINES = 256
"""Lines alike in one stretch that are worth a table: pyarrow reads them in a third of json's time."""


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


def metric_columns(path: Path) -> MetricColumns:
    """The columns of a metrics.jsonl. raises: as read_metrics"""
    parts: dict[str, _Part] = defaultdict(_Part)
    for before, lines in line_stretches(path):
        for at, numbers in sorted(_groups(path, lines, before), key=lambda group: group[0][0]):
            if "step" in numbers:
                with_step = ~np.isnan(numbers["step"][0])
                at = before + np.array(at)[with_step]
                for name, (values, whole) in numbers.items() if len(at) else ():
                    parts[name].add(at, values[with_step], whole)
    found: dict[str, Column] = {}
    shared: dict[tuple[int, int], NDArray[np.int64]] = {}
    for name in list(parts):
        column = parts.pop(name).column()
        lines = shared.setdefault((len(column.lines), int(column.lines.sum())), column.lines)
        if np.array_equal(lines, column.lines):
            column = Column(lines, column.values, column.whole)
        found[name] = column
    return MetricColumns(found)


_Numbers = dict[str, tuple[NDArray[np.float64], bool]]
"""Column.values and whole, by name."""


def _groups(path: Path, lines: list[bytes], before: int) -> Iterator[tuple[list[int], _Numbers]]:
    """Lines that have the same names, by their place in the stretch, and what they say; uses `lines` up."""
    alike: dict[Any, list[int]] = defaultdict(list)
    for i, line in enumerate(lines):
        alike[line.count(b":")].append(i)
    for at in alike.values():
        if len(at) >= _MANY_LINES and (numbers := _table([lines[i] for i in at])):
            yield at, numbers
            for i in at:
                lines[i] = b"\n"
    places = (i for i, line in enumerate(lines) if not line.isspace())
    objects = parsed(path, lines, before)
    alike = defaultdict(list)
    for i, line in zip(places, objects):
        alike[tuple(line)].append((i, line))
    for names, found in alike.items():
        values = zip(*(line.values() for _, line in found))
        yield [i for i, _ in found], dict(zip(names, map(_numbers, values)))


def _table(lines: list[bytes]) -> _Numbers | None:
    """What lines say that all have a number under the same names, each once; None for any others, and without
    pyarrow, which comes with `datasets`."""
    try:
        import pyarrow
        from pyarrow import json
    except ImportError:
        return None

    text = b"".join(lines)
    whole_text = json.ReadOptions(use_threads=False, block_size=len(text) + 1)
    try:
        pool = pyarrow.system_memory_pool()  # its own keeps what it once took
        table = json.read_json(pyarrow.BufferReader(text), read_options=whole_text, memory_pool=pool)
        names = table.column_names
    except (ValueError, pyarrow.ArrowException):
        return None
    found = {}
    for name, column in zip(names, table.columns):
        if column.null_count or column.type not in (pyarrow.int64(), pyarrow.float64()):
            return None
        values = column.to_numpy().astype(np.float64)
        if (np.abs(values) >= 2.0**63).any():  # infinite, or an int that pyarrow takes for a float
            return None
        found[name] = values, column.type == pyarrow.int64()
    return found if len(table) == len(lines) else None


class _Part:
    """A column as its lines are read; its numbers lie in one array that grows, which leaves no gaps."""

    def __init__(self) -> None:
        self._lines: list[NDArray[np.int64]] = []
        self._values = array("d")
        self._whole = True

    def add(self, lines: NDArray[np.int64], values: NDArray[np.float64], whole: bool) -> None:
        self._lines.append(lines)
        self._values.frombytes(values.tobytes())
        self._whole &= whole

    def column(self) -> Column:
        lines, values = np.concatenate(self._lines), np.frombuffer(self._values)
        if (lines[1:] < lines[:-1]).any():
            order = np.argsort(lines, kind="stable")
            lines, values = lines[order], values[order]
        return Column(lines, values, self._whole)


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
