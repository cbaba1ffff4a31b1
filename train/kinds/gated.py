"""Gated: a gate decides which latents are on, apart from how strongly. Rajamanoharan et al. 2024.

arXiv:2404.16014. Gate and magnitude share W_enc up to exp(r_mag). The L1 penalty acts on the gate alone, so
magnitudes do not shrink; the gate learns from a reconstruction of its own, which does not train the decoder.
"""

from __future__ import annotations

import torch
from torch import Tensor

from saelens_lite.kernels import dispatch as kernels
from saelens_lite.kernels.reference import TokenPass

from .few_pairs import PairPlaces, few_pairs
from .kind import RESAMPLING_FIELDS, StepStats
from .l1 import L1, L1_FIELDS


class Gated(L1):
    """Dense products at first; the kernels once few gates are open."""

    sae_kind = "gated"
    fields = L1_FIELDS | RESAMPLING_FIELDS | {"target_l0"}
    not_end_to_end = "another one with end_to_end, which has no gradient for gates"

    def gradients(self, acts: Tensor, dead: Tensor | None, ramp: float) -> tuple[StepStats, Tensor]:
        """Of reconstruction + the gate's reconstruction + l1_coeff · L1 of the gate."""
        inputs = self.encoder_inputs(acts)
        products = inputs @ self.sae.W_enc
        gate = (products + self.sae.b_gate).relu_()
        pairs, l1_coeff = few_pairs(gate > 0), self.l1_coeff(ramp) / len(acts)
        if pairs is None:
            return self._dense(acts, inputs, products, gate, l1_coeff)
        return self._sparse(acts, inputs, products, gate, l1_coeff, pairs)

    def _sparse(
        self,
        acts: Tensor,
        inputs: Tensor,
        products: Tensor,
        gate: Tensor,
        l1_coeff: float | Tensor,
        pairs: PairPlaces,
    ) -> tuple[StepStats, Tensor]:
        """Over the pairs whose gate is open."""
        sae, (tokens, indices, offsets), n_tokens = self.sae, pairs, len(acts)
        products, gate, gain = products[tokens, indices], gate[tokens, indices], sae.r_mag.exp()
        values = (products * gain[indices] + sae.b_mag[indices]).relu_()

        def pass_over(values: Tensor) -> TokenPass:
            return self.comm.token_pass(
                acts, values, indices, sae.W_dec, sae.b_dec, 2.0 / n_tokens, offsets=offsets
            )

        recons_grad, value_grads, sq_error = pass_over(values)
        gate_recons_grad, gate_grads, _ = pass_over(gate)
        magnitude_grads = value_grads * (values > 0)
        dec_grad, enc_grad, product_grad, fired = kernels.latent_pass(
            recons_grad, inputs, values, magnitude_grads * gain[indices], indices, sae.W_dec, offsets=offsets
        )
        _, gate_enc_grad, sae.b_gate.grad, _ = kernels.latent_pass(
            gate_recons_grad, inputs, gate, gate_grads.add_(l1_coeff), indices, sae.W_dec, offsets=offsets
        )
        sae.b_mag.grad = torch.zeros_like(gain).index_add_(0, indices, magnitude_grads)
        sae.r_mag.grad = torch.zeros_like(gain).index_add_(0, indices, magnitude_grads * products) * gain
        enc_grad, product_grad = enc_grad + gate_enc_grad, product_grad + sae.b_gate.grad
        self.write_gradients(dec_grad, enc_grad, product_grad, recons_grad.sum(0))
        self.contract_pairs(values, indices, n_tokens)
        l1, l0 = gate.sum() / n_tokens, (values > 0).sum(dtype=acts.dtype) / n_tokens
        return StepStats(sq_error.mean(), self.comm.sum(l1), self.comm.sum(l0)), fired

    def _dense(
        self, acts: Tensor, inputs: Tensor, products: Tensor, gate: Tensor, l1_coeff: float | Tensor
    ) -> tuple[StepStats, Tensor]:
        sae, n_tokens, gain = self.sae, len(acts), self.sae.r_mag.exp()
        latent_acts = torch.addcmul(sae.b_mag, products, gain).relu_().mul_(gate > 0)
        error = self.comm.decode(latent_acts, sae.W_dec, sae.b_dec).sub_(acts)
        gate_error = self.comm.decode(gate, sae.W_dec, sae.b_dec).sub_(acts)
        reconstruction = torch.linalg.vecdot(error, error).mean()
        l1 = gate.sum() / n_tokens

        recons_grad = error.mul_(2.0 / n_tokens)
        dec_grad = self.along_constraint(latent_acts.T @ recons_grad)
        on = latent_acts.sign_()
        n_fired = on.sum(0)
        magnitude_grad = (recons_grad @ sae.W_dec.T).mul_(on)
        gate_grad = (gate_error.mul_(2.0 / n_tokens) @ sae.W_dec.T).add_(l1_coeff)
        gate_grad.mul_(gate.sign_())

        sae.b_mag.grad, sae.b_gate.grad = magnitude_grad.sum(0), gate_grad.sum(0)
        sae.r_mag.grad = (magnitude_grad * products).sum(0) * gain
        product_grad = gate_grad.addcmul_(magnitude_grad, gain)
        self.write_gradients(dec_grad, product_grad.T @ inputs, product_grad.sum(0), recons_grad.sum(0))
        self.contract(n_fired, n_tokens)
        l0 = n_fired.sum() / n_tokens
        return StepStats(reconstruction, self.comm.sum(l1), self.comm.sum(l0)), n_fired > 0


KIND = Gated
