"""What a run trains: the seam between a run (folder, checkpoints, clocks) and what its steps change."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Protocol

from torch import Tensor, nn

from ..rows.protocol import Rows
from .checkpoints import Checkpoint


class Learner(Protocol):
    """What a run trains on its rows; sae_learner.py has that of sparse autoencoders, autoencoders/learner.py
    that of their relatives.

    A `Run` owns the output, its locks, checkpoints, metrics.jsonl and clocks, and asks its learner for
    everything else. It makes the learner once `Rows.begin` was called, from the checkpoint that it resumes
    from; the learner takes its state and progress from there. Rows come in the units of the store; what scale
    to train in is the learner's affair, which it keeps in `progress` if it must not change at a resume. All
    that the next step depends on is in `state` and `progress`, apart from the rows and random numbers, which
    are functions of (seed, step).

    Whether an output holds the same run is `identity`'s affair: fields of the configuration that are not free
    and `Rows.identity`, as a checkpoint has them, and of a finished run as `record` reads them from what
    `save` wrote. So `save` writes the facts that it is given, and `finished` gives back what `load` reads.

    steps_done: optimiser steps taken, those before an interruption included
    lr: the peak learning rate, for messages
    """

    NAME: ClassVar[str]
    """Of what is trained, in messages: "SAE"."""
    FILE: ClassVar[str]
    """The file in the output that says that something is saved there; no other learner writes it."""
    LEFT_OPEN: ClassVar[Mapping[str, Any]]
    """What fields stand for that are None in checkpoints of older releases."""

    steps_done: int
    lr: float

    def __init__(
        self,
        rows: Rows,
        config: Any,
        n_steps: int,
        checkpoint: Checkpoint | None = None,
        model: nn.Module | None = None,
    ) -> None:
        """At step 0, or at the checkpoint; all processes call it together and then hold the same bits.

        model: the language model that the rows are of, for scores; None without one
        """

    def begin(self) -> None:
        """The output is this run's own, and its first step comes: remove what an earlier run left."""

    def update(self, batch: Tensor) -> Any:
        """One optimiser step on a batch of `Rows.batch`; no wait for the device.

        returns: what `numbers` takes
        """

    def numbers(self, stats: Any, tokens: int) -> dict[str, float | None]:
        """Of the latest step for metrics.jsonl; tokens: rows learned from.

        raises: FloatingPointError when the loss is not finite
        """

    def score(self) -> dict[str, float | None]:
        """Scores on held-out rows at this step, computed once a step; None for what does not exist.

        raises: FloatingPointError when they are not finite
        """

    def check(self) -> None:
        """raises: FloatingPointError when a weight is not finite"""

    def state(self) -> Mapping[str, Tensor | int]:
        """Tensors and whole numbers that the next steps depend on, steps_done among them; the whole in the
        first process."""

    def progress(self) -> dict[str, Any]:
        """What a resume needs beside `state`, as JSON; the names rows, seconds and tokens are the run's."""

    def save(self, output: Path, facts: Mapping[str, Any]) -> Any:
        """Write what was trained, in the units of the store, with facts of the run in its metadata, and
        `score`; the first process alone writes.

        raises: FloatingPointError, before anything is written, if it is not finite
        returns: what was saved, for the caller of the training
        """

    @staticmethod
    def load(output: Path, config: Any) -> Any:
        """What `save` wrote, where a finished run of this configuration gives it to its caller."""

    @staticmethod
    def record(trained: Any) -> dict[str, Any] | None:
        """The facts that `save` got, with hook_point and `Rows.record`; None for what no run saved."""

    @staticmethod
    def unused(config: Any) -> Mapping[str, str]:
        """Fields that change nothing in a run of this configuration: they may differ at a resume."""
