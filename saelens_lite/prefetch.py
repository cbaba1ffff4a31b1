"""Making the next of a sequence of large things, such as buffers of rows, in a thread while one is in use."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Generic, TypeVar

K = TypeVar("K")
T = TypeVar("T")


class Ahead(Generic[K, T]):
    """What belongs to one key at a time, and what belongs to the key after it made in a thread meanwhile.

    make: make(key, stopped) gives what belongs to a key; it may end early, with anything, once `stopped` is
        set
    following: the key after a key and what belongs to it. Where it says None nothing is made ahead, and what
        is asked for next is made when the one before is gone
    An exception of `make` in the thread is raised where what it was making is asked for.
    """

    def __init__(
        self, make: Callable[[K, threading.Event], T], following: Callable[[K, T], K | None]
    ) -> None:
        self._make, self._following = make, following
        self._key: K | None = None
        self._made: T | None = None
        self._next: _Making[K, T] | None = None

    def __getitem__(self, key: K) -> T:
        if self._key != key:
            self._key = self._made = None  # before the next, so that no more is in memory than is said
            self._made = self._taken(key)
            self._key = key
            if (following := self._following(key, self._made)) is not None:
                self._next = _Making(self._make, following)
        assert self._made is not None
        return self._made

    def close(self) -> None:
        """Forget all, and end the thread if there is one."""
        self._key = self._made = None
        self._forget_next()

    def _taken(self, key: K) -> T:
        making = self._next
        if making is None or making.key != key:
            self._forget_next()
            return self._make(key, threading.Event())
        making.wait()
        self._next = None
        return making.result()

    def _forget_next(self) -> None:
        if self._next is not None:
            self._next.stop()
            self._next = None


class _Making(Generic[K, T]):
    """A thread that makes what belongs to one key."""

    def __init__(self, make: Callable[[K, threading.Event], T], key: K) -> None:
        self.key, self._make, self._stopped = key, make, threading.Event()
        self._made: T | None = None
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="saelens_lite-rows-ahead", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        try:
            self._made = self._make(self.key, self._stopped)
        except BaseException as error:  # handed over, not handled: it is raised where the result is asked for
            self._error = error

    def wait(self) -> None:
        self._thread.join()

    def result(self) -> T:
        if self._error is not None:
            raise self._error
        assert self._made is not None
        return self._made

    def stop(self) -> None:
        self._stopped.set()
        self._thread.join()
        self._made = None
