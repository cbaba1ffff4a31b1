"""Which shards a process makes: alone all missing ones, under torchrun each time the next unclaimed one.

Every process posts the row counts of the shards that it packs. So all know at which shard max_tokens is met,
and none is made beyond it.
"""

from __future__ import annotations

import dataclasses
import itertools
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence

from saelens_lite.claims import Processes
from saelens_lite.store.folder import Folder
from saelens_lite.store.layout import finished_shards

from ..text.tokenized import PackedShard

_LOOK_S = 0.02
_BEHIND_THE_END = -1


class Claims:
    """The claims of a single process; finished: rows of each finished shard, by index."""

    rank = 0
    world_size = 1

    def __init__(self, finished: Mapping[int, int], max_tokens: int):
        self.finished = dict(finished)
        self._max_tokens = max_tokens
        self._rows = dict(finished)
        self._claimed = -1
        self._known_to, self._known_rows = 0, 0

    def __iter__(self) -> Iterator[int]:
        for index in self._missing():
            if self._rows_before(index) >= self._max_tokens:
                return
            self._claimed = index
            yield index

    def needed(self, packed: Iterable[PackedShard]) -> Iterator[PackedShard]:
        """The packed shards before which max_tokens is not met; their row counts are posted.

        The shard that meets it is cut after the context that does.
        """
        packed_to = -1
        for shard in packed:
            packed_to = shard.index
            self._post(shard.index, shard.contexts.n_rows)
            left = self._max_tokens - self._rows_before(shard.index)
            if left <= 0:
                return
            yield dataclasses.replace(shard, contexts=shard.contexts.up_to(left))
        if self._claimed > packed_to:  # claimed, and no document was left for it
            self._post(self._claimed, _BEHIND_THE_END)

    def totals(self) -> tuple[int, int]:
        """Shards and rows of the whole store once all are made, surplus rows of the last shard included."""
        n_shards = n_rows = 0
        while n_rows < self._max_tokens and (rows := self._rows_of(n_shards)) != _BEHIND_THE_END:
            n_shards, n_rows = n_shards + 1, n_rows + rows
        return n_shards, n_rows

    def wait_for_all(self) -> None:
        """Return when every process has made its shards."""

    def seal(self) -> None:
        """Tell the other processes that the store is complete, or wait until it is."""

    def stop(self) -> None:
        """Stop waiting for other processes."""

    def _missing(self) -> Iterator[int]:
        return (index for index in itertools.count() if index not in self.finished)

    def _rows_before(self, index: int) -> int:
        """Of all shards; the indices asked for ascend."""
        while self._known_to < index:
            self._known_rows += max(0, self._rows_of(self._known_to))
            self._known_to += 1
        return self._known_rows

    def _post(self, index: int, rows: int) -> None:
        self._rows[index] = rows

    def _rows_of(self, index: int) -> int:
        """A shard that nobody posted lies behind the dataset's end."""
        return self._rows.get(index, _BEHIND_THE_END)


class SharedClaims(Claims):
    def __init__(self, store: Folder, hook_points: Sequence[str], max_tokens: int):
        self._processes, self._stopped = Processes(f"harvest {store}"), False
        self.rank, self.world_size = self._processes.rank, self._processes.world_size
        # Looked up once, before anyone writes.
        finished = self._processes.agreed("finished", lambda: finished_shards(store, hook_points))
        super().__init__({int(index): rows for index, rows in finished.items()}, max_tokens)

    def __iter__(self) -> Iterator[int]:
        for index in self._processes.claimed(self._missing()):
            self._claimed = index
            yield index

    def wait_for_all(self) -> None:
        self._processes.wait_for_all()

    def seal(self) -> None:
        self._processes.agreed("sealed", lambda: True)

    def stop(self) -> None:
        self._stopped = True

    def _post(self, index: int, rows: int) -> None:
        self._processes.post(f"rows/{index}", rows)

    def _rows_of(self, index: int) -> int:
        if index in self.finished:
            return self.finished[index]
        while (rows := self._processes.posted(f"rows/{index}")) is None:
            if self._stopped:
                raise InterruptedError(f"stopped while another process packed shard {index}")
            self._processes.check_others()
            time.sleep(_LOOK_S)
        return rows
