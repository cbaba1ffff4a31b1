"""γ, how large the common mean of rows is against their spread: what tells of latents dead from the start."""

from __future__ import annotations

import math

from torch import Tensor


def mean_to_spread(mean_sq_norm: float, mean: Tensor) -> float:
    """γ = ‖μ‖ / ‖σ‖ with ‖σ‖² the mean squared distance of rows from their mean μ; inf where all are alike.

    mean_sq_norm: of the rows, about 0; mean: float64[d_model]
    It predicts the share of latents that are dead at the start where b_dec is 0: the encoder then sees little
    but the mean, on which each latent is on for all rows or for none.
    source: arXiv:2605.31518
    """
    square = float(mean.square().sum())
    spread = mean_sq_norm - square
    return math.sqrt(square / spread) if spread > 0 else math.inf
