"""Stops a run whose numbers are no longer finite, and says where that began."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Protocol

from torch import Tensor

from saelens_lite import distributed
from saelens_lite.errors import with_option

from ..rows.protocol import Rows


class Trained(Protocol):
    """What can break: optimiser steps taken, the peak learning rate, and all weights."""

    steps_done: int

    @property
    def lr(self) -> float: ...

    def weights(self) -> Iterable[Tensor]: ...


class Finite:
    """Remembers the last step at which numbers were finite.

    Every check raises FloatingPointError otherwise. The error names the first row since then that is not
    finite; if all are finite, it says that the training diverged.
    """

    def __init__(self, trainer: Trained, rows: Rows) -> None:
        self._trainer, self._rows, self._step = trainer, rows, trainer.steps_done

    def check(self, number: float, what: str) -> None:
        """Check one number; what: the fault in words, for the error."""
        if math.isfinite(number):
            return
        done, lr = self._trainer.steps_done, self._trainer.lr
        self._rows.check_steps(self._step, done, f"{what} at step {done}")
        raise with_option(
            FloatingPointError(
                f"{what} at step {done}, though all rows since step {self._step} are: the training diverged. "
                f"Lower lr (now {lr:g}) and choose another output, or overwrite=True"
            ),
            "overwrite",
        )

    def check_loss(self, loss: float) -> None:
        """Check the loss of the step that was just done."""
        self.check(loss, f"the reconstruction loss is {loss}")
        self._step = self._trainer.steps_done

    def check_weights(self) -> None:
        """Check all weights, of all shards."""
        finite = all(bool(weight.isfinite().all()) for weight in self._trainer.weights())
        broken = distributed.largest(int(not finite), "latents")
        self.check(math.nan if broken else 0.0, "a weight is not finite")
        self._step = self._trainer.steps_done
