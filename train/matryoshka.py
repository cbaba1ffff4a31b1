"""Matryoshka BatchTopK: nested prefixes of the dictionary, each of which has to reconstruct alone.

Bussmann et al. 2025, arXiv:2503.17547: early latents cannot leave the general to later, more specific ones, so that features
are absorbed less. With prefixes 0 … J − 1, prefix j ending at latent widths[j], and e_j the error of its reconstruction, the
loss is Σ_j ‖e_j‖², and a latent that enters at prefix j gets its gradient from Σ_{i ≥ j} e_i.
"""

from __future__ import annotations

import torch
from torch import Tensor

from saelens_lite import kernels
from saelens_lite.kernels.reference import token_ids
from saelens_lite.sae import SparseAutoencoder

from .batchtopk import BatchTopK
from .config import TrainConfig
from .step import StepStats, add_auxk


class Matryoshka(BatchTopK):
    """BatchTopK's selection; the latents by which a prefix exceeds the one before are a bag of their own for each token."""

    def __init__(self, sae: SparseAutoencoder, config: TrainConfig) -> None:
        super().__init__(sae, config)
        widths = [round(fraction * sae.d_sae) for fraction in config.matryoshka_fractions]
        if sorted({0, *widths}) != [0, *widths]:
            raise ValueError(
                f"TrainConfig.matryoshka_fractions expected prefixes that grow, got {widths} of {sae.d_sae} latents: "
                "leave out the smallest or widen the dictionary"
            )
        self.widths = torch.tensor(widths, device=sae.device)

    def gradients(self, acts: Tensor, dead: Tensor | None, ramp: float) -> tuple[StepStats, Tensor]:
        """Of the reconstructions of all prefixes, summed, + aux_coeff · AuxK on the error of the whole dictionary."""
        sae, work, n_tokens, n_prefixes = self.sae, self.workspace, len(acts), len(self.widths)
        work.fit(acts, sae)
        inputs = torch.sub(acts, sae.b_dec, out=work.inputs)
        values, indices, offsets = self.select(inputs)

        # Pairs ascend by token and latent, so they ascend by (token, prefix) too.
        prefixes = torch.bucketize(indices, self.widths, right=True)
        bags = token_ids(offsets, len(values)) * n_prefixes + prefixes
        offsets = torch.searchsorted(bags, torch.arange(n_tokens * n_prefixes + 1, device=bags.device))
        parts = kernels.decode(values, indices, offsets, sae.W_dec).view(n_tokens, n_prefixes, -1)
        errors = parts.cumsum(1).sub_(inputs[:, None])  # b_dec is in no part and left out of the inputs: the same
        recons_grads = errors.flip(1).cumsum(1).flip(1).mul_(2.0 / n_tokens)

        bag_grads = recons_grads.flatten(0, 1)
        pair_grads = _dot_with_rows(bag_grads, values, indices, offsets, sae.W_dec)
        bag_inputs = inputs.repeat_interleave(n_prefixes, 0)
        work.latents = kernels.latent_pass(
            bag_grads, bag_inputs, values, pair_grads, indices, sae.W_dec, work.latents, offsets
        )
        error = errors[:, -1]
        auxk = add_auxk(sae, inputs, -error, dead, work.latents, self.config)
        self.write(work.latents, recons_grads[:, 0].sum(0))
        l0 = (values > 0).sum() / n_tokens
        return StepStats(error.square().sum(1).mean(), auxk, l0), work.latents.fired


def _dot_with_rows(bag_grads: Tensor, values: Tensor, indices: Tensor, offsets: Tensor, W_dec: Tensor) -> Tensor:
    """bag_grads[bag of p] · W_dec[indices[p]] for every pair p; float[P].

    That is the token pass whose reconstruction is 0 and whose error is bag_grads.
    """
    nothing = W_dec.new_zeros(W_dec.shape[1])
    return kernels.token_pass(-bag_grads, torch.zeros_like(values), indices, W_dec, nothing, 1.0, None, offsets).pair_grads


KIND = Matryoshka
