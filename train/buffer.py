"""Row order: which rows of the store make up step s, as a pure function of (seed, step).

An epoch permutes short runs of consecutive rows over the whole store, cuts that order into buffers of about
`buffer_rows`, and permutes the rows within each buffer. So memory holds one buffer, disk reads are runs, rows from
everywhere meet in one batch, and a position is two integers: nothing about rows needs to be saved.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

import torch
from torch import Tensor

from .draws import generator

_RUN_ROWS = 256


class RowSource(Protocol):
    """What training needs of an activation store."""

    def gather(self, row_index: Tensor, hook_point: str | None = None, dtype: torch.dtype = ...) -> Tensor: ...


class RowBuffer:
    """Batches of rows of one hook point, mixed over the whole store.

    rows: int64[n], the rows that may be used, in ascending order
    part: (r, n): of the n equal parts of each batch, the r-th alone is read and given; for n processes
    raises: ValueError when there are fewer rows than one batch
    """

    def __init__(
        self,
        store: RowSource,
        rows: Tensor,
        *,
        batch_size_rows: int,
        buffer_rows: int,
        seed: int,
        hook_point: str | None = None,
        dtype: torch.dtype = torch.bfloat16,
        part: tuple[int, int] = (0, 1),
    ) -> None:
        if len(rows) < batch_size_rows:
            raise ValueError(
                f"training expected at least one batch of {batch_size_rows} rows, got {len(rows)} outside the held-out "
                "documents: harvest more tokens or lower batch_size_rows"
            )
        self._store, self._rows, self._hook_point, self._dtype = store, rows, hook_point, dtype
        self._batch, self._seed, self._part = batch_size_rows, seed, part
        self._buffer_rows = max(batch_size_rows, buffer_rows - buffer_rows % batch_size_rows)
        self.steps_per_epoch = len(rows) // batch_size_rows
        self._held: tuple[int, int] | None = None
        self._acts: Tensor | None = None

    def row_order(self, epoch: int, buffer: int) -> Tensor:
        """int64[m]: the rows of one buffer of one epoch, in the order in which they are trained on."""
        n_runs = -(-len(self._rows) // _RUN_ROWS)
        runs = torch.randperm(n_runs, generator=generator(self._seed, epoch))
        places = (runs[:, None] * _RUN_ROWS + torch.arange(_RUN_ROWS)).flatten()
        places = places[places < len(self._rows)]
        start = buffer * self._buffer_rows
        places = places[start : start + self._buffer_rows]
        return self._rows[places[torch.randperm(len(places), generator=generator(self._seed, epoch, buffer))]]

    def _load(self, epoch: int, buffer: int) -> Tensor:
        if self._held != (epoch, buffer):
            self._acts = None  # before the next one, so that two never stand in memory
            self._acts = self._store.gather(self._of_part(self.row_order(epoch, buffer)), self._hook_point, self._dtype)
            self._held = (epoch, buffer)
        assert self._acts is not None
        return self._acts

    def _of_part(self, rows: Tensor) -> Tensor:
        """Those of a buffer's rows int64[m] that this part of each batch has."""
        r, n = self._part
        return torch.cat([batch.chunk(n)[r] for batch in rows.split(self._batch) if len(batch) == self._batch])

    def _place(self, step: int) -> tuple[int, int, slice]:
        """Epoch, buffer and rows of that buffer, of a step counted from 0."""
        epoch, within = divmod(step, self.steps_per_epoch)
        buffer, offset = divmod(within * self._batch, self._buffer_rows)
        return epoch, buffer, slice(offset, offset + self._batch)

    def batch(self, step: int) -> Tensor:
        """float32[batch_size_rows d_model] of a step counted from 0; of a part of n, batch_size_rows / n."""
        epoch, buffer, within = self._place(step)
        n = self._part[1]
        return self._load(epoch, buffer)[within.start // n : within.stop // n].float()

    def rows(self, step: int) -> Tensor:
        """int64[batch_size_rows]: where in the store the rows of that step's batch are."""
        epoch, buffer, within = self._place(step)
        return self.row_order(epoch, buffer)[within]

    def batches(self, first_step: int, n_steps: int) -> Iterator[Tensor]:
        """The batches of steps first_step … n_steps − 1."""
        for step in range(first_step, n_steps):
            yield self.batch(step)
