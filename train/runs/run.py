"""One training run: an SAE, its rows and its folder. What a step is followed by: numbers, checkpoints, the
SAE saved."""

from __future__ import annotations

import dataclasses
import json
import logging
import math
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import NoReturn

import torch
from torch import Tensor, nn

import saelens_lite
from saelens_lite import distributed
from saelens_lite.config import to_mapping
from saelens_lite.run_log import SilentTracker, Tracker
from saelens_lite.sae.autoencoder import SparseAutoencoder
from saelens_lite.sae.config import SAEConfig
from saelens_lite.sae.metrics import FiringSums
from saelens_lite.store.folder import LocalFolder

from ..config import TrainConfig
from ..kinds.choice import kind_class, kind_for
from ..kinds.kind import StepStats
from ..latent_shards import communication
from ..optimise.fold import fold_decoder_norms_, fold_scale
from ..optimise.initial import initial_sae, sae_to_finetune
from ..optimise.trainer import Trainer
from ..rows.protocol import Rows, n_steps
from .baseline import baseline_fvu, remove_baseline
from .checkpoints import circumstances, remove_checkpoints, save_checkpoint
from .identity import _checkpoint, _identity
from .process import device_of, writes

log = logging.getLogger(__name__)

_INIT_ROWS = 32_768


class Run:
    """A training run into config.output, begun or gone on with; `open` it, then `step` and `after_step` until
    it is done.

    model: the language model that the rows are of; evaluations then tell what the reconstruction costs it
    raises: ValueError if the output holds a finished run or another one; CheckpointError if all its
        checkpoints are damaged; FloatingPointError for a row that is not finite among those that it starts
        from or is scored on
    """

    def __init__(self, rows: Rows, config: TrainConfig, model: nn.Module | None = None) -> None:
        self.rows, self.config, self.output = rows, config, Path(config.output)
        self._model, self._ce_clean = model, math.nan
        self.device, self.comm = device_of(config), communication()
        checkpoint = _checkpoint(self.output, rows, config)
        self.n_steps = n_steps(config, rows.steps_per_epoch)
        self.eval_every_steps = config.eval_every_steps or max(1, self.n_steps // 10)
        self.checkpoint_every_steps = config.checkpoint_every_steps or max(1, self.n_steps // 10)

        rows.begin(checkpoint.progress.get("rows") if checkpoint else None)
        rows.check_held_out()
        if checkpoint is None:
            sae = self._initial_sae()
        else:
            whole = self._sae_config(len(checkpoint.state["sae.W_dec"]))
            sae = SparseAutoencoder(self.comm.shard_config(whole))
        kind = kind_for(config, sae.to(self.device), model, rows, self.comm)
        self.trainer = Trainer(kind.sae, config, self.n_steps, kind)
        if checkpoint is not None:
            self.trainer.load_state(checkpoint.state)
        self.saved_step = self.finite_step = self.trainer.steps_done
        self.scores: dict[str, float | None] = {}
        self._scored_step = -1
        self._density: Tensor | None = None
        self._tracker: Tracker = SilentTracker()
        self._position = checkpoint.progress if checkpoint else None
        self._seconds_before = checkpoint.progress["seconds"] if checkpoint else 0.0
        self._started = time.perf_counter()
        self._begin_together()

    @property
    def steps_done(self) -> int:
        """Optimiser steps taken, those before an interruption included."""
        return self.trainer.steps_done

    @property
    def seconds(self) -> float:
        """Time trained so far, that before an interruption included."""
        return self._seconds_before + time.perf_counter() - self._started

    @contextmanager
    def open(self) -> Iterator[None]:
        """The output is this run's, against other processes too, and its numbers go to metrics.jsonl there.

        Where something fails within, the SAE as it stands is saved first, unless it is the numbers that
        broke.
        """
        self.output.mkdir(parents=True, exist_ok=True)
        with _alone(self.output), self._opened_tracker() as self._tracker:
            if self._position is None and writes():
                remove_checkpoints(self.output)
                if not self.config.baseline:
                    remove_baseline(self.output)
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
        return self.trainer.update(self.trainer.kind.scaled(batch, self.rows.scale))

    def after_step(self, stats: StepStats) -> None:
        """Lines of metrics.jsonl, an evaluation and a checkpoint, as far as they are due; `finish` follows
        the last step."""
        done, last = self.steps_done, self.steps_done == self.n_steps
        if done % self.config.log_every_steps == 0 or last:
            self._tracker.log(done, self.training_metrics(stats))
        if done % self.eval_every_steps == 0 and not last:
            self._tracker.log(done, self.held_out_metrics())
        if done % self.checkpoint_every_steps == 0 and not last:
            self.checkpoint()

    def stop(self) -> None:
        """Leave before the end: the same command goes on from here."""
        if self.saved_step != self.steps_done:
            self.checkpoint()
        if writes():
            log.warning(
                "stopped at step %d of %d; the same command goes on from there", self.steps_done, self.n_steps
            )
            log.warning("the SAE as it stands is in %s", self.output)

    def finish(self) -> SparseAutoencoder:
        """Save the trained SAE; checkpoints go."""
        sae = self.save()
        self._tracker.log(self.steps_done, self.scores)
        if writes():
            remove_checkpoints(self.output)
        return sae

    def training_metrics(self, stats: StepStats) -> dict[str, float | int | None]:
        """What a training line of metrics.jsonl holds; raises FloatingPointError when the loss is not
        finite."""
        loss, trainer, done = float(stats.reconstruction), self.trainer, self.steps_done
        if not math.isfinite(loss):
            self._raise_not_finite(f"the reconstruction loss is {loss}")
        self.finite_step = done
        tokens, window = done * self.config.batch_size_rows, trainer.dead_tracker.dead_after_tokens
        n_dead = distributed.total(len(trainer.dead_tracker.dead()), "latents")
        dead = n_dead / trainer.kind.d_sae if tokens >= window else None
        return {
            "tokens": tokens,
            "reconstruction": loss,
            trainer.kind.sparsity_name: float(stats.sparsity),
            "l0": float(stats.l0),
            f"dead@{window}": dead,
            "lr": trainer.adam.param_groups[0]["lr"],
            "tokens_per_s": tokens / self.seconds,
            **self._left_out(),
        }

    def held_out_metrics(self) -> dict[str, float | None]:
        """fvu and l0 on rows of held-out documents, None when there are none; with a model ΔCE in nats a
        token of them.

        Of one step they are computed once. Where the run has a baseline, the baseline's fvu is beside them.
        """
        if self._scored_step != self.steps_done:
            self.scores, self._scored_step = self._score() | self._downstream(), self.steps_done
        if self.config.baseline:
            self.scores["baseline_fvu"] = baseline_fvu(self.config, self.steps_done)
        return self.scores

    def checkpoint(self) -> None:
        """Write the state of training and the SAE as it stands, if all is finite; what was saved before stays
        until then."""
        self._weights_are_finite()
        position, state = self._tracker.position(), self.trainer.whole_state()
        if writes():
            save_checkpoint(
                self.output,
                state,
                run=_identity(self.rows, self.config),
                progress={
                    "scale": self.rows.scale,
                    "rows": self.rows.position(self.steps_done),
                    "seconds": self.seconds,
                    **position,
                },
                made_by=circumstances(self.device),
                keep=self.config.keep_checkpoints,
            )
        self.saved_step = self.steps_done
        self.save()

    def save(self) -> SparseAutoencoder:
        """The SAE in the units of the store, written to `output` by the first process; never one that is not
        finite."""
        self._weights_are_finite()
        done, kind, rows = self.steps_done, self.trainer.kind, self.rows
        if kind.calibrates and len(held_out := rows.held_out()):
            self._scored_step = -1
            kind.calibrate((held_out * rows.scale).to(self.device))
        sae = self._as_saved()
        self.held_out_metrics()
        facts = {
            **sae.config.metadata["saelens_lite"],
            "train": to_mapping(self.config),
            "lr": self.trainer.lr,
            "steps": done,
            "tokens": done * self.config.batch_size_rows,
            **self._left_out(),
            **self.scores,
        }
        metadata = {**sae.config.metadata, "saelens_lite": facts}
        if rows.context_length is not None:
            metadata["context_size"] = rows.context_length
        sae.config = dataclasses.replace(sae.config, metadata=metadata)
        if writes():
            sae.save(self.output, None if self._density is None else (self._density + 1e-10).log10())
            settings = json.dumps(to_mapping(self.config), indent=1)
            (self.output / "train_config.json").write_text(settings, encoding="utf-8")
        return sae

    def _opened_tracker(self) -> Tracker:
        if not writes():
            return SilentTracker()
        return Tracker(self.output, to_mapping(self.config), self.config.wandb_project, self._position)

    def _initial_sae(self) -> SparseAutoencoder:
        """On the CPU, in the scale of training."""
        config, rows, kind = self.config, self.rows, kind_class(self.config.kind)
        sample = rows.sample(_INIT_ROWS) * rows.scale
        if config.init_from is not None:
            source, scale = config.init_from, rows.scale
            return sae_to_finetune(self._sae_config(), source, scale, config.unit_decoder, self.comm)
        return initial_sae(self._sae_config(), sample, config.seed, kind.encoder_scale, self.comm)

    def _sae_config(self, d_sae: int | None = None) -> SAEConfig:
        """d_sae: None for the configuration's"""
        config, rows, sae_kind = self.config, self.rows, kind_class(self.config.kind).sae_kind
        return SAEConfig(
            d_model=rows.d_model,
            d_sae=d_sae or config.d_sae or config.expansion * rows.d_model,
            kind=sae_kind,
            k=config.k if sae_kind == "topk" else None,
            hook_point=rows.hook_point,
            hf_module=rows.hf_module,
            model_name=rows.model_name,
            metadata={"saelens_lite": {"version": saelens_lite.__version__, **rows.record}},
        )

    def _begin_together(self) -> None:
        """Several processes begin with the bits of the first, once all of them have looked at what is there.

        raises: ValueError if they found different checkpoints
        """
        done = self.steps_done
        if distributed.largest(done) != -distributed.largest(-done):
            raise ValueError(
                f"the processes expected one checkpoint in {self.output}, this one found step {done} and "
                "another one "
                "a different step: give all machines the same folder"
            )
        self.trainer.begin_alike()

    def _left_out(self) -> dict[str, float]:
        """The share of training rows left out, for logs and metadata, where that was asked for."""
        return {} if self.rows.left_out_share is None else {"left_out_share": self.rows.left_out_share}

    def _score(self) -> dict[str, float | None]:
        acts, scale = self.rows.held_out(), self.rows.scale
        if not len(acts):
            return {"held_out_fvu": None, "held_out_l0": None}
        errors = variance = 0.0
        firing = FiringSums(self.trainer.sae.d_sae, self.device)
        mean = acts.mean(0, dtype=torch.float64)
        with torch.no_grad():
            for rows in acts.split(self.config.batch_size_rows):
                scaled = (rows * scale).to(self.device)
                out = self.comm.forward(self.trainer.sae, scaled, self._sae_config().k)
                errors += float((out.recons.cpu() / scale - rows).double().square().sum())
                variance += float((rows - mean).square().sum())
                firing.update(out.latents)
        if not math.isfinite(errors):
            self._raise_not_finite("the error on held-out rows is not finite")
        density, l0 = self.comm.whole(firing.density, 0), distributed.total(firing.l0, "latents")
        self._density = None if density is None else density.cpu()
        return {"held_out_fvu": errors / variance if variance else None, "held_out_l0": l0}

    def _downstream(self) -> dict[str, float | None]:
        """ΔCE of the SAE as it stands, by the first process."""
        if not distributed.largest(int(self._model is not None and writes()), "latents"):
            return {}
        sae = self._as_saved()
        if self._model is None or not writes():
            return {}
        replacements = {"sae": {"sae": sae}, **({"clean": None} if math.isnan(self._ce_clean) else {})}
        ce = self.rows.cross_entropies(self._model, replacements, self.config.eval_ce_tokens)
        self._ce_clean = ce.get("clean", self._ce_clean)
        return {"held_out_delta_ce": ce["sae"] - self._ce_clean}

    def _as_saved(self) -> SparseAutoencoder:
        """A copy of the SAE in the units of the store, with unit decoder rows; of all shards."""
        sae = fold_scale(self.trainer.sae, self.rows.scale)
        if not self.config.unit_decoder:
            fold_decoder_norms_(sae)
        return self.comm.whole_sae(sae, self._sae_config(self.trainer.kind.d_sae))

    def _raise_not_finite(self, what: str) -> NoReturn:
        """Look for the cause in the rows since numbers were last known to be finite. raises:
        FloatingPointError"""
        done, lr = self.steps_done, self.trainer.lr
        self.rows.check_steps(self.finite_step, done, f"{what} at step {done}")
        raise FloatingPointError(
            f"{what} at step {done}, though all rows since step {self.finite_step} are: the training "
            "diverged. Lower lr "
            f"(now {lr:g}) and choose another output, or overwrite=True"
        )

    def _weights_are_finite(self) -> None:
        """raises: FloatingPointError otherwise"""
        finite = all(bool(parameter.isfinite().all()) for parameter in self.trainer.sae.parameters())
        if distributed.largest(int(not finite), "latents"):
            self._raise_not_finite("a weight is not finite")
        self.finite_step = self.steps_done

    def _save_what_there_is(self) -> None:
        if not self.steps_done or not writes():
            return
        if self.comm.n_shards > 1:  # the others, who would have to bring their shards, cannot be asked
            log.error(
                "failed after step %d of %d; saved is step %d", self.steps_done, self.n_steps, self.saved_step
            )
            return
        self.save()
        log.error(
            "failed after step %d of %d; the SAE as it stands is in %s",
            self.steps_done,
            self.n_steps,
            self.output,
        )
        if self.saved_step:
            log.error("the same command goes on at step %d", self.saved_step)


@contextmanager
def _alone(output: Path) -> Iterator[None]:
    """Keep another training out, for as long as this one trains into `output`."""
    with LocalFolder(output).locked() if writes() else nullcontext(True) as ours:
        if distributed.largest(int(not ours)):
            raise ValueError(
                f"{output} is being trained into by another process: wait for it, or choose another output"
            )
        yield
