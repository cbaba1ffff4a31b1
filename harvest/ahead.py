"""Running an iterator ahead of its consumer, in a background thread."""

from __future__ import annotations

import contextlib
import queue
import threading
from collections.abc import Iterable, Iterator
from typing import TypeVar

T = TypeVar("T")

_LOOK_S = 0.1


@contextlib.contextmanager
def ahead(items: Iterable[T], depth: int) -> Iterator[Iterator[T]]:
    """An iterator over `items` whose next ones, at most `depth`, are made in a thread while the block works.

    An exception of `items` is raised where its item would have come. The thread has ended when the block
    ends.
    """
    ready: queue.Queue[tuple[str, object]] = queue.Queue(maxsize=depth)
    stopped = threading.Event()

    def put(entry: tuple[str, object]) -> bool:
        while not stopped.is_set():
            with contextlib.suppress(queue.Full):
                ready.put(entry, timeout=_LOOK_S)
                return True
        return False

    def produce() -> None:
        try:
            for item in items:
                if not put(("item", item)):
                    return
            put(("end", None))
        except BaseException as error:  # handed over, not handled: it is raised in the consumer
            put(("error", error))

    def consume() -> Iterator[T]:
        while True:
            kind, value = ready.get()
            if kind == "end":
                return
            if kind == "error":
                raise value
            yield value

    thread = threading.Thread(target=produce, name="saelens_lite-ahead", daemon=True)
    thread.start()
    try:
        yield consume()
    finally:
        stopped.set()
        with contextlib.suppress(queue.Empty):
            ready.get_nowait()  # room for the item that the thread may be holding, so that it looks up at once
        thread.join()
