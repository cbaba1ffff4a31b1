"""What losses of autoencoders add to the error: contraction, sparse codes, decay of weights.

The contraction of an SAE, whose gradient is written by hand, is in train/kinds/contraction.py; a test holds
the two to one number.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import Tensor


def contraction(codes: Tensor, weights: Tensor, activation: str) -> Tensor:
    """‖∂codes/∂x‖² of each row, exact for one layer codes = f(x Wᵀ + b): Σ_j f′_j² ‖w_j‖².

    codes: float[n code_size]; weights: float[code_size d_model]; returns: float[n]
    source: Rifai et al. 2011, "Contractive Auto-Encoders"; f′ = h(1 − h) for sigmoid, 1[h > 0] for relu
    """
    slopes = {
        "sigmoid": codes * (1 - codes),
        "relu": (codes > 0).to(codes),
        "linear": torch.ones_like(codes),
    }[activation]
    return slopes.square() @ weights.square().sum(1)


def estimated_contraction(
    encode: Callable[[Tensor], Tensor], x: Tensor, generator: torch.Generator | None
) -> Tensor:
    """An unbiased estimate of ‖∂codes/∂x‖² of each row: ‖vᵀ J‖² with v ~ N(0, I), float[n].

    encode: float[n d_model] to codes float[n code_size], each row by itself
    source: Hutchinson 1990, "A stochastic estimator of the trace"; E ‖vᵀJ‖² = tr(JJᵀ)
    """
    keeps_graph = torch.is_grad_enabled()
    with torch.enable_grad():
        x = x if x.requires_grad else x.detach().requires_grad_()
        codes = encode(x)
        v = torch.empty_like(codes).normal_(generator=generator)
        (product,) = torch.autograd.grad(codes, x, v, create_graph=keeps_graph)
    return product.square().sum(1)


def rate_divergence(codes: Tensor, target: float) -> Tensor:
    """Σ_j KL(ρ‖ρ̂_j) of sigmoid codes float[n code_size], ρ̂_j their mean over rows; in nats, float[""].

    source: Ng 2011, "Sparse autoencoder", CS294A lecture notes
    """
    rates = codes.mean(0).clamp(1e-7, 1 - 1e-7)
    rho = rates.new_tensor(target)
    return (rho * (rho / rates).log() + (1 - rho) * ((1 - rho) / (1 - rates)).log()).sum()


def normal_divergence(mean: Tensor, log_var: Tensor) -> Tensor:
    """KL(N(mean, exp log_var) ‖ N(0, 1)) of each unit, in nats: ½(mean² + var − 1 − log var).

    source: Kingma & Welling 2014, appendix B
    """
    return 0.5 * (mean.square() + log_var.exp() - 1 - log_var)


def decay(weights: Iterable[Tensor], like: Tensor) -> Tensor:
    """The sum of squared weights, float[""]."""
    return sum((weight.square().sum() for weight in weights), like.new_zeros(()))
