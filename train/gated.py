"""Gated: which latents are on is decided apart from how strongly. Rajamanoharan et al. 2024, arXiv:2404.16014.

Gate and magnitude share W_enc up to exp(r_mag). The L1 penalty acts on the gate alone, so magnitudes do not shrink; the gate
learns from a reconstruction of its own, through a decoder that this reconstruction does not train.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .init import L1_ENCODER_SCALE
from .kinds import Kind
from .step import StepStats, write_gradients


class Gated(Kind):
    """Dense in all latents, for L1 leaves many on."""

    sae_kind = "gated"
    sparsity_name = "l1"
    encoder_scale = L1_ENCODER_SCALE

    def gradients(self, acts: Tensor, dead: Tensor | None, ramp: float) -> tuple[StepStats, Tensor]:
        """Of reconstruction + the gate's reconstruction + l1_coeff · L1 of the gate."""
        sae, n_tokens = self.sae, len(acts)
        inputs = acts - sae.b_dec
        products = inputs @ sae.W_enc
        gate = (products + sae.b_gate).relu_()
        gain = sae.r_mag.exp()
        latent_acts = torch.addcmul(sae.b_mag, products, gain).relu_().mul_(gate > 0)
        error = torch.addmm(sae.b_dec, latent_acts, sae.W_dec).sub_(acts)
        gate_error = torch.addmm(sae.b_dec, gate, sae.W_dec).sub_(acts)
        reconstruction = torch.linalg.vecdot(error, error).mean()
        l1 = gate.sum() / n_tokens

        recons_grad = error.mul_(2.0 / n_tokens)
        dec_grad = self.along_constraint(latent_acts.T @ recons_grad)
        on = latent_acts.sign_()
        n_fired = on.sum(0)
        magnitude_grad = (recons_grad @ sae.W_dec.T).mul_(on)
        gate_grad = (gate_error.mul_(2.0 / n_tokens) @ sae.W_dec.T).add_(self.config.l1_coeff * ramp / n_tokens)
        gate_grad.mul_(gate.sign_())

        sae.b_mag.grad, sae.b_gate.grad = magnitude_grad.sum(0), gate_grad.sum(0)
        sae.r_mag.grad = (magnitude_grad * products).sum(0) * gain
        product_grad = gate_grad.addcmul_(magnitude_grad, gain)
        write_gradients(
            sae, dec_grad, product_grad.T @ inputs, product_grad.sum(0), recons_grad.sum(0), train_decoder=self.train_decoder
        )
        return StepStats(reconstruction, l1, n_fired.sum() / n_tokens), n_fired > 0


KIND = Gated
