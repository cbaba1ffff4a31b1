"""TODO clause of saelens_lite/claims.py."""

from __future__ import annotations

import datetime
import json
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from saelens_lite.distributed import meeting, several_processes

_PATIENCE = datetime.timedelta(days=30)


"""How long one process waits for another; torchrun ends them all as soon as one fails."""


class Processes:
    """The processes that torchrun started for one index; alone, everything is at hand."""

    def __init__(self, purpose: str) -> None:
        self._kv, self.rank, self._n = meeting(purpose, _PATIENCE) if several_processes() else (None, 0, 1)

    def agreed(self, name: str, value: Callable[[], Any]) -> Any:
        """What value() is in the first process, as JSON carries it; the others wait for it."""
        if self._kv is None:
            return value()
        if self.rank == 0:
            self._kv.set(name, json.dumps(value()))
        self._kv.wait([name], _PATIENCE)
        return json.loads(self._kv.get(name))

    def claimed(self, items: Sequence[int]) -> Iterator[int]:
        """Those of the items, the same in all processes, that this one takes: each time the next that nobody
        has."""
        if self._kv is None:
            yield from items
            return
        while (place := self._kv.add("claimed", 1) - 1) < len(items):
            yield items[place]

    def wait_for_all(self) -> None:
        """Return when every process has come here."""
        if self._kv is not None:
            self._kv.set(f"done/{self.rank}", "")
            self._kv.wait([f"done/{rank}" for rank in range(self._n)], _PATIENCE)
