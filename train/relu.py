"""ReLU with an L1 penalty, the dense kind. Bricken et al. 2023, "Towards Monosemanticity"."""

from __future__ import annotations

import torch
from torch import Tensor

from saelens_lite import kernels

from .init import L1_ENCODER_SCALE
from .kinds import Kind
from .step import StepStats


class ReLU(Kind):
    """Five products a step, none for the input."""

    sae_kind = "relu"
    sparsity_name = "l1"
    encoder_scale = L1_ENCODER_SCALE

    def gradients(self, acts: Tensor, dead: Tensor | None, ramp: float) -> tuple[StepStats, Tensor]:
        """Of reconstruction + l1_coeff · L1."""
        sae, n_tokens = self.sae, len(acts)
        inputs = acts - sae.b_dec
        latent_acts = torch.addmm(sae.b_enc, inputs, sae.W_enc).relu_()
        error = torch.addmm(sae.b_dec, latent_acts, sae.W_dec).sub_(acts)
        reconstruction = torch.linalg.vecdot(error, error).mean()
        recons_grad = error.mul_(2.0 / n_tokens)

        # Signs are 0 or 1: they count firings and cut the gradient, and become that gradient in place.
        l1 = latent_acts.sum() / n_tokens
        dec_grad = latent_acts.T @ recons_grad
        signs = latent_acts.sign_()
        n_fired = signs.sum(0)
        pre_grad = (recons_grad @ sae.W_dec.T).add_(self.config.l1_coeff * ramp / n_tokens).mul_(signs)

        sae.W_dec.grad = kernels.remove_parallel(dec_grad, sae.W_dec) if self.train_decoder else None
        sae.W_enc.grad = (pre_grad.T @ inputs).T
        sae.b_enc.grad = pre_grad.sum(0)
        sae.b_dec.grad = recons_grad.sum(0) - sae.W_enc @ sae.b_enc.grad
        return StepStats(reconstruction, l1, n_fired.sum() / n_tokens), n_fired > 0


KIND = ReLU
