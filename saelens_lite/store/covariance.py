"""Mean and covariance of rows, in float64, the same however rows are cut into blocks."""

from __future__ import annotations

import torch
from torch import Tensor

from saelens_lite.device import in_float64


class Covariance:
    """The scatter Σ (x − x̄)(x − x̄)ᵀ about the running mean, merged exactly.

    n: rows so far; mean: float64[d]; scatter: float64[d d]; on the CPU
    source: Chan, Golub & LeVeque 1983, "Algorithms for computing the sample variance"
    """

    def __init__(self, d: int) -> None:
        self.n, self.mean = 0, torch.zeros(d, dtype=torch.float64)
        self.scatter = torch.zeros(d, d, dtype=torch.float64)

    def update(self, rows: Tensor) -> None:
        """Add rows float[n d]."""
        x = in_float64(rows)
        n, mean = len(x), x.mean(0)
        centred = x - mean
        shift, whole = mean.cpu() - self.mean, self.n + n
        self.scatter += (centred.T @ centred).cpu() + torch.outer(shift, shift) * (self.n * n / whole)
        self.mean += shift * (n / whole)
        self.n = whole

    @property
    def covariance(self) -> Tensor:
        """float64[d d], divisor n − 1."""
        return self.scatter / max(1, self.n - 1)
