"""What a run of a sparse autoencoder trains: its start, one step, its numbers and scores, what is saved."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from saelens_lite import distributed
from saelens_lite.sae.autoencoder import SparseAutoencoder
from saelens_lite.sae.folder import CFG
from saelens_lite.sae.transcoder import Transcoder

from ..config import LEFT_OPEN, TrainConfig
from ..kinds.choice import kind_for, unused
from ..kinds.kind import Kind, StepStats
from ..latent_shards import communication
from ..optimise.schedules import Schedule
from ..optimise.trainer import Trainer
from ..rows.protocol import Rows
from .baseline import baseline_fvu, baseline_of
from .checkpoints import Checkpoint
from .finite import Finite
from .output import remove_run
from .process import device_of, writes
from .sae import sae_config, saved_sae, starting_sae
from .scores import HeldOutScores
from .silent_start import ROWS, warn_of_silence


class SAELearner:
    """A `Trainer` of an SAE as a run's `Learner`."""

    NAME, FILE, LEFT_OPEN, unused = "SAE", CFG, LEFT_OPEN, staticmethod(unused)

    def __init__(
        self,
        rows: Rows,
        config: TrainConfig,
        n_steps: int,
        checkpoint: Checkpoint | None = None,
        model: nn.Module | None = None,
    ) -> None:
        self.rows, self.config = rows, config
        self.device, comm = device_of(config), communication()
        if checkpoint is None:
            sae = starting_sae(config, rows, comm)
            if writes() and config.init_from is not None:  # other starts have b_dec at the rows' median
                warn_of_silence(sae, rows.sample(ROWS) * rows.scale)
        else:
            whole = sae_config(config, rows, len(checkpoint.state["sae.W_dec"]))
            sae = (Transcoder if whole.target else SparseAutoencoder)(comm.shard_config(whole))
        scale = checkpoint.progress["scale"] if checkpoint else rows.scale
        kind = kind_for(config, sae.to(self.device), model, rows, scale, comm)
        schedule = schedule_of(checkpoint, config, kind, n_steps)
        self.trainer = Trainer(kind.sae, config, n_steps, kind, schedule, scale)
        if checkpoint is not None:
            self.trainer.load_state(checkpoint.state)
        self.finite = Finite(self.trainer, rows)
        self.scores = HeldOutScores(self.trainer, rows, self.finite, model)
        self.trainer.begin_alike()

    @property
    def steps_done(self) -> int:
        return self.trainer.steps_done

    @property
    def lr(self) -> float:
        return self.trainer.lr

    def begin(self) -> None:
        if self.config.overwrite and not self.config.baseline:
            remove_run(Path(baseline_of(self.config).output))

    def update(self, batch: Tensor) -> StepStats:
        return self.trainer.update(self.trainer.kind.scaled(batch, self.trainer.scale))

    def numbers(self, stats: StepStats, tokens: int) -> dict[str, float | None]:
        loss, trainer = float(stats.reconstruction), self.trainer
        self.finite.check_loss(loss)
        window = trainer.dead_tracker.dead_after_tokens
        n_dead = distributed.total(len(trainer.dead_tracker.dead()), "latents")
        return {
            "reconstruction": loss,
            trainer.kind.sparsity_name: float(stats.sparsity),
            "l0": float(stats.l0),
            **trainer.kind.metrics(),
            f"dead@{window}": n_dead / trainer.kind.d_sae if tokens >= window else None,
            "lr": trainer.adam.param_groups[0]["lr"],
        }

    def score(self) -> dict[str, float | None]:
        """As `HeldOutScores`, with the fvu of the run's baseline, if it has one."""
        metrics = self.scores.update()
        if self.config.baseline:
            metrics["baseline_fvu"] = baseline_fvu(self.config, self.steps_done)
        return metrics

    def check(self) -> None:
        self.finite.check_weights()

    def state(self) -> Mapping[str, Tensor | int]:
        return self.trainer.whole_state()

    def progress(self) -> dict[str, Any]:
        return {"scale": self.trainer.scale, "schedule": dataclasses.asdict(self.trainer.schedule)}

    def save(self, output: Path, facts: Mapping[str, Any]) -> SparseAutoencoder:
        self.check()
        kind, rows = self.trainer.kind, self.rows
        if kind.calibrates:
            self.scores.outdated()
            held_out = rows.held_out()
            acts = held_out if len(held_out) else rows.seen(self.steps_done)
            kind.calibrate((acts * self.trainer.scale).to(self.device))
        sae = saved_sae(self.trainer, rows)
        own = {**sae.config.metadata["saelens_lite"], "train": facts["train"], "lr": self.lr}
        metadata = {**sae.config.metadata, "saelens_lite": {**own, **facts, **self.score()}}
        if rows.context_length is not None:
            metadata["context_size"] = rows.context_length
        sae.config = dataclasses.replace(sae.config, metadata=metadata)
        if writes():
            density = self.scores.density
            sae.save(output, None if density is None else (density + 1e-10).log10())
        return sae

    @staticmethod
    def load(output: Path, config: TrainConfig) -> SparseAutoencoder:
        return SparseAutoencoder.load(output, device="cpu" if config.latent_shards > 1 else device_of(config))

    @staticmethod
    def record(trained: SparseAutoencoder) -> dict[str, Any] | None:
        facts = trained.config.metadata.get("saelens_lite", {})
        return {**facts, "hook_point": trained.config.hook_point} if "train" in facts else None


def schedule_of(checkpoint: Checkpoint | None, config: TrainConfig, kind: Kind, n_steps: int) -> Schedule:
    """That of a run that begins, or the one that it began with.

    A checkpoint of release 0.1, which knew no refit phase, does not say.
    """
    if checkpoint is None:
        return Schedule.of(config, kind, n_steps)
    if "schedule" in checkpoint.progress:
        return Schedule(**checkpoint.progress["schedule"])
    return Schedule.of(dataclasses.replace(config, refit_fraction=0.0), kind, n_steps)
