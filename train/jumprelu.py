"""JumpReLU: a threshold for each latent, learned through straight-through estimates with a rectangular kernel.

step: the L0 penalty of Rajamanoharan et al. 2024, arXiv:2407.14435, which reaches thresholds only; with a target, the
square of l0's relative distance from it in its place, as in dictionary_learning.
tanh: Anthropic, "Dictionary Learning Optimization Techniques", January 2025: Σ tanh(4 · latent_acts), which reaches the
encoder too, and for every latent that is off a little of its distance from the threshold, so that none stays dead.
Both train log thresholds, which keeps thresholds positive.
"""

from __future__ import annotations

import torch
from torch import Tensor

from saelens_lite.sae import SparseAutoencoder

from .config import TrainConfig
from .kinds import Kind
from .step import StepStats, write_gradients

_TANH_SCALE = 4.0


class JumpReLU(Kind):
    """Dense in all latents: at the start half of them may be on."""

    sae_kind = "jumprelu"
    sparsity_name = "penalty"

    def __init__(self, sae: SparseAutoencoder, config: TrainConfig) -> None:
        super().__init__(sae, config)
        step = config.jumprelu_penalty == "step"
        self.ramp_fraction = 0.05 if step else 1.0
        self.bandwidth = config.bandwidth or (0.5 if step else 2.0)
        threshold = config.initial_threshold or (1.0 if step else 0.1)
        self.l0_coeff = config.l0_coeff or (1.0 if config.target_l0 is None else float(sae.d_model))
        with torch.no_grad():
            sae.threshold.copy_(torch.where(sae.threshold > 0, sae.threshold, threshold))
        self.log_threshold = torch.nn.Parameter(sae.threshold.detach().log())

    def parameters(self) -> dict[str, torch.nn.Parameter]:
        parameters = super().parameters()
        del parameters["threshold"]
        return {**parameters, "log_threshold": self.log_threshold}

    def gradients(self, acts: Tensor, dead: Tensor | None, ramp: float) -> tuple[StepStats, Tensor]:
        """Of reconstruction + l0_coeff · penalty."""
        sae, config, n_tokens = self.sae, self.config, len(acts)
        threshold, coeff = sae.threshold, self.l0_coeff * ramp
        inputs = acts - sae.b_dec
        pre_acts = torch.addmm(sae.b_enc, inputs, sae.W_enc)
        on = pre_acts > threshold
        latent_acts = pre_acts * on
        error = torch.addmm(sae.b_dec, latent_acts, sae.W_dec).sub_(acts)
        reconstruction = torch.linalg.vecdot(error, error).mean()
        recons_grad = error.mul_(2.0 / n_tokens)
        dec_grad = latent_acts.T @ recons_grad
        acts_grad = recons_grad @ sae.W_dec.T  # ∂L/∂latent_acts
        near = (pre_acts - threshold).abs_() < self.bandwidth / 2  # where the estimate of ∂ 1[pre > θ]/∂θ is −1 / bandwidth
        n_fired = on.sum(0, dtype=acts.dtype)
        l0 = n_fired.sum() / n_tokens

        if config.jumprelu_penalty == "step":
            penalty, l0_grad = l0, torch.ones_like(l0)
            if config.target_l0 is not None:
                distance = l0 / config.target_l0 - 1
                penalty, l0_grad = distance.square(), 2 * distance / config.target_l0
            jumps = threshold * (acts_grad * near).sum(0) + coeff * l0_grad / n_tokens * near.sum(0, dtype=acts.dtype)
            threshold_grad = jumps / -self.bandwidth
            pre_grad = acts_grad.mul_(on)
        else:
            norms = self.decoder_norms()
            tanh = (_TANH_SCALE * norms * latent_acts).tanh_()
            penalty = tanh.sum() / n_tokens
            slope = (1 - tanh.square_()).mul_(_TANH_SCALE * coeff / n_tokens)  # of the penalty, in latent_acts · norm
            acts_grad += slope * norms
            threshold_grad = threshold * (acts_grad * near).sum(0) / -self.bandwidth
            pre_grad = acts_grad.mul_(on)

            pre_act_coeff = config.pre_act_coeff / n_tokens
            pre_grad -= pre_act_coeff * norms * ~on
            threshold_grad += pre_act_coeff * norms * (n_tokens - n_fired)
            if not config.unit_decoder:
                below = (threshold - pre_acts).relu_()
                norm_grad = (slope * latent_acts).sum(0) + pre_act_coeff * below.sum(0)
                dec_grad += (norm_grad / norms)[:, None] * sae.W_dec

        self.log_threshold.grad = threshold_grad * threshold
        sae.b_enc.grad = pre_grad.sum(0)
        dec_grad = self.along_constraint(dec_grad)
        write_gradients(
            sae, dec_grad, pre_grad.T @ inputs, sae.b_enc.grad, recons_grad.sum(0), train_decoder=self.train_decoder
        )
        return StepStats(reconstruction, penalty, l0), n_fired > 0

    def after_update(self) -> None:
        super().after_update()
        self.sae.threshold.copy_(self.log_threshold.exp())

    def state(self) -> dict[str, Tensor]:
        return {"log_threshold": self.log_threshold.detach()}

    @torch.no_grad()
    def load_state(self, state: dict[str, Tensor]) -> None:
        self.log_threshold.copy_(state["log_threshold"])


KIND = JumpReLU
