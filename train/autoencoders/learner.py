"""A relative of the SAE as what a run trains: a step of Adam on its loss, scores, state, what is saved."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

import saelens_lite
from saelens_lite import distributed
from saelens_lite.autoencoders.autoencoder import Autoencoder, Loss
from saelens_lite.autoencoders.folder import FILE
from saelens_lite.autoencoders.kinds import class_of
from saelens_lite.errors import CheckpointError
from saelens_lite.sae.metrics import ReconstructionSums, dead_units

from ..optimise.precision import matmul_precision, multiplying
from ..optimise.schedules import lr_factor
from ..random_streams import AUTOENCODER, generator
from ..rows.protocol import Rows
from ..runs.checkpoints import Checkpoint
from ..runs.finite import Finite
from ..runs.process import device_of, writes
from .config import AutoencoderConfig

_SAMPLE_ROWS = 32_768


class AutoencoderLearner:
    """Adam on the loss of an Autoencoder, as a run's `Learner`; pca and deep_belief have subclasses.

    All draws are functions of (seed, step), so that a resume repeats them.
    """

    NAME, FILE = "autoencoder", FILE
    LEFT_OPEN: ClassVar[Mapping[str, Any]] = {}
    default_lr: ClassVar[float] = 1e-3

    def __init__(
        self,
        rows: Rows,
        config: AutoencoderConfig,
        n_steps: int,
        checkpoint: Checkpoint | None = None,
        model: nn.Module | None = None,
    ) -> None:
        if distributed.world_size() > 1:
            raise ValueError(
                f"training a {config.kind} autoencoder expected one process, got {distributed.world_size()}: "
                "call it without torchrun"
            )
        self.rows, self.config, self.n_steps, self.steps_done = rows, config, n_steps, 0
        self.device = device_of(config)
        with torch.random.fork_rng(devices=[]):  # layers draw weights, which `reset` draws again by the seed
            self.autoencoder: Autoencoder = class_of(config.kind)(config.relative, rows.d_model, rows.shape)
        if checkpoint is None:
            self.autoencoder.reset(generator(config.seed, AUTOENCODER))
            set_units_(self.autoencoder, rows, config)
        self.autoencoder.to(self.device)
        self.parameters = list(self.autoencoder.parameters())
        self.adam = self._optimiser()
        if checkpoint is not None:
            self._load_state(checkpoint.state)
        self.finite, self._scored = Finite(self, rows), (-1, dict[str, float | None]())

    @property
    def lr(self) -> float:
        return self.config.lr or self.default_lr

    def weights(self) -> Iterable[Tensor]:
        """All that is saved."""
        return self.autoencoder.state_dict().values()

    def begin(self) -> None:
        pass

    def update(self, batch: Tensor) -> Loss:
        with multiplying(matmul_precision(self.config, self.device)):
            stats = self.gradients(batch.to(self.device), self.draws())
        for group in self.adam.param_groups:
            group["lr"] = self.lr * self.rate()
        self.adam.step()
        self.adam.zero_grad()
        self.steps_done += 1
        return stats

    def gradients(self, acts: Tensor, draws: torch.Generator) -> Loss:
        """Write the gradients of one batch float[n d_model] into `.grad`."""
        loss = self.autoencoder.loss(acts, draws)
        loss.total.backward()
        return Loss(*(part.detach() for part in loss))

    def draws(self) -> torch.Generator:
        """The generator of the step that comes."""
        return generator(self.config.seed, AUTOENCODER, 1, self.steps_done, device=self.device)

    def rate(self) -> float:
        """Share of the peak learning rate at the step that comes."""
        return lr_factor(
            self.steps_done,
            self.n_steps,
            self.config.warm_up_steps,
            round(self.config.decay_fraction * self.n_steps),
        )

    def numbers(self, stats: Loss, tokens: int) -> dict[str, float | None]:
        self.finite.check_loss(float(stats.total))
        lr = self.adam.param_groups[0]["lr"]
        return {"error": float(stats.error), "penalty": float(stats.penalty), "lr": lr}

    @torch.no_grad()
    def score(self) -> dict[str, float | None]:
        """held_out_fvu, and the share of code units that are dead (`dead_units`)."""
        if self._scored[0] == self.steps_done:
            return self._scored[1]
        sums, codes = ReconstructionSums(self.rows.d_model), []
        for acts in self.rows.held_out().split(self.config.batch_size_rows):
            recons, code = self.autoencoder(acts.to(self.device))
            sums.update(acts, recons.cpu())
            codes.append(code.cpu())
        found: dict[str, float | None] = dict.fromkeys(("held_out_fvu", "held_out_dead_units"))
        if sums.n_tokens > 1 and sums.squared_deviation:
            self.finite.check(sums.squared_error, "the error on held-out rows is not finite")
            variances = torch.cat(codes).double().var(0)
            found = {"held_out_fvu": sums.fvu, "held_out_dead_units": dead_units(variances)}
        self._scored = self.steps_done, found
        return found

    def check(self) -> None:
        self.finite.check_weights()

    def state(self) -> dict[str, Tensor | int]:
        moments = self.adam.state_dict()["state"]
        return {
            "steps_done": self.steps_done,
            **{f"module.{name}": tensor for name, tensor in self.autoencoder.state_dict().items()},
            **{f"adam.{i}.{name}": tensor for i, entry in moments.items() for name, tensor in entry.items()},
        }

    def progress(self) -> dict[str, Any]:
        return {}

    def save(self, output: Path, facts: Mapping[str, Any]) -> Autoencoder:
        self.check()
        of_rows = {"hook_point": self.rows.hook_point, "model_name": self.rows.model_name, **self.rows.record}
        version = {"version": saelens_lite.__version__}
        self.autoencoder.metadata = {**version, **of_rows, **facts, **self.score()}
        if writes():
            self.autoencoder.save(output)
        return self.autoencoder

    @staticmethod
    def load(output: Path, config: AutoencoderConfig) -> Autoencoder:
        return Autoencoder.load(output, device_of(config))

    @staticmethod
    def record(trained: Autoencoder) -> dict[str, Any] | None:
        return trained.metadata if "train" in trained.metadata else None

    @staticmethod
    def unused(config: AutoencoderConfig) -> Mapping[str, str]:
        return {}  # the configuration refuses fields that its kind does not use

    def _optimiser(self) -> torch.optim.Adam:
        fused = self.device.type in ("cpu", "cuda")
        return torch.optim.Adam(self.parameters, lr=self.lr, fused=fused)

    def _load_state(self, state: Mapping[str, Tensor | int]) -> None:
        """raises: CheckpointError for a missing or unknown name, or another shape"""
        moments: dict[int, dict[str, Tensor]] = {}
        module = {}
        for name, value in state.items():
            part, _, rest = name.partition(".")
            if part == "module":
                module[rest] = value
            elif part == "adam":
                i, moment = rest.split(".")
                moments.setdefault(int(i), {})[moment] = value.clone()  # type: ignore[union-attr]
        try:
            self.autoencoder.load_state_dict(module)
            self.adam.load_state_dict({**self.adam.state_dict(), "state": moments})
        except (RuntimeError, ValueError) as error:
            raise CheckpointError(
                f"the checkpoint is of another autoencoder or release: {error}; choose another output, or "
                "overwrite=True to start anew"
            ) from error
        self.steps_done = int(state["steps_done"])


def set_units_(autoencoder: Autoencoder, rows: Rows, config: AutoencoderConfig) -> None:
    """Set shift and scale of one that begins, see AutoencoderConfig.

    raises: ValueError for rows outside [0, 1] where the output is sigmoid
    """
    sample = rows.sample(_SAMPLE_ROWS)
    if config.output_activation == "sigmoid":
        least, most = float(sample.min()), float(sample.max())
        if least < 0 or most > 1:
            raise ValueError(
                f"output_activation sigmoid expected rows in [0, 1], got {least:.4g} to {most:.4g}: scale "
                "them before they are stored, or choose linear"
            )
    elif config.scale_input and config.kind != "pca":  # whose mean is exact, and scale without effect
        mean, scale = sample.mean(0), torch.full((rows.d_model,), float(rows.scale))
        if config.kind == "convolutional":  # alike everywhere, as its weights are
            mean = mean.mean().expand(rows.d_model)
        if config.kind == "deep_belief":
            deviation = sample.std(0)
            scale = torch.where(deviation > 0, 1 / deviation.clamp_min(1e-12), 1.0)
        autoencoder.shift.copy_(mean)
        autoencoder.scale.copy_(scale)
