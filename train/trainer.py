"""The state of an SAE in training and what one batch does to it; knows nothing of stores, files or clocks."""

from __future__ import annotations

import torch
from torch import Tensor

from saelens_lite.sae import SparseAutoencoder

from .config import TrainConfig
from .optim import default_lr, lr_factor
from .step import DeadTracker, StepStats, Workspace, relu_step, topk_step, unit_rows_


class Trainer:
    """Adam, schedules, dead-latent tracking and the unit-norm decoder around an SAE.

    sae: in the scale of training (see init.py), on the device to train on
    n_steps: length of the run, which the schedules need
    """

    def __init__(self, sae: SparseAutoencoder, config: TrainConfig, n_steps: int) -> None:
        self.sae, self.config, self.n_steps = sae, config, n_steps
        self.steps_done = 0
        self._workspace = Workspace()
        self.lr = config.lr or default_lr(sae.d_sae, n_steps)
        self.warm_up_steps = _or(config.warm_up_steps, min(1000, round(0.05 * n_steps)))
        self.l1_warm_up_steps = _or(config.l1_warm_up_steps, round(0.05 * n_steps))
        self.decay_steps = round(config.decay_fraction * n_steps)
        self.k_aux = config.k_aux or max(1, sae.d_model // 2)
        n_tokens = n_steps * config.batch_size_rows
        dead_after_tokens = config.dead_after_tokens or max(1, min(10_000_000, n_tokens // 10))
        self.dead_tracker = DeadTracker(sae.d_sae, dead_after_tokens, sae.device)
        # Adam sees W_enc as its storage is, [d_sae d_model]: torch's fused kernel copies strided parameters, and is
        # silently wrong where a gradient's strides differ from its parameter's.
        self._encoder_rows = torch.nn.Parameter(sae.W_enc.detach().T)
        trained = [p for p in sae.parameters() if not (p is sae.W_enc or (config.freeze_decoder and p is sae.W_dec))]
        self.adam = torch.optim.Adam(
            [self._encoder_rows, *trained],
            lr=self.lr,
            betas=(config.adam_beta1, config.adam_beta2),
            fused=sae.device.type in ("cpu", "cuda"),
        )

    @torch.no_grad()
    def update(self, acts: Tensor) -> StepStats:
        """One optimiser step on float32[batch d_model]."""
        stats, fired = self._gradients(acts)
        factor = lr_factor(self.steps_done, self.n_steps, self.warm_up_steps, self.decay_steps)
        for group in self.adam.param_groups:
            group["lr"] = self.lr * factor
        assert self._encoder_rows.data_ptr() == self.sae.W_enc.data_ptr(), "the SAE was moved after its Trainer was made"
        self._encoder_rows.grad = self.sae.W_enc.grad.T
        self.adam.step()
        if not self.config.freeze_decoder:
            unit_rows_(self.sae.W_dec)
        self.dead_tracker.update(fired, len(acts))
        self.steps_done += 1
        return stats

    def _gradients(self, acts: Tensor) -> tuple[StepStats, Tensor]:
        config, train_decoder = self.config, not self.config.freeze_decoder
        if config.kind == "relu":
            ramp = min(1.0, (self.steps_done + 1) / max(1, self.l1_warm_up_steps))
            return relu_step(self.sae, acts, l1_coeff=config.l1_coeff * ramp, train_decoder=train_decoder)
        dead = self.dead_tracker.dead() if config.aux_coeff else None
        return topk_step(
            self.sae,
            acts,
            dead,
            k_aux=self.k_aux,
            aux_coeff=config.aux_coeff,
            train_decoder=train_decoder,
            workspace=self._workspace,
        )


def _or(given: int | None, default: int) -> int:
    return default if given is None else given
