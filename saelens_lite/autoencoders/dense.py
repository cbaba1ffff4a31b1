"""One hidden layer, which is the code."""

from __future__ import annotations

import torch
from torch import Tensor

from .network import Network
from .penalties import rate_divergence


class Dense(Network):
    """The autoencoder that all others are told from.

        h = f(W x + b),  y = g(V h + c),  V = Wᵀ where `tied`
        loss = error(x, y) + weight_decay · (‖W‖² + ‖V‖²) + sparsity_coeff · Σ_j KL(ρ‖ρ̂_j)

    Linear, it learns the subspace of the first principal components (Bourlard & Kamp 1988; Baldi & Hornik
    1989). source: Rumelhart, Hinton & Williams 1986; of the last term, Ng 2011
    """

    def penalty(self, x: Tensor, codes: Tensor, generator: torch.Generator | None) -> Tensor:
        coeff = self.config.sparsity_coeff
        return coeff * rate_divergence(codes, self.config.sparsity_target) if coeff else x.new_zeros(())


KIND = Dense
