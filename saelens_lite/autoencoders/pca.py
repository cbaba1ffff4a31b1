"""Principal components: the best linear code of each size, and the reference of all others."""

from __future__ import annotations

import torch
from torch import Tensor

from .autoencoder import Autoencoder
from .fields import Relative, refuse


class PCA(Autoencoder):
    """Projection on the eigenvectors of the rows' covariance with the largest eigenvalues.

        codes = U (x − mean),  recons = Uᵀ codes + mean

    No linear map back from as many codes leaves a smaller squared error (Eckart & Young 1936; Bourlard & Kamp
    1988). Nothing is learnt by gradients: training sums the covariance (train/autoencoders/pca.py).
    shift: the rows' mean; scale: 1
    components: float[code_size d_model], orthonormal rows, the entry of largest size of each positive
    variances: float[d_model], all eigenvalues of the covariance (divisor n − 1), descending
    """

    components: Tensor
    variances: Tensor

    def __init__(self, config: Relative, d_model: int, shape: tuple[int, ...] | None = None) -> None:
        super().__init__(config, d_model, shape)
        if config.code_size > d_model:
            refuse(config, "code_size", f"at most {d_model}, the width of a row, for pca")
        self.register_buffer("components", torch.eye(config.code_size, d_model))
        self.register_buffer("variances", torch.zeros(d_model))

    def code(self, x: Tensor) -> Tensor:
        return x @ self.components.T

    def reconstruct(self, codes: Tensor) -> Tensor:
        return codes @ self.components

    def fvu_curve(self) -> Tensor:
        """float64[d_model + 1]: fvu on the rows trained on with 0, 1, … d_model components."""
        variances = self.variances.double()
        left = variances.sum() - torch.cat([variances.new_zeros(1), variances.cumsum(0)])
        return left.clamp_min(0) / variances.sum()

    @torch.no_grad()
    def fit_(self, mean: Tensor, covariance: Tensor) -> None:
        """Set mean and components; mean: float64[d_model], covariance: float64[d_model d_model]"""
        variances, vectors = torch.linalg.eigh(covariance)
        rows = vectors.T.flip(0)
        largest = rows.gather(1, rows.abs().argmax(1, keepdim=True))
        self.components.copy_((rows * largest.sign())[: self.code_size])
        self.variances.copy_(variances.flip(0).clamp_min(0))
        self.shift.copy_(mean)


KIND = PCA
