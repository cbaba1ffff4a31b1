"""JumpReLU: a threshold for each latent, learned through straight-through estimates, rectangular ones.

Both penalties train log thresholds, which keeps thresholds positive.
step: the L0 penalty of Rajamanoharan et al. 2024, arXiv:2407.14435, which reaches thresholds only; with a
target, the square of l0's relative distance from it in its place, as in dictionary_learning.
tanh: Anthropic, "Dictionary Learning Optimization Techniques", January 2025: Σ tanh(4 · latent_acts), which
reaches the encoder too; and a little of the distance from the threshold for every latent that is off, so that
none stays dead.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from saelens_lite.kernels import dispatch as kernels
from saelens_lite.sae.autoencoder import SparseAutoencoder

from ..comm import ALONE, Alone
from ..config import TrainConfig
from .few_pairs import PairPlaces, few_pairs
from .kind import RESAMPLING_FIELDS, Kind, StepStats

_TANH_SCALE = 4.0


class JumpReLU(Kind):
    """Dense products at first; with the penalty step, the kernels once few latents are on."""

    sae_kind = "jumprelu"
    fields = RESAMPLING_FIELDS | {
        "unit_decoder", "jumprelu_penalty", "l0_coeff", "target_l0", "bandwidth", "initial_threshold",
        "pre_act_coeff", "l1_warm_up_steps",
    }  # fmt: skip
    sparsity_name = "penalty"
    # At 1, with thresholds of 1, a target l0 is met before latents have found a direction: fvu 0.23 for 0.13
    # (600 steps).
    encoder_scale = 0.3

    def __init__(self, sae: SparseAutoencoder, config: TrainConfig, comm: Alone = ALONE) -> None:
        super().__init__(sae, config, comm)
        step = config.jumprelu_penalty == "step"
        self.ramp_fraction = 0.05 if step else 1.0
        self.bandwidth = config.bandwidth or (0.5 if step else 2.0)
        self.initial_threshold = config.initial_threshold or (0.3 if step else 0.1)
        self.l0_coeff = config.l0_coeff or (1.0 if config.target_l0 is None else float(sae.config.d_out))
        if config.init_from is None or config.initial_threshold is not None:
            torch.nn.init.constant_(sae.threshold, self.initial_threshold)
        # Of a threshold of 0 it is −∞, which stays: its gradient is 0.
        self.log_threshold = torch.nn.Parameter(sae.threshold.detach().log())

    @classmethod
    def idle(cls, config: TrainConfig) -> dict[str, str]:
        name = "pre_act_coeff" if config.jumprelu_penalty == "step" else "target_l0"
        return {name: f"with the penalty {config.jumprelu_penalty}"}

    def parameters(self) -> dict[str, torch.nn.Parameter]:
        parameters = super().parameters()
        del parameters["threshold"]
        return {**parameters, "log_threshold": self.log_threshold}

    def gradients(self, acts: Tensor, dead: Tensor | None, ramp: float) -> tuple[StepStats, Tensor]:
        """Of reconstruction + l0_coeff · penalty."""
        inputs, coeff = self.encoder_inputs(acts), self.l0_coeff * ramp / len(acts)
        targets = self.targets(acts, inputs)
        pre_acts = torch.addmm(self.sae.b_enc, inputs, self.sae.W_enc)
        if self.config.jumprelu_penalty == "step" and self.config.unit_decoder:
            pairs = few_pairs(pre_acts > self.sae.threshold - self.bandwidth / 2)
            if pairs is not None:
                return self._sparse(targets, inputs, pre_acts, coeff, pairs)
        return self._dense(targets, inputs, pre_acts, coeff)

    def _l0_penalty(self, l0: Tensor) -> tuple[Tensor, Tensor]:
        """The step penalty and its derivative, of l0 float[""]."""
        if self.config.target_l0 is None:
            return l0, torch.ones_like(l0)
        [l0] = self.comm.mean(l0)  # of the whole batch, in which the square is not linear
        distance = l0 / self.config.target_l0 - 1
        return distance.square(), 2 * distance / self.config.target_l0

    def _sparse(
        self, targets: Tensor, inputs: Tensor, pre_acts: Tensor, coeff: float, pairs: PairPlaces
    ) -> tuple[StepStats, Tensor]:
        """The step penalty, over the pairs that are on or so near the threshold that it learns from them."""
        sae, threshold, (tokens, indices, offsets) = self.sae, self.sae.threshold, pairs
        above = pre_acts[tokens, indices] - threshold[indices]
        values = pre_acts[tokens, indices] * (above > 0)
        recons_grad, pair_grads, sq_error = self.comm.token_pass(
            targets, values, indices, sae.W_dec, sae.b_dec, 2.0 / len(targets), offsets=offsets
        )
        l0 = self.comm.sum((values > 0).sum(dtype=targets.dtype) / len(targets))
        penalty, l0_grad = self._l0_penalty(l0)
        jumps = (threshold[indices] * pair_grads + coeff * l0_grad) * (above.abs() < self.bandwidth / 2)
        threshold_grad = torch.zeros_like(threshold).index_add_(0, indices, jumps) / -self.bandwidth
        dec_grad, enc_grad, sae.b_enc.grad, fired = kernels.latent_pass(
            recons_grad, inputs, values, pair_grads, indices, sae.W_dec, offsets=offsets
        )
        self.log_threshold.grad = threshold_grad * threshold
        self.write_gradients(dec_grad, enc_grad, sae.b_enc.grad, recons_grad.sum(0))
        self.write_skip_gradient(inputs, recons_grad)
        self.contract_pairs(values, indices, len(targets))
        return StepStats(sq_error.mean(), penalty, l0), fired

    def _dense(
        self, targets: Tensor, inputs: Tensor, pre_acts: Tensor, coeff: float
    ) -> tuple[StepStats, Tensor]:
        sae, config, n_tokens, threshold = self.sae, self.config, len(targets), self.sae.threshold
        # Masks as numbers: each product would convert them again.
        on = (pre_acts > threshold).to(targets.dtype)
        latent_acts = pre_acts * on
        error = self.comm.decode(latent_acts, sae.W_dec, sae.b_dec).sub_(targets)
        reconstruction = torch.linalg.vecdot(error, error).mean()
        recons_grad = error.mul_(2.0 / n_tokens)
        dec_grad = latent_acts.T @ recons_grad
        acts_grad = recons_grad @ sae.W_dec.T  # ∂L/∂latent_acts
        # Where the estimate of ∂ 1[pre_acts > threshold] / ∂threshold is −1 / bandwidth.
        near = ((pre_acts - threshold).abs_() < self.bandwidth / 2).to(targets.dtype)
        n_fired = on.sum(0)
        l0 = self.comm.sum(n_fired.sum() / n_tokens)

        if config.jumprelu_penalty == "step":
            penalty, l0_grad = self._l0_penalty(l0)
            jumps = threshold * (acts_grad * near).sum(0) + coeff * l0_grad * near.sum(0)
            threshold_grad = jumps / -self.bandwidth
            pre_grad = acts_grad.mul_(on)
        else:
            norms = self.decoder_norms()
            tanh = (_TANH_SCALE * norms * latent_acts).tanh_()
            penalty = self.comm.sum(tanh.sum() / n_tokens)
            slope = (1 - tanh.square_()).mul_(_TANH_SCALE * coeff)  # of the penalty, in latent_acts · norm
            acts_grad += slope * norms
            threshold_grad = threshold * (acts_grad * near).sum(0) / -self.bandwidth
            pre_grad = acts_grad.mul_(on)

            pre_act_coeff = config.pre_act_coeff / n_tokens
            pre_grad -= pre_act_coeff * norms * (1 - on)
            threshold_grad += pre_act_coeff * norms * (n_tokens - n_fired)
            if not config.unit_decoder:
                below = (threshold - pre_acts).relu_()
                norm_grad = (slope * latent_acts).sum(0) + pre_act_coeff * below.sum(0)
                dec_grad += (norm_grad / norms)[:, None] * sae.W_dec

        self.log_threshold.grad = threshold_grad * threshold
        sae.b_enc.grad = pre_grad.sum(0)
        dec_grad = self.along_constraint(dec_grad)
        self.write_gradients(dec_grad, pre_grad.T @ inputs, sae.b_enc.grad, recons_grad.sum(0))
        self.write_skip_gradient(inputs, recons_grad)
        self.contract(n_fired, n_tokens)
        return StepStats(reconstruction, penalty, l0), n_fired > 0

    def after_update(self) -> None:
        super().after_update()
        self.sae.threshold.copy_(self.log_threshold.exp())

    def restart(self, latents: Tensor) -> None:
        super().restart(latents)
        self.sae.threshold[latents] = self.initial_threshold
        self.log_threshold[latents] = math.log(self.initial_threshold)

    def state(self) -> dict[str, Tensor]:
        return {"log_threshold": self.log_threshold.detach()}

    @torch.no_grad()
    def load_state(self, state: dict[str, Tensor]) -> None:
        self.log_threshold.copy_(state["log_threshold"])


KIND = JumpReLU
