"""The training loop: runs that share their rows go side by side, and every batch is read once."""

from __future__ import annotations

import logging
import signal
import threading
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from types import FrameType
from typing import Any

from saelens_lite import distributed
from saelens_lite.kernels import self_check
from saelens_lite.store.reader import ActivationStore

from ..config import TrainConfig
from ..rows.store_contexts import StoreContexts
from ..rows.store_rows import StoreRows
from .process import device_of, writes
from .run import Run

log = logging.getLogger(__name__)


def rows_for(stores: Sequence[ActivationStore], config: TrainConfig) -> StoreRows:
    """What a run of this configuration reads of the stores: rows, or contexts with `end_to_end`."""
    if config.end_to_end is not None:
        return StoreContexts(stores, config)
    return StoreRows(stores, config, device_of(config))


def train_runs(runs: Sequence[Run]) -> list[Any]:
    """Train runs that share their rows to their ends in one pass over them.

    Runs that stand at an earlier step catch up first; shorter ones end before others. A run whose numbers
    break ends alone.
    returns: for each run what it trained, or the FloatingPointError by which it broke
    raises: KeyboardInterrupt / SystemExit after Ctrl-C / SIGTERM, once all were saved; anything else that
        fails in a run
    """
    rows = runs[0].rows
    outcomes: dict[Run, Any] = {}
    with closing(rows), ExitStack() as every, stop_signals() as stopped:
        opened = {run: every.enter_context(ExitStack()) for run in runs}

        @contextmanager
        def ending_alone(run: Run) -> Iterator[None]:
            try:
                yield
            except FloatingPointError as error:
                if len(runs) > 1 and writes():
                    log.error("%s ends here: %s", run.output, error)
                outcomes[run] = error
                opened[run].__exit__(FloatingPointError, error, error.__traceback__)

        for run in runs:
            opened[run].enter_context(run.open())
        first, bar = min(run.steps_done for run in runs), every.enter_context(_bar(runs))
        for step in range(first, max(run.n_steps for run in runs)):
            if due := [run for run in runs if run.steps_done == step and run not in outcomes]:
                acts = rows.batch(step)
            for run in due:
                with ending_alone(run):
                    run.after_step(run.step(acts))
                    if run.steps_done == run.n_steps:
                        outcomes[run] = run.finish()
                        opened[run].close()
            bar.update()
            if stopped.anywhere() is not None or len(outcomes) == len(runs):
                break
        for run in runs:
            if run not in outcomes:
                with ending_alone(run):
                    run.stop()
    if (number := stopped.anywhere()) is not None:
        raise KeyboardInterrupt if number == signal.SIGINT else SystemExit(128 + number)
    return [outcomes[run] for run in runs]


def _bar(runs: Sequence[Run]) -> Any:
    """A progress bar of the steps of the longest run, from where the first of them stands."""
    from tqdm import tqdm

    first, n_steps = min(run.steps_done for run in runs), max(run.n_steps for run in runs)
    what = f"train {runs[0].config.kind}" if len(runs) == 1 else f"train {len(runs)} SAEs"
    hidden = not (runs[0].config.progress and writes())
    return tqdm(desc=what, unit="step", initial=first, total=n_steps, disable=hidden)


_KERNELS_FAILED = 1 << 16
"""Beyond the numbers of signals."""


class Stopped:
    """Which signal came, if any."""

    signal: int | None = None

    def anywhere(self) -> int | None:
        """The signal that this or another process got; all processes ask together and hear the same.

        With it they hear whether a Triton kernel failed in one of them: then all leave Triton, so that no two
        compute by different kernels. A signal of that moment is heard at the next question.
        """
        failed = self_check.failure is not None
        heard = distributed.largest(_KERNELS_FAILED * failed + (self.signal or 0))
        if heard >= _KERNELS_FAILED and not failed:
            self_check.give_up("a Triton kernel failed in another process of this run")
        return heard % _KERNELS_FAILED or None


@contextmanager
def stop_signals() -> Iterator[Stopped]:
    """Note SIGTERM and Ctrl-C, so that the SAE is saved after the step; a second one ends the process."""
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
