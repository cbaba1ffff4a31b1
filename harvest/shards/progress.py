"""The progress of a harvest: a bar with tokens per second and the stages' shares of the time; log figures."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeVar

from ..text.tokenized import PackedShard
from .forward import Batch

T = TypeVar("T")

STAGES = ("pack", "forward", "copy", "write")


class Progress:
    """Counts the rows and times the stages of one process.

    n_rows, n_before: its rows at the end, and those of finished shards
    """

    def __init__(self, n_rows: int, n_before: int, description: str, show: bool):
        from tqdm.auto import tqdm

        self._bar = tqdm(
            total=n_rows,
            initial=min(n_before, n_rows),
            unit=" tokens",
            unit_scale=True,
            disable=not show,
            desc=description,
        )
        self._n_rows, self._left = 0, max(0, n_rows - n_before)
        self._seconds = dict.fromkeys(STAGES, 0.0)
        self._began = self._shard_began = time.perf_counter()
        self._shard_seconds = dict(self._seconds)

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.close()

    def timed(self, stage: str, fn: Callable[[], T]) -> T:
        """fn(), with its seconds counted to a stage."""
        began = time.perf_counter()
        try:
            return fn()
        finally:
            self._seconds[stage] += time.perf_counter() - began

    @contextlib.contextmanager
    def timed_exit(self, stage: str, block: contextlib.AbstractContextManager[T]) -> Iterator[T]:
        """The block, with its entry and exit counted to a stage."""
        with contextlib.ExitStack() as stack:
            yield self.timed(stage, lambda: stack.enter_context(block))
            began = time.perf_counter()
        self._seconds[stage] += time.perf_counter() - began

    def timed_items(self, stage: str, items: Iterable[T]) -> Iterator[T]:
        iterator = iter(items)
        while True:
            try:
                item = self.timed(stage, lambda: next(iterator))
            except StopIteration:
                return
            yield item

    def advance(self, batch: Batch) -> None:
        self._seconds["forward"] += batch.forward_s
        rows = min(batch.n_rows, self._left)
        self._n_rows, self._left = self._n_rows + rows, self._left - rows
        self._bar.update(rows)

    def shard_done(self, shard: PackedShard) -> dict[str, Any]:
        """Figures of a committed shard for the log; the bar shows the stages' shares."""
        seconds = time.perf_counter() - self._shard_began
        spent = {stage: self._seconds[stage] - self._shard_seconds[stage] for stage in STAGES}
        self._shard_began, self._shard_seconds = time.perf_counter(), dict(self._seconds)
        total = time.perf_counter() - self._began
        shares = {stage: f"{self._seconds[stage] / total:.0%}" for stage in ("forward", "copy", "write")}
        self._bar.set_postfix(shares, refresh=False)
        return {
            "shard": shard.index,
            "rows": shard.contexts.n_rows,
            "seconds": round(seconds, 4),
            "tokens_per_s": round(shard.contexts.n_rows / seconds, 1),
            **{f"{stage}_s": round(spent_s, 4) for stage, spent_s in spent.items()},
            "eta_s": round(self._left * total / max(1, self._n_rows), 1),
            "cursor": shard.cursor,
        }
