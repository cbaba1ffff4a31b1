"""The state of an SAE in training and what one batch does to it: no stores, files or clocks."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

from saelens_lite.errors import CheckpointError, with_option
from saelens_lite.sae.autoencoder import SparseAutoencoder

from ..config import TrainConfig
from ..kinds.choice import kind_class
from ..kinds.kind import Kind, StepStats
from ..kinds.refit import Refit
from .dead import DeadTracker, default_dead_after_tokens
from .precision import matmul_precision, multiplying
from .resample import resample_
from .schedules import Schedule


class Trainer:
    """Adam, schedules and dead-latent tracking around an SAE and its kind.

    sae: in the scale of training (see initial.py), on the device to train on; or this process's shard
    kind: what gives the gradients; None for the configuration's. In the refit phase another takes its place
    schedule: None for the configuration's
    scale: of its rows, by which the SAE's scale differs from the store's
    """

    def __init__(
        self,
        sae: SparseAutoencoder,
        config: TrainConfig,
        n_steps: int,
        kind: Kind | None = None,
        schedule: Schedule | None = None,
        scale: float = 1.0,
    ) -> None:
        self.sae, self.config, self.n_steps, self.scale = sae, config, n_steps, scale
        self.steps_done = 0
        self.kind = kind or kind_class(config.kind)(sae, config)
        self.comm = self.kind.comm
        self.schedule = schedule or Schedule.of(config, self.kind, n_steps)
        size = n_steps * config.batch_size_rows, self.kind.d_sae, config.k if self.kind.keeps_k else None
        dead_after_tokens = config.dead_after_tokens or default_dead_after_tokens(*size)
        self.dead_tracker = DeadTracker(sae.d_sae, dead_after_tokens, sae.device)
        # Adam sees W_enc as it is stored, [d_sae d_model]: torch's fused kernel copies strided parameters,
        # and is silently wrong where strides of gradient and parameter differ.
        self._encoder_rows = torch.nn.Parameter(sae.W_enc.detach().T)
        self.adam = self._optimiser()

    def _optimiser(self) -> torch.optim.Adam:
        groups: dict[float, list[torch.nn.Parameter]] = {self.schedule.lr: []}
        if self.kind.trains_encoder:
            groups[self.schedule.lr].append(self._encoder_rows)
        for name, parameter in self.kind.parameters().items():
            groups.setdefault(self.kind.rates.get(name, self.schedule.lr), []).append(parameter)
        return torch.optim.Adam(
            [{"params": parameters, "lr": peak, "peak": peak} for peak, parameters in groups.items()],
            betas=(self.config.adam_beta1, self.kind.adam_beta2 or self.config.adam_beta2),
            fused=self.sae.device.type in ("cpu", "cuda"),
        )

    @property
    def lr(self) -> float:
        """The peak learning rate."""
        return self.schedule.lr

    def weights(self) -> Iterable[Tensor]:
        """Of the SAE as it stands; of this shard."""
        return self.kind.folded().parameters()

    @property
    def _parameters(self) -> list[torch.nn.Parameter]:
        """As Adam numbers them."""
        return [parameter for group in self.adam.param_groups for parameter in group["params"]]

    def _begin_refit(self) -> None:
        steps, train_decoder = self.schedule.refit_steps, self.kind.train_decoder
        self.sae.zero_grad()
        self.kind = Refit(self.sae, self.config, self.comm, steps, train_decoder)
        self.adam = self._optimiser()

    @torch.no_grad()
    def update(self, acts: Tensor) -> StepStats:
        """One optimiser step on float32[batch d_model]; several processes bring equal parts of the batch."""
        dead = self.dead_tracker.dead() if self.kind.uses_dead else None
        self.kind.begin(self.steps_done, self.n_steps)
        ramp = self.schedule.ramp_at(self.steps_done)
        with multiplying(matmul_precision(self.config, self.sae.device)):
            stats, fired = self.kind.gradients(acts, dead, ramp)
        for group in self.adam.param_groups:
            group["lr"] = group["peak"] * self.schedule.rate_at(self.steps_done)
        assert self._encoder_rows.data_ptr() == self.sae.W_enc.data_ptr(), (
            "the SAE was moved after its Trainer was made"
        )
        if self.kind.trains_encoder:
            self._encoder_rows.grad = self.sae.W_enc.grad.T
        stats, fired = self._reduced(stats, fired)
        self.dead_tracker.update(fired, len(acts) * self.comm.n_parts)  # before Adam: see DeadTracker
        self._clip()
        self.adam.step()
        self.kind.after_update()
        self.kind.follow(stats.l0, self.schedule.lr, self.schedule.ramp_steps)
        self.steps_done += 1
        self._resample(acts)
        if self.schedule.refit_steps and self.steps_done == self.schedule.learning_steps:
            self._begin_refit()
        return stats

    def _resample(self, acts: Tensor) -> None:
        every, learning_steps = self.config.resample_every_steps, self.schedule.learning_steps
        last = self.config.resample_fraction * learning_steps
        if every is not None and self.steps_done % every == 0 and self.steps_done <= last:
            entries = [entry for p, entry in self.adam.state.items() if p is not self.sae.b_dec]
            moments = [(entry["exp_avg"], entry["exp_avg_sq"]) for entry in entries]
            resample_(self.kind, self.dead_tracker, moments, acts, self.steps_done)

    def _reduced(self, stats: StepStats, fired: Tensor) -> tuple[StepStats, Tensor]:
        """Gradients, in place, stats and firings of this process's rows become those of the whole batch.

        All are means over rows, of which each process has as many, and so means over processes.
        """
        for parameter in self._parameters:
            if parameter.grad is not None:  # b_dec stays the same to the bit in all shards
                self.comm.mean_gradient_(parameter.grad, of_latents=parameter is not self.sae.b_dec)
        *means, fired = self.comm.mean(*stats, fired)
        return StepStats(*means), fired > 0

    def _clip(self) -> None:
        """Scale gradients down to clip_norm, if their norm over all parameters is above it."""
        parameters, limit = self._parameters, self.config.clip_norm
        if limit is None:
            return
        grads = [p.grad for p in parameters if p.grad is not None]
        norm = self.comm.total_norm(grads, self.sae.b_dec.grad)
        if self.adam.defaults["fused"]:
            # The fused kernel divides by this on the way (it is meant for AMP), which saves a pass over them.
            self.adam.grad_scale = (norm / limit).clamp(min=1.0)
        else:
            torch.nn.utils.clip_grads_with_norm_(parameters, limit, norm)

    def state(self) -> dict[str, Tensor | int]:
        """Everything that the next steps depend on, by name: steps_done, sae.*, adam.*, dead.* and kind.*.

        Tensors are the live ones, with this shard's latents. Row order is a function of (seed, step).
        """
        moments = self.adam.state_dict()["state"]
        return {
            "steps_done": self.steps_done,
            **{f"sae.{name}": tensor for name, tensor in self.sae.state_dict().items()},
            **{f"adam.{i}.{name}": tensor for i, entry in moments.items() for name, tensor in entry.items()},
            "dead.tokens_since_fired": self.dead_tracker.tokens_since_fired,
            **{f"kind.{name}": tensor for name, tensor in self.kind.state().items()},
        }

    def whole_state(self) -> dict[str, Tensor | int | None]:
        """`state` with the latents of all shards; None for tensors in all shards but the first."""
        return {
            name: self.comm.whole(value, self._latent_dim(name, value))
            if isinstance(value, Tensor)
            else value
            for name, value in self.state().items()
        }

    def _latent_dim(self, name: str, tensor: Tensor) -> int | None:
        """The dimension of a tensor of `state` that counts latents; None for what all shards have alike."""
        if name.startswith("sae."):
            return self.sae.config.parameters[name.removeprefix("sae.")].latent_dim
        if name.startswith("kind.") and name.removeprefix("kind.") in self.kind.shared_state:
            return None
        b_dec = [p is self.sae.b_dec for p in self._parameters].index(True)
        return 0 if tensor.dim() and not name.startswith(f"adam.{b_dec}.") else None

    def begin_alike(self) -> None:
        """Make processes that hold the same latents begin with the same bits, those of the first."""
        for name, value in self.state().items():
            if isinstance(value, Tensor):
                self.comm.begin_alike_(value, of_latents=self._latent_dim(name, value) is not None)

    @torch.no_grad()
    def load_state(self, state: Mapping[str, Tensor | int]) -> None:
        """Copy what `whole_state` of an equally configured trainer gave; a shard takes its latents.

        raises: CheckpointError, before anything changes, for a missing or unknown name or another shape
        """
        if self.schedule.refit_steps and int(state["steps_done"]) >= self.schedule.learning_steps:
            self._begin_refit()
        live, params = self.state(), self._parameters
        expected = {name: value.shape for name, value in live.items() if isinstance(value, Tensor)}
        # The refit phase begins with an optimiser of its own, which has no moments yet.
        begins = self.schedule.refit_steps and state["steps_done"] == self.schedule.learning_steps
        for i, parameter in enumerate([] if begins else params):
            expected |= {f"adam.{i}.{moment}": parameter.shape for moment in ("exp_avg", "exp_avg_sq")}
            expected[f"adam.{i}.step"] = torch.Size()
        tensors = {
            name: self.comm.part(value, self._latent_dim(name, value))
            for name, value in state.items()
            if isinstance(value, Tensor)
        }
        found = {name: value.shape for name, value in tensors.items()}
        for name in sorted(expected.keys() | found.keys()):
            if expected.get(name) != found.get(name):
                error = CheckpointError(
                    f"trainer state expected {name} of shape {expected.get(name)}, got {found.get(name)}: it "
                    "is of another run or release; choose another output, or overwrite=True to start anew"
                )
                raise with_option(error, "overwrite")
        moments: dict[int, dict[str, Tensor]] = {i: {} for i in range(len(params))}
        kind_state = {}
        for name, tensor in tensors.items():
            part, _, rest = name.partition(".")
            if part == "adam":
                i, moment = rest.split(".")
                moments[int(i)][moment] = tensor.clone()
            elif part == "kind":
                kind_state[rest] = tensor.to(self.sae.device, copy=True)
            else:
                live[name].copy_(tensor)
        self.adam.load_state_dict({**self.adam.state_dict(), "state": moments})
        self.kind.load_state(kind_state)
        self.steps_done = int(state["steps_done"])
