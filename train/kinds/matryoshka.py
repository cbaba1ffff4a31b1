"""Matryoshka BatchTopK: nested prefixes of the dictionary, each of which has to reconstruct alone.

Bussmann et al. 2025, arXiv:2503.17547: early latents cannot leave the general to later, more specific ones,
so that features are absorbed less. With prefixes 0 … J − 1, prefix j ending at latent widths[j], and e_j the
error of its reconstruction, the loss is Σ_j ‖e_j‖², and a latent that enters at prefix j gets its gradient
from Σ_{i ≥ j} e_i.
"""

from __future__ import annotations

import torch
from torch import Tensor

from saelens_lite.kernels.reference import token_ids
from saelens_lite.sae.autoencoder import SparseAutoencoder

from ..comm import ALONE, Alone
from ..config import LEFT_OPEN, TrainConfig
from .auxk import add_auxk
from .batchtopk import BatchTopK
from .kind import StepStats
from .workspace import Pairs


class Matryoshka(BatchTopK):
    """BatchTopK's selection, in which each token has a bag of pairs for the latents that a prefix adds."""

    fields = BatchTopK.fields | {"matryoshka_fractions"}
    not_end_to_end = "batchtopk with end_to_end, for which prefixes do not count"
    encoder_scale = 1.0
    """Bussmann et al. 2025; a smaller one, as for batchtopk, was not measured."""

    def __init__(self, sae: SparseAutoencoder, config: TrainConfig, comm: Alone = ALONE) -> None:
        super().__init__(sae, config, comm)
        fractions = config.matryoshka_fractions or LEFT_OPEN["matryoshka_fractions"]
        widths = [round(fraction * self.d_sae) for fraction in fractions]
        if sorted({0, *widths}) != [0, *widths]:
            raise ValueError(
                f"TrainConfig.matryoshka_fractions expected prefixes that grow, got {widths} of {self.d_sae} "
                "latents: leave out the smallest or widen the dictionary"
            )
        self.widths = torch.tensor(widths, device=sae.device)

    @classmethod
    def check(cls, config: TrainConfig) -> None:
        super().check(config)
        shares = config.matryoshka_fractions
        ascending = list(shares) == sorted(set(shares)) and bool(shares) and shares[0] > 0 and shares[-1] == 1
        config.expect(ascending, "matryoshka_fractions", "shares that ascend from above 0 to 1")

    def gradients(self, acts: Tensor, dead: Tensor | None, ramp: float) -> tuple[StepStats, Tensor]:
        """Of the sum over prefixes of their reconstructions + aux_coeff · AuxK on the whole error."""
        sae, work, scale = self.sae, self.workspace, 2.0 / len(acts)
        work.fit(acts, sae)
        inputs = self.encoder_inputs(acts, work.inputs)
        values, indices, offsets = self.select(inputs)
        work.pass_over(acts, inputs, Pairs(values, indices, self._nested(indices, offsets)), sae, scale)
        by_prefix = work.tokens.recons_grad.view(len(acts), len(self.widths), -1)
        auxk = add_auxk(self, inputs, by_prefix[:, -1] / -scale, dead, work.latents)
        self.write(work.latents, by_prefix[:, 0].sum(0))
        self.contract_pairs(values, indices, len(acts))
        l0 = self.comm.sum((values > 0).sum(dtype=acts.dtype)) / len(acts)
        return StepStats(work.tokens.sq_error.mean(), auxk, l0), work.latents.fired

    def _nested(self, indices: Tensor, offsets: Tensor) -> Tensor:
        """int64[J·B + 1], of the bags (token, prefix) of J prefixes; pairs are ordered by (token, latent)."""
        n_prefixes, widths = len(self.widths), self.widths - self.comm.first_latent(self.sae)
        bags = token_ids(offsets, len(indices)) * n_prefixes + torch.bucketize(indices, widths, right=True)
        return torch.searchsorted(bags, torch.arange((len(offsets) - 1) * n_prefixes + 1, device=bags.device))


KIND = Matryoshka
