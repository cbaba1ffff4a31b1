"""Work shared among the processes that torchrun started: each item is claimed by one."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from saelens_lite.distributed import PATIENCE, meeting, several_processes


class Processes:
    """The processes of one piece of work, and the key-value store that they share.

    A process alone has no store: it claims every item and waits for nobody.
    """

    def __init__(self, purpose: str) -> None:
        self._kv, self.rank, self.world_size = meeting(purpose) if several_processes() else (None, 0, 1)

    def agreed(self, name: str, value: Callable[[], Any]) -> Any:
        """value() of the first process, as JSON carries it; the others wait for it."""
        if self._kv is None:
            return value()
        if self.rank == 0:
            self._kv.set(name, json.dumps(value()))
        self._kv.wait([name], PATIENCE)
        return json.loads(self._kv.get(name))

    def claimed(self, items: Iterable[int]) -> Iterator[int]:
        """The items that this process takes, each time the next unclaimed one.

        items: the same in all processes; there may be infinitely many
        """
        if self._kv is None:
            yield from items
            return
        numbered = enumerate(items, 1)
        while True:
            place = self._kv.add("claimed", 1)
            item = next((item for number, item in numbered if number == place), None)
            if item is None:
                return
            yield item

    def post(self, name: str, number: int) -> None:
        self._kv.set(name, str(number))

    def posted(self, name: str) -> int | None:
        """None until a process posts it."""
        return int(self._kv.get(name)) if self._kv.check([name]) else None

    def wait_for_all(self) -> None:
        if self._kv is not None:
            self._kv.set(f"done/{self.rank}", "")
            self._kv.wait([f"done/{rank}" for rank in range(self.world_size)], PATIENCE)
