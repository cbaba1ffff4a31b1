"""The buffer: the rows that are mixed at a time, in memory; the next one may be read while it is trained on."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from typing import Protocol

import torch
from torch import Tensor

from .order import Key, Order


class RowSource(Protocol):
    """Where a buffer reads its rows."""

    def gather(self, row_index: Tensor, dtype: torch.dtype, out: Tensor | None = None) -> Tensor:
        """dtype[n d_model] of rows int64[n], in `out` where that is given."""


class RowBuffer:
    """Batches of rows in an order; memory holds the rows of one buffer, or of two where the next is read ahead.

    dtype: how the buffer keeps rows
    part: (r, n): of the n equal parts of each batch, the r-th alone is read and given; for n processes
    device: where batches are given; for CUDA they travel from pinned memory, beside the computation
    ahead: read the next buffer in a thread while this one is given; the rows are the same
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
        ahead: bool = False,
    ) -> None:
        self._source, self._order, self._part = source, order, part
        self._d_model, self._dtype, self._device = d_model, dtype, torch.device(device)
        self._buffers = Ahead(self._load, order.following if ahead else None)

    def batch(self, step: int) -> Tensor:
        """float32[batch_size_rows d_model] of a step counted from 0, on the device; of a part of n, batch_size_rows / n."""
        key, within = self._order.place(step)
        acts = self._buffers[key]
        size = self._order.batch_size_rows // self._part[1]
        rows = acts[within * size : (within + 1) * size]
        return rows.to(self._device, non_blocking=rows.is_pinned()).float()

    def rows(self, step: int) -> Tensor:
        """int64[batch_size_rows]: where in the source the rows of that step's batch are."""
        key, within = self._order.place(step)
        return self._order.rows(key)[within]

    def batches(self, first_step: int, n_steps: int) -> Iterator[Tensor]:
        """The batches of steps first_step … n_steps − 1."""
        for step in range(first_step, n_steps):
            yield self.batch(step)

    def close(self) -> None:
        """Forget all rows; returns when nothing is being read."""
        self._buffers.close()

    def _load(self, key: Key, stopped: threading.Event) -> Tensor:
        r, n = self._part
        rows = self._order.rows(key).chunk(n, 1)[r].flatten()
        pinned = self._device.type == "cuda"
        out = torch.empty(len(rows), self._d_model, dtype=self._dtype, pin_memory=True) if pinned else None
        return self._source.gather(rows, self._dtype, out)


class Ahead:
    """The tensor of one key at a time, and that of the key after it made in a thread meanwhile.

    make: make(key, stopped) gives the tensor of a key; it may end early, with anything, once `stopped` is set
    following: the key after a key; None makes each tensor when it is asked for, and only when the one before is gone
    An exception of `make` in the thread is raised where its tensor is asked for.
    """

    def __init__(self, make: Callable[[Key, threading.Event], Tensor], following: Callable[[Key], Key] | None) -> None:
        self._make, self._following = make, following
        self._key: Key | None = None
        self._tensor: Tensor | None = None
        self._next: _Making | None = None

    def __getitem__(self, key: Key) -> Tensor:
        if self._key != key:
            self._key = self._tensor = None  # before the next one, so that no more stand in memory than are said to
            self._tensor = self._taken(key)
            self._key = key
            if self._following is not None:
                self._next = _Making(self._make, self._following(key))
        assert self._tensor is not None
        return self._tensor

    def close(self) -> None:
        """Forget the tensors, and end the thread if there is one."""
        self._key = self._tensor = None
        if self._next is not None:
            self._next.stop()
            self._next = None

    def _taken(self, key: Key) -> Tensor:
        making, self._next = self._next, None
        if making is not None:
            if making.key == key:
                return making.result()
            making.stop()
        return self._make(key, threading.Event())


class _Making:
    """A thread that makes the tensor of one key."""

    def __init__(self, make: Callable[[Key, threading.Event], Tensor], key: Key) -> None:
        self.key, self._make, self._stopped = key, make, threading.Event()
        self._tensor: Tensor | None = None
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="saelens_lite-rows-ahead", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        try:
            self._tensor = self._make(self.key, self._stopped)
        except BaseException as error:  # handed over, not handled: it is raised where the tensor is asked for
            self._error = error

    def result(self) -> Tensor:
        self._thread.join()
        if self._error is not None:
            raise self._error
        assert self._tensor is not None
        return self._tensor

    def stop(self) -> None:
        self._stopped.set()
        self._thread.join()
        self._tensor = None
