"""Being stopped from outside: signals are noted, so that a step ends and everything is saved."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from saelens_lite import distributed


class Stopped:
    """Which signal came, if any."""

    signal: int | None = None

    def anywhere(self) -> int | None:
        """The signal that this or another process got; all that ask together are told the same."""
        return distributed.largest(self.signal or 0) or None


@contextmanager
def stop_signals() -> Iterator[Stopped]:
    """Note SIGTERM and Ctrl-C instead of dying, so that the step ends and the SAE is saved; a second one
    kills."""
    stopped = Stopped()
    if threading.current_thread() is not threading.main_thread():
        yield stopped
        return

    def note(number: int, _: FrameType | None) -> None:
        if stopped.signal is not None:
            raise KeyboardInterrupt
        stopped.signal = number

    before = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stopped
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
