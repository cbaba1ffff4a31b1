"""The buffer: the rows that are mixed at a time, in memory, and the next one read meanwhile."""

from __future__ import annotations

import threading
from typing import Protocol

import torch
from torch import Tensor

from saelens_lite.prefetch import Ahead

from .row_order import Key, Order


class RowSource(Protocol):
    """Where a buffer reads its rows."""

    def gather(self, row_index: Tensor, dtype: torch.dtype, out: Tensor | None = None) -> Tensor:
        """dtype[n d_model] of rows int64[n], in `out` where that is given."""


class RowBuffer:
    """Batches of rows in an order; memory holds one buffer, or two where the next is read ahead.

    dtype: how the buffer keeps rows
    part: (r, n): of the n equal parts of each batch, the r-th alone is read and given; for n processes
    device: where batches are given; for CUDA they travel from pinned memory, beside the computation
    ahead_to: buffers of steps before this one are read in a thread while the one before is given
    """

    def __init__(
        self,
        source: RowSource,
        order: Order,
        *,
        d_model: int,
        dtype: torch.dtype = torch.bfloat16,
        part: tuple[int, int] = (0, 1),
        device: torch.device | str = "cpu",
        ahead_to: int = 0,
    ) -> None:
        self._source, self._order, self._part = source, order, part
        self._d_model, self._dtype, self._device = d_model, dtype, torch.device(device)
        self._ahead_to = ahead_to
        self._buffers: Ahead[Key, Tensor] = Ahead(self._load, self._following)

    def batch(self, step: int) -> Tensor:
        """float32[batch_size_rows d_model] of a step counted from 0, on the device; of a part of n,
        batch_size_rows / n."""
        key, within = self._order.place(step)
        acts = self._buffers[key]
        size = self._order.batch_size_rows // self._part[1]
        rows = acts[within * size : (within + 1) * size]
        return rows.to(self._device, non_blocking=rows.is_pinned()).float()

    def rows(self, step: int) -> Tensor:
        """int64[batch_size_rows]: where in the source the rows of that step's batch are."""
        key, within = self._order.place(step)
        return self._order.rows(key)[within]

    def close(self) -> None:
        self._buffers.close()

    def _following(self, key: Key, _: Tensor) -> Key | None:
        step = self._order.end(key)
        return self._order.place(step)[0] if step < self._ahead_to else None

    def _load(self, key: Key, stopped: threading.Event) -> Tensor:
        r, n = self._part
        rows = self._order.rows(key).chunk(n, 1)[r].flatten()
        pinned = self._device.type == "cuda"
        out = torch.empty(len(rows), self._d_model, dtype=self._dtype, pin_memory=True) if pinned else None
        return self._source.gather(rows, self._dtype, out)
