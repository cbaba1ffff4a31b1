"""The next made in a thread while one is in use: what belongs to keys, or the items of an iterable.

An exception in the thread is raised where what it was making is asked for. Closing ends the thread.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from typing import Generic, NamedTuple, TypeVar

K = TypeVar("K")
T = TypeVar("T")

THREAD_NAME = "saelens_lite-ahead"
_END = object()


def _one_thread() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(max_workers=1, thread_name_prefix=THREAD_NAME)


@contextmanager
def ahead(items: Iterable[T], depth: int) -> Iterator[Iterator[T]]:
    """An iterator over `items` whose next `depth` items are made while the block works on one."""
    iterator = (item for item in items)  # a generator: after an exception it makes no more
    thread = _one_thread()
    waiting = deque(thread.submit(next, iterator, _END) for _ in range(depth))

    def consume() -> Iterator[T]:
        while True:
            waiting.append(thread.submit(next, iterator, _END))
            item = waiting.popleft().result()
            if item is _END:
                return
            yield item
            del item  # before the next, so that no more is in memory than is said

    try:
        yield consume()
    finally:
        thread.shutdown(cancel_futures=True)


class _Making(NamedTuple, Generic[K, T]):
    key: K
    stopped: threading.Event
    made: Future[T]


class Ahead(Generic[K, T]):
    """What belongs to one key at a time, such as a buffer of rows, and what belongs to the key after it.

    make: make(key, stopped) gives it; it may end early, with anything, once `stopped` is set
    following: following(key, made) gives the next key. For None nothing is made ahead, and the next is made
        when it is asked for, after the one before is gone
    """

    def __init__(
        self, make: Callable[[K, threading.Event], T], following: Callable[[K, T], K | None]
    ) -> None:
        self._make, self._following = make, following
        self._key: K | None = None
        self._made: T | None = None
        self._next: _Making[K, T] | None = None
        self._thread: ThreadPoolExecutor | None = None

    def __getitem__(self, key: K) -> T:
        if self._key != key:
            self._key = self._made = None  # before the next, so that no more is in memory than is said
            self._made = self._taken(key)
            self._key = key
            if (following := self._following(key, self._made)) is not None:
                self._thread = self._thread or _one_thread()
                stopped = threading.Event()
                self._next = _Making(following, stopped, self._thread.submit(self._make, following, stopped))
        assert self._made is not None
        return self._made

    def close(self) -> None:
        """Forget everything, and end the thread if there is one."""
        self._key = self._made = None
        self._forget_next()
        if self._thread is not None:
            self._thread.shutdown()
            self._thread = None

    def _taken(self, key: K) -> T:
        if self._next is None or self._next.key != key:
            self._forget_next()
            return self._make(key, threading.Event())
        wait([self._next.made])
        making, self._next = self._next, None
        return making.made.result()

    def _forget_next(self) -> None:
        if self._next is not None:
            self._next.stopped.set()
            wait([self._next.made])
            self._next = None
