"""One training run: what follows each step (numbers, scores, checkpoints), and the end, all saved."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from saelens_lite import distributed
from saelens_lite.atomic import write_file
from saelens_lite.config import to_record
from saelens_lite.kernels import dispatch as kernels
from saelens_lite.run_log import SilentTracker, Tracker
from saelens_lite.store.folder import LocalFolder

from ..latent_shards import communication
from ..optimise.precision import matmul_precision
from ..rows.protocol import Rows, n_steps
from ..run_config import RunConfig
from .checkpoints import Checkpoint, circumstances, remove_checkpoints, save_checkpoint
from .identity import identity, unfinished
from .learner import Learner
from .output import check_ours, remove_leftovers, remove_others, seen
from .process import device_of, writes
from .sae_learner import SAELearner

log = logging.getLogger(__name__)


class Run:
    """A training run into config.output, new or resumed.

    `open` it, then call `step` and `after_step` in turn, and `finish` after the last or `stop` before it.
    model: the language model that the rows are of; scores then include what the reconstruction costs it
    learns: what is trained
    raises: ValueError if the output holds something else that was trained or another run; CheckpointError if
        all its checkpoints are damaged; FloatingPointError for a row that is not finite among those that it
        starts from or is scored on
    """

    def __init__(
        self,
        rows: Rows,
        config: RunConfig,
        model: nn.Module | None = None,
        learns: type[Learner] = SAELearner,
    ) -> None:
        self.rows, self.config, self.output = rows, config, Path(config.output)
        self.device, self.comm = device_of(config), communication()
        check_ours(self.output)
        self._found = seen(self.output)
        checkpoint = unfinished(self.output, rows, config, learns)
        self._check_alike(checkpoint)
        self.n_steps = n_steps(config, rows.steps_per_epoch)
        self.eval_every_steps = config.eval_every_steps or max(1, self.n_steps // 10)
        self.checkpoint_every_steps = config.checkpoint_every_steps or max(1, self.n_steps // 10)

        rows.begin(checkpoint.progress.get("rows") if checkpoint else None)
        rows.check_held_out()
        self.learner = learns(rows, config, self.n_steps, checkpoint, model)
        self.saved_step = self.steps_done
        if writes() and self.device.type == "cuda" and config.matmul_precision is None:
            log.info(
                "float32 products are computed with precision %r (tf32 is high), the default on CUDA; "
                "matmul_precision chooses another",
                matmul_precision(config, self.device),
            )
        self._tracker: Tracker = SilentTracker()
        self._position = checkpoint.progress if checkpoint else None
        self.tokens = self.steps_done * config.batch_size_rows
        """Rows learned from, including those before an interruption."""
        if checkpoint is not None:  # of an older release it does not say
            self.tokens = checkpoint.progress.get("tokens", self.tokens)
        self._seconds_before = checkpoint.progress["seconds"] if checkpoint else 0.0
        self._started = time.perf_counter()

    @property
    def steps_done(self) -> int:
        """Optimiser steps taken, including those before an interruption."""
        return self.learner.steps_done

    @property
    def seconds(self) -> float:
        """Time trained so far, including that before an interruption."""
        return self._seconds_before + time.perf_counter() - self._started

    @contextmanager
    def open(self) -> Iterator[None]:
        """Own the output, also against other processes, and write numbers to metrics.jsonl there.

        If something fails within, what is trained is saved as it stands, unless its numbers broke.
        """
        self.output.mkdir(parents=True, exist_ok=True)
        with _alone(self.output, self._found), self._opened_tracker() as self._tracker:
            if writes():
                remove_leftovers(self.output)
            if self._position is None and writes():
                remove_checkpoints(self.output)
                if self.config.overwrite:
                    remove_others(self.output, self.learner.FILE)
                self.learner.begin()
            self._started = time.perf_counter()
            try:
                yield
            except FloatingPointError:
                raise
            except Exception:
                self._save_what_there_is()
                raise

    def step(self, batch: Tensor) -> Any:
        """One optimiser step on a batch of `rows`: float32[n d_model] in the store's units, or contexts."""
        self.tokens += len(batch) * self.comm.n_parts
        return self.learner.update(batch)

    def after_step(self, stats: Any) -> None:
        """Write what is due: lines of metrics.jsonl and a checkpoint; after the last step `finish` does."""
        done, last = self.steps_done, self.steps_done == self.n_steps
        if done % self.config.log_every_steps == 0 or last:
            self._tracker.log(done, self.training_metrics(stats))
        if done % self.eval_every_steps == 0 and not last:
            self._tracker.log(done, self.learner.score())
        if done % self.checkpoint_every_steps == 0 and not last:
            self.checkpoint()

    def stop(self) -> None:
        """Leave before the end; the same command resumes here."""
        if self.saved_step != self.steps_done:
            self.checkpoint()
        if writes():
            log.warning(
                "stopped at step %d of %d; run the same command again to resume",
                self.steps_done,
                self.n_steps,
            )
            log.warning("the %s as it stands is in %s", self.learner.NAME, self.output)

    def finish(self) -> Any:
        """Save what was trained and remove the checkpoints."""
        trained = self.save()
        self._tracker.log(self.steps_done, self.learner.score())
        if writes():
            remove_checkpoints(self.output)
        return trained

    def training_metrics(self, stats: Any) -> dict[str, float | int | str | None]:
        """A training line of metrics.jsonl. raises: FloatingPointError when the loss is not finite"""
        return {
            "tokens": self.tokens,
            **self.learner.numbers(stats, self.tokens),
            "tokens_per_s": self.tokens / self.seconds,
            "kernels": kernels.choice(torch.empty(0, device=self.device)),
            **self._left_out(),
        }

    def checkpoint(self) -> None:
        """Write the state of training and what is trained; if that is not finite, raise before either."""
        self.learner.check()
        position, state = self._tracker.position(), self.learner.state()
        if writes():
            save_checkpoint(
                self.output,
                state,
                run=identity(self.rows, self.config),
                progress={
                    **self.learner.progress(),
                    "rows": self.rows.position(self.steps_done),
                    "seconds": self.seconds,
                    "tokens": self.tokens,
                    **position,
                },
                made_by=circumstances(self.device),
                keep=self.config.keep_checkpoints,
            )
        self.saved_step = self.steps_done
        self.save()

    def save(self) -> Any:
        """What is trained, in the units of the store; the first process writes it to `output`.

        raises: FloatingPointError, before anything is written, if it is not finite
        """
        facts = {
            "train": to_record(self.config, published=True),
            "steps": self.steps_done,
            "tokens": self.tokens,
            **self._left_out(),
        }
        trained = self.learner.save(self.output, facts)
        if writes():
            settings = json.dumps(to_record(self.config), indent=1)
            write_file(self.output / "train_config.json", settings, shared=False)
        return trained

    def _opened_tracker(self) -> Tracker:
        if not writes():
            return SilentTracker()
        return Tracker(
            self.output, to_record(self.config, published=True), self.config.wandb_project, self._position
        )

    def _check_alike(self, checkpoint: Checkpoint | None) -> None:
        """raises: ValueError if the processes of this run found different checkpoints"""
        done = checkpoint.step if checkpoint else 0
        if distributed.largest(done) != -distributed.largest(-done):
            raise ValueError(
                f"expected all processes to find one checkpoint in {self.output}, but this one found step "
                f"{done} and another a different step: give all machines the same folder"
            )

    def _left_out(self) -> dict[str, float]:
        """The share of training rows left out, for logs and metadata, if max_norm_ratio asks for it."""
        return {} if self.rows.left_out_share is None else {"left_out_share": self.rows.left_out_share}

    def _save_what_there_is(self) -> None:
        if not self.steps_done or not writes():
            return
        where = f"failed after step {self.steps_done} of {self.n_steps}"
        if self.comm.n_shards > 1:  # the other shards are with processes that cannot be asked any more
            log.error("%s; saved is step %d", where, self.saved_step)
            return
        self.save()
        log.error("%s; the %s as it stands is in %s", where, self.learner.NAME, self.output)
        if self.saved_step:
            log.error("run the same command again to resume at step %d", self.saved_step)


@contextmanager
def _alone(output: Path, found: object) -> Iterator[None]:
    """Keep other trainings out of `output` while this one runs. found: what was `seen` there before"""
    with LocalFolder(output).locked() if writes() else nullcontext(True) as ours:
        if distributed.largest(int(not ours)):
            raise ValueError(
                f"another process is training into {output}: wait for it, or choose another output"
            )
        if distributed.largest(int(writes() and seen(output) != found)):
            raise ValueError(f"another process trained into {output} meanwhile: run the same command again")
        yield
