"""ReLU with an L1 penalty. Bricken et al. 2023, "Towards Monosemanticity"; Anthropic, April 2024."""

from __future__ import annotations

import torch
from torch import Tensor

from saelens_lite.kernels import dispatch as kernels

from .few_pairs import PairPlaces, few_pairs
from .kind import RESAMPLING_FIELDS, StepStats
from .l1 import L1, L1_FIELDS


class ReLU(L1):
    """Dense products at first, five a step; the kernels once few latents are on."""

    sae_kind = "relu"
    fields = L1_FIELDS | RESAMPLING_FIELDS | {"unit_decoder", "refit_fraction", "target_l0"}
    refit_fraction = 0.2

    def gradients(self, acts: Tensor, dead: Tensor | None, ramp: float) -> tuple[StepStats, Tensor]:
        """Of reconstruction + l1_coeff · Σ latent_acts · decoder norm, which is 1 unless norms are free."""
        inputs = self.encoder_inputs(acts)
        latent_acts = torch.addmm(self.sae.b_enc, inputs, self.sae.W_enc).relu_()
        pairs = few_pairs(latent_acts > 0) if self.config.unit_decoder else None
        l1_coeff = self.l1_coeff(ramp) / len(acts)
        if pairs is None:
            return self._dense(acts, inputs, latent_acts, l1_coeff)
        return self._sparse(acts, inputs, latent_acts, l1_coeff, pairs)

    def _sparse(
        self, acts: Tensor, inputs: Tensor, latent_acts: Tensor, l1_coeff: float | Tensor, pairs: PairPlaces
    ) -> tuple[StepStats, Tensor]:
        sae, (tokens, indices, offsets), n_tokens = self.sae, pairs, len(acts)
        values = latent_acts[tokens, indices]
        recons_grad, pair_grads, sq_error = self.comm.token_pass(
            acts, values, indices, sae.W_dec, sae.b_dec, 2.0 / n_tokens, offsets=offsets
        )
        dec_grad, enc_grad, sae.b_enc.grad, fired = kernels.latent_pass(
            recons_grad, inputs, values, pair_grads.add_(l1_coeff), indices, sae.W_dec, offsets=offsets
        )
        self.write_gradients(dec_grad, enc_grad, sae.b_enc.grad, recons_grad.sum(0))
        self.contract_pairs(values, indices, n_tokens)
        l1, l0 = values.sum() / n_tokens, acts.new_tensor(len(values) / n_tokens)
        return StepStats(sq_error.mean(), self.comm.sum(l1), self.comm.sum(l0)), fired

    def _dense(
        self, acts: Tensor, inputs: Tensor, latent_acts: Tensor, l1_coeff: float | Tensor
    ) -> tuple[StepStats, Tensor]:
        sae, n_tokens = self.sae, len(acts)
        error = self.comm.decode(latent_acts, sae.W_dec, sae.b_dec).sub_(acts)
        reconstruction = torch.linalg.vecdot(error, error).mean()
        recons_grad = error.mul_(2.0 / n_tokens)

        # Signs are 0 or 1: they count firings and cut the gradient, and become that gradient in place.
        norms = self.decoder_norms()
        l1 = latent_acts.sum() if self.config.unit_decoder else (latent_acts.sum(0) * norms).sum()
        dec_grad = latent_acts.T @ recons_grad
        if not self.config.unit_decoder:
            dec_grad += l1_coeff * (latent_acts.sum(0) / norms)[:, None] * sae.W_dec
        signs = latent_acts.sign_()
        n_fired = signs.sum(0)
        pre_grad = (recons_grad @ sae.W_dec.T).add_(l1_coeff * norms).mul_(signs)

        sae.b_enc.grad = pre_grad.sum(0)
        dec_grad = self.along_constraint(dec_grad)
        self.write_gradients(dec_grad, pre_grad.T @ inputs, sae.b_enc.grad, recons_grad.sum(0))
        self.contract(n_fired, n_tokens)
        l1, l0 = l1 / n_tokens, n_fired.sum() / n_tokens
        return StepStats(reconstruction, self.comm.sum(l1), self.comm.sum(l0)), n_fired > 0


KIND = ReLU
