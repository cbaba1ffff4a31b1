"""Row order: which rows make up step s, as a pure function of (seed, step).

Short runs of consecutive rows are permuted over all rows; that order is cut into buffers of about
`buffer_rows`, and the rows within each buffer are permuted. So memory holds one buffer, disk reads are runs,
rows from everywhere meet in one batch, and nothing about rows needs to be saved.
"""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from typing import Protocol

import torch
from torch import Tensor

from ..random_streams import generator

_RUN_ROWS = 256

Key = tuple[int, int]
"""Names a buffer: an epoch and a number within it."""


class Order(Protocol):
    """Which rows stand in which buffer, and where there each step finds its batch."""

    batch_size_rows: int
    steps_per_epoch: int

    def place(self, step: int) -> tuple[Key, int]:
        """The buffer of a step counted from 0, and the step's number within it."""

    def rows(self, key: Key) -> Tensor:
        """int64[m batch_size_rows]: the rows of a buffer, a line for each of its steps."""

    def end(self, key: Key) -> int:
        """The step after the last one of a buffer."""


class RowOrder:
    """Batches mixed over all rows. An epoch shows each row once, but for what fills no batch at its end.

    rows: int64[n], those that may be used, in ascending order
    raises: ValueError when there are fewer rows than one batch
    """

    def __init__(self, rows: Tensor, *, batch_size_rows: int, buffer_rows: int, seed: int) -> None:
        _check_enough(len(rows), batch_size_rows)
        self._rows, self._seed, self.batch_size_rows = rows, seed, batch_size_rows
        self._steps_per_buffer = max(1, buffer_rows // batch_size_rows)
        self.steps_per_epoch = len(rows) // batch_size_rows

    def place(self, step: int) -> tuple[Key, int]:
        epoch, within = divmod(step, self.steps_per_epoch)
        buffer, offset = divmod(within, self._steps_per_buffer)
        return (epoch, buffer), offset

    def rows(self, key: Key) -> Tensor:
        epoch, buffer = key
        places = _mixed_runs(len(self._rows), generator(self._seed, epoch))
        size = self._steps_per_buffer * self.batch_size_rows
        places = places[buffer * size : (buffer + 1) * size]
        places = places[torch.randperm(len(places), generator=generator(self._seed, epoch, buffer))]
        n_steps = len(places) // self.batch_size_rows
        return self._rows[places[: n_steps * self.batch_size_rows]].view(n_steps, self.batch_size_rows)

    def end(self, key: Key) -> int:
        epoch, buffer = key
        return epoch * self.steps_per_epoch + min(self.steps_per_epoch, (buffer + 1) * self._steps_per_buffer)


class MixedOrder:
    """Batches in which each part of the rows has its share, exact but for rounding, which never adds up.

    Each part has an order of its own and repeats: one whose weight is large for its size comes more often.
    With the parts' sizes as weights each row comes once in an epoch.

    parts: int64[n_i] each, the rows of each part that may be used, in ascending order
    raises: ValueError when there are fewer rows than one batch
    """

    def __init__(
        self,
        parts: Sequence[Tensor],
        weights: Sequence[float],
        *,
        batch_size_rows: int,
        buffer_rows: int,
        seed: int,
    ) -> None:
        n_rows = sum(len(part) for part in parts)
        _check_enough(n_rows, batch_size_rows)
        self._parts, self._seed, self.batch_size_rows = parts, seed, batch_size_rows
        self._weights = [Fraction(weight) for weight in weights]
        self._steps_per_buffer = max(1, buffer_rows // batch_size_rows)
        self.steps_per_epoch = n_rows // batch_size_rows

    def place(self, step: int) -> tuple[Key, int]:
        buffer, offset = divmod(step, self._steps_per_buffer)
        return (0, buffer), offset

    def rows(self, key: Key) -> Tensor:
        _, buffer = key
        first_step, mixer = buffer * self._steps_per_buffer, generator(self._seed, buffer)
        steps = range(first_step, first_step + self._steps_per_buffer + 1)
        edges = [shares(step * self.batch_size_rows, self._weights) for step in steps]
        spans = []
        for part, (first, *inner, last) in enumerate(zip(*edges, strict=True)):
            span = self._span(part, first, last, mixer)
            spans.append(span.tensor_split([edge - first for edge in inner]))
        batches = [torch.cat(batch) for batch in zip(*spans, strict=True)]
        return torch.stack([rows[torch.randperm(len(rows), generator=mixer)] for rows in batches])

    def end(self, key: Key) -> int:
        return (key[1] + 1) * self._steps_per_buffer

    def _span(self, part: int, start: int, stop: int, mixer: torch.Generator) -> Tensor:
        """int64[stop − start], all epochs counted, each mixed."""
        rows, found = self._parts[part], []
        for epoch in range(start // len(rows), -(-stop // len(rows))):
            places = _mixed_runs(len(rows), generator(self._seed, part, epoch))
            places = places[max(0, start - epoch * len(rows)) : stop - epoch * len(rows)]
            found.append(rows[places[torch.randperm(len(places), generator=mixer)]])
        return torch.cat(found) if found else rows[:0]


def shares(n: int, weights: Sequence[Fraction | float]) -> list[int]:
    """How many of the first n rows are each part's: n · weight / total, rounded so that they add up to n.

    None falls when n rises, so that differences are the shares of the rows between. Each is off by at most
    half a row for every part.
    """
    found, exact = [], [Fraction(weight) for weight in weights]
    total = sum(exact, Fraction())
    for weight in reversed(exact[1:]):
        share = weight / total
        found.append((2 * n * share.numerator + share.denominator) // (2 * share.denominator))
        n, total = n - found[-1], total - weight
    return [n, *reversed(found)]


def _mixed_runs(n_rows: int, mixer: torch.Generator) -> Tensor:
    """int64[n_rows]: 0 … n_rows − 1, as runs in random order."""
    runs = torch.randperm(-(-n_rows // _RUN_ROWS), generator=mixer)
    places = (runs[:, None] * _RUN_ROWS + torch.arange(_RUN_ROWS)).flatten()
    return places[places < n_rows]


def _check_enough(n_rows: int, batch_size_rows: int) -> None:
    if n_rows < batch_size_rows:
        raise ValueError(
            f"training expected at least one batch of {batch_size_rows} rows, got {n_rows} outside the "
            "held-out documents: harvest more tokens or lower batch_size_rows"
        )
