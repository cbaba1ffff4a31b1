"""Work shared among the processes that torchrun started: each item is claimed by one."""

from __future__ import annotations

import atexit
import datetime
import json
import threading
import time
import weakref
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

from saelens_lite.distributed import meeting, several_processes
from saelens_lite.errors import SaelensLiteError

_BEAT_S, _SILENCE_S = 5.0, 300.0
"""How often a process says that it lives, and after what silence it counts as ended."""


class Processes:
    """The processes of one piece of work, and the key-value store that they share.

    A process alone has no store: it claims every item and waits for nobody.
    """

    def __init__(self, purpose: str) -> None:
        self._kv, self.rank, self.world_size = meeting(purpose) if several_processes() else (None, 0, 1)
        self._heard: dict[int, tuple[int, float]] = {}
        self._ended, self._looked = threading.Event(), time.monotonic()
        if self._kv is not None:
            beat = threading.Thread(target=_beat, args=(self._kv, self.rank, self._ended), daemon=True)
            beat.start()
            atexit.register(_end, self._ended, beat)
            weakref.finalize(self, self._ended.set)

    def agreed(self, name: str, value: Callable[[], Any]) -> Any:
        """value() of the first process, as JSON carries it; the others wait for it."""
        if self._kv is None:
            return value()
        if self.rank == 0:
            self._kv.set(name, json.dumps(value()))
        self._wait([name])
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
            self._wait([f"done/{rank}" for rank in range(self.world_size)])

    def check_others(self) -> None:
        """raises: SaelensLiteError once nothing was heard of another process for minutes

        torchrun ends all processes when one fails; other launchers may not, and the rest would wait for ever.
        """
        now = time.monotonic()
        if self._kv is None or now - self._looked < _BEAT_S:
            return
        self._looked = now
        for other in range(self.world_size):
            count = self._kv.add(f"alive/{other}", 0)
            before, since = self._heard.get(other, (-1, now))
            self._heard[other] = (count, since if count == before else now)
            if now - self._heard[other][1] > _SILENCE_S:
                raise SaelensLiteError(
                    f"process {other} of {self.world_size} ended or hangs, nothing was heard of it for "
                    f"{_SILENCE_S:.0f} s: what is finished is kept; start all processes again"
                )

    def _wait(self, names: Sequence[str]) -> None:
        while True:
            try:
                self._kv.wait([*names], datetime.timedelta(seconds=_BEAT_S))
                return
            except RuntimeError:  # nothing came yet, or the process that keeps the store ended
                time.sleep(0.05)
                try:
                    self.check_others()
                except RuntimeError as error:
                    raise SaelensLiteError(
                        f"the first process of {self.world_size} ended: what is finished is kept; start all "
                        "processes again"
                    ) from error


def _beat(kv: Any, rank: int, ended: threading.Event) -> None:
    while not ended.is_set():
        try:
            kv.add(f"alive/{rank}", 1)
        except RuntimeError:  # the process that keeps the store ended
            return
        ended.wait(_BEAT_S)


def _end(ended: threading.Event, beat: threading.Thread) -> None:
    ended.set()
    beat.join(1.0)
