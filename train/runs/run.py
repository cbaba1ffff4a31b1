"""One training run: what follows each step (numbers, scores, checkpoints), and the end, the SAE saved."""

from __future__ import annotations

import dataclasses
import json
import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path

from torch import Tensor, nn

from saelens_lite import distributed
from saelens_lite.atomic import write_file
from saelens_lite.config import to_record
from saelens_lite.kernels import dispatch as kernels
from saelens_lite.run_log import SilentTracker, Tracker
from saelens_lite.sae.autoencoder import SparseAutoencoder
from saelens_lite.store.folder import LocalFolder

from ..config import TrainConfig
from ..kinds.choice import kind_for
from ..kinds.kind import Kind, StepStats
from ..latent_shards import communication
from ..optimise.precision import matmul_precision
from ..optimise.schedules import Schedule
from ..optimise.trainer import Trainer
from ..rows.protocol import Rows, n_steps
from .baseline import baseline_fvu, baseline_of
from .checkpoints import Checkpoint, circumstances, remove_checkpoints, save_checkpoint
from .finite import Finite
from .identity import identity, unfinished
from .output import check_ours, remove_leftovers, remove_run, seen
from .process import device_of, writes
from .sae import sae_config, saved_sae, starting_sae
from .scores import HeldOutScores
from .silent_start import ROWS, warn_of_silence

log = logging.getLogger(__name__)


class Run:
    """A training run into config.output, new or resumed.

    `open` it, then call `step` and `after_step` in turn, and `finish` after the last or `stop` before it.
    model: the language model that the rows are of; scores then include what the reconstruction costs it
    raises: ValueError if the output holds an SAE or another run; CheckpointError if all its
        checkpoints are damaged; FloatingPointError for a row that is not finite among those that it starts
        from or is scored on
    """

    def __init__(self, rows: Rows, config: TrainConfig, model: nn.Module | None = None) -> None:
        self.rows, self.config, self.output = rows, config, Path(config.output)
        self.device, self.comm = device_of(config), communication()
        check_ours(self.output)
        self._found = seen(self.output)
        checkpoint = unfinished(self.output, rows, config)
        self.n_steps = n_steps(config, rows.steps_per_epoch)
        self.eval_every_steps = config.eval_every_steps or max(1, self.n_steps // 10)
        self.checkpoint_every_steps = config.checkpoint_every_steps or max(1, self.n_steps // 10)

        rows.begin(checkpoint.progress.get("rows") if checkpoint else None)
        rows.check_held_out()
        if checkpoint is None:
            sae = starting_sae(config, rows, self.comm)
            if writes() and config.init_from is not None:  # other starts have b_dec at the rows' median
                warn_of_silence(sae, rows.sample(ROWS) * rows.scale)
        else:
            whole = sae_config(config, rows, len(checkpoint.state["sae.W_dec"]))
            sae = SparseAutoencoder(self.comm.shard_config(whole))
        scale = checkpoint.progress["scale"] if checkpoint else rows.scale
        kind = kind_for(config, sae.to(self.device), model, rows, scale, self.comm)
        schedule = schedule_of(checkpoint, config, kind, self.n_steps)
        self.trainer = Trainer(kind.sae, config, self.n_steps, kind, schedule, scale)
        if checkpoint is not None:
            self.trainer.load_state(checkpoint.state)
        self.saved_step = self.trainer.steps_done
        self.finite = Finite(self.trainer, rows)
        self.scores = HeldOutScores(self.trainer, rows, self.finite, model)
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
        self._begin_together()

    @property
    def steps_done(self) -> int:
        """Optimiser steps taken, including those before an interruption."""
        return self.trainer.steps_done

    @property
    def seconds(self) -> float:
        """Time trained so far, including that before an interruption."""
        return self._seconds_before + time.perf_counter() - self._started

    @contextmanager
    def open(self) -> Iterator[None]:
        """Own the output, also against other processes, and write numbers to metrics.jsonl there.

        If something fails within, the SAE as it stands is saved, unless its numbers broke.
        """
        self.output.mkdir(parents=True, exist_ok=True)
        with _alone(self.output, self._found), self._opened_tracker() as self._tracker:
            if writes():
                remove_leftovers(self.output)
            if self._position is None and writes():
                remove_checkpoints(self.output)
                if self.config.overwrite and not self.config.baseline:
                    remove_run(Path(baseline_of(self.config).output))
            self._started = time.perf_counter()
            try:
                yield
            except FloatingPointError:
                raise
            except Exception:
                self._save_what_there_is()
                raise

    def step(self, batch: Tensor) -> StepStats:
        """One optimiser step on a batch of `rows`: float32[n d_model] in the store's units, or contexts."""
        self.tokens += len(batch) * self.comm.n_parts
        return self.trainer.update(self.trainer.kind.scaled(batch, self.trainer.scale))

    def after_step(self, stats: StepStats) -> None:
        """Write what is due: lines of metrics.jsonl and a checkpoint; after the last step `finish` does."""
        done, last = self.steps_done, self.steps_done == self.n_steps
        if done % self.config.log_every_steps == 0 or last:
            self._tracker.log(done, self.training_metrics(stats))
        if done % self.eval_every_steps == 0 and not last:
            self._tracker.log(done, self.held_out_metrics())
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
            log.warning("the SAE as it stands is in %s", self.output)

    def finish(self) -> SparseAutoencoder:
        """Save the trained SAE and remove the checkpoints."""
        sae = self.save()
        self._tracker.log(self.steps_done, self.scores.metrics)
        if writes():
            remove_checkpoints(self.output)
        return sae

    def training_metrics(self, stats: StepStats) -> dict[str, float | int | str | None]:
        """A training line of metrics.jsonl. raises: FloatingPointError when the loss is not finite"""
        loss, trainer = float(stats.reconstruction), self.trainer
        self.finite.check_loss(loss)
        tokens, window = self.tokens, trainer.dead_tracker.dead_after_tokens
        n_dead = distributed.total(len(trainer.dead_tracker.dead()), "latents")
        dead = n_dead / trainer.kind.d_sae if tokens >= window else None
        return {
            "tokens": tokens,
            "reconstruction": loss,
            trainer.kind.sparsity_name: float(stats.sparsity),
            "l0": float(stats.l0),
            **trainer.kind.metrics(),
            f"dead@{window}": dead,
            "lr": trainer.adam.param_groups[0]["lr"],
            "tokens_per_s": tokens / self.seconds,
            "kernels": kernels.choice(trainer.sae.W_dec),
            **self._left_out(),
        }

    def held_out_metrics(self) -> dict[str, float | None]:
        """The scores on held-out rows, with the fvu of the run's baseline, if it has one."""
        metrics = self.scores.update()
        if self.config.baseline:
            metrics["baseline_fvu"] = baseline_fvu(self.config, self.steps_done)
        return metrics

    def checkpoint(self) -> None:
        """Write the state of training and the SAE as it stands; if it is not finite, raise before either."""
        self.finite.check_weights()
        position, state = self._tracker.position(), self.trainer.whole_state()
        if writes():
            save_checkpoint(
                self.output,
                state,
                run=identity(self.rows, self.config),
                progress={
                    "scale": self.trainer.scale,
                    "schedule": dataclasses.asdict(self.trainer.schedule),
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

    def save(self) -> SparseAutoencoder:
        """The SAE in the units of the store; the first process writes it to `output`.

        raises: FloatingPointError, before anything is written, if it is not finite
        """
        self.finite.check_weights()
        kind, rows = self.trainer.kind, self.rows
        if kind.calibrates:
            self.scores.outdated()
            held_out = rows.held_out()
            acts = held_out if len(held_out) else rows.seen(self.steps_done)
            kind.calibrate((acts * self.trainer.scale).to(self.device))
        sae = saved_sae(self.trainer, rows)
        facts = {
            **sae.config.metadata["saelens_lite"],
            "train": to_record(self.config, published=True),
            "lr": self.trainer.schedule.lr,
            "steps": self.steps_done,
            "tokens": self.tokens,
            **self._left_out(),
            **self.held_out_metrics(),
        }
        metadata = {**sae.config.metadata, "saelens_lite": facts}
        if rows.context_length is not None:
            metadata["context_size"] = rows.context_length
        sae.config = dataclasses.replace(sae.config, metadata=metadata)
        if writes():
            density = self.scores.density
            sae.save(self.output, None if density is None else (density + 1e-10).log10())
            settings = json.dumps(to_record(self.config), indent=1)
            write_file(self.output / "train_config.json", settings, shared=False)
        return sae

    def _opened_tracker(self) -> Tracker:
        if not writes():
            return SilentTracker()
        return Tracker(
            self.output, to_record(self.config, published=True), self.config.wandb_project, self._position
        )

    def _begin_together(self) -> None:
        """Give all processes the bits of the first, once each has looked for a checkpoint.

        raises: ValueError if they found different ones
        """
        done = self.steps_done
        if distributed.largest(done) != -distributed.largest(-done):
            raise ValueError(
                f"expected all processes to find one checkpoint in {self.output}, but this one found step "
                f"{done} and another a different step: give all machines the same folder"
            )
        self.trainer.begin_alike()

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
        log.error("%s; the SAE as it stands is in %s", where, self.output)
        if self.saved_step:
            log.error("run the same command again to resume at step %d", self.saved_step)


def schedule_of(checkpoint: Checkpoint | None, config: TrainConfig, kind: Kind, n_steps: int) -> Schedule:
    """That of a run that begins, or the one that it began with.

    A checkpoint of release 0.1, which knew no refit phase, does not say.
    """
    if checkpoint is None:
        return Schedule.of(config, kind, n_steps)
    if "schedule" in checkpoint.progress:
        return Schedule(**checkpoint.progress["schedule"])
    return Schedule.of(dataclasses.replace(config, refit_fraction=0.0), kind, n_steps)


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
