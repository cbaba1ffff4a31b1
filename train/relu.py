"""ReLU with an L1 penalty, the dense kind. Bricken et al. 2023, "Towards Monosemanticity"; Anthropic, April 2024."""

from __future__ import annotations

import torch
from torch import Tensor

from .init import L1_ENCODER_SCALE
from .kinds import Kind
from .step import StepStats, write_gradients


class ReLU(Kind):
    """Five products a step, none for the input."""

    sae_kind = "relu"
    sparsity_name = "l1"
    encoder_scale = L1_ENCODER_SCALE

    def gradients(self, acts: Tensor, dead: Tensor | None, ramp: float) -> tuple[StepStats, Tensor]:
        """Of reconstruction + l1_coeff · Σ latent_acts · norm of the decoder row, which is 1 unless norms are free."""
        sae, n_tokens = self.sae, len(acts)
        inputs = acts - sae.b_dec
        latent_acts = torch.addmm(sae.b_enc, inputs, sae.W_enc).relu_()
        error = torch.addmm(sae.b_dec, latent_acts, sae.W_dec).sub_(acts)
        reconstruction = torch.linalg.vecdot(error, error).mean()
        recons_grad = error.mul_(2.0 / n_tokens)

        # Signs are 0 or 1: they count firings and cut the gradient, and become that gradient in place.
        norms, l1_coeff = self.decoder_norms(), self.config.l1_coeff * ramp / n_tokens
        l1 = (latent_acts.sum() if self.config.unit_decoder else (latent_acts.sum(0) * norms).sum()) / n_tokens
        dec_grad = latent_acts.T @ recons_grad
        if not self.config.unit_decoder:
            dec_grad += l1_coeff * (latent_acts.sum(0) / norms)[:, None] * sae.W_dec
        signs = latent_acts.sign_()
        n_fired = signs.sum(0)
        pre_grad = (recons_grad @ sae.W_dec.T).add_(l1_coeff * norms).mul_(signs)

        sae.b_enc.grad = pre_grad.sum(0)
        dec_grad = self.along_constraint(dec_grad)
        write_gradients(
            sae, dec_grad, pre_grad.T @ inputs, sae.b_enc.grad, recons_grad.sum(0), train_decoder=self.train_decoder
        )
        return StepStats(reconstruction, l1, n_fired.sum() / n_tokens), n_fired > 0


KIND = ReLU
