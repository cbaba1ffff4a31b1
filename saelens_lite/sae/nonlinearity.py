"""How pre-activations become latents: one function per kind.

A new kind needs a function here, its parameters in config.py, its case in autoencoder.py and its name in
formats/.
"""

from __future__ import annotations

import torch
from torch import Tensor

from saelens_lite.kernels import dispatch as kernels
from saelens_lite.misfits import names_misfits
from saelens_lite.sae.latents import SparseLatents


def topk(products: Tensor, bias: Tensor, k: int) -> SparseLatents:
    """Keep the k largest pre-activations, products + bias, of each token, then apply ReLU.

    products: float[batch d_sae], may be overwritten; bias: float[d_sae]
    raises: ValueError unless 1 <= k <= d_sae
    source: Gao et al. 2024, arXiv:2406.04093. Negative survivors become zero, so l0 may be below k.
    """
    d_sae = products.shape[-1]
    if not 1 <= k <= d_sae:
        raise ValueError(f"topk expected 1 <= k <= d_sae={d_sae}, got k={k}")
    if torch.is_grad_enabled() and (products.requires_grad or bias.requires_grad):
        pre_acts = products + bias
        indices = kernels.select_topk(pre_acts.detach().clone(), torch.zeros_like(bias), k)[1]
        values = pre_acts.gather(1, indices)
    else:
        values, indices = kernels.select_topk(products, bias, k)
    return SparseLatents.from_topk(values.relu(), indices, d_sae)


def relu(pre_acts: Tensor) -> Tensor:
    """max(pre_acts, 0). source: Bricken et al. 2023, "Towards Monosemanticity"."""
    return pre_acts.relu()


def jumprelu(pre_acts: Tensor, threshold: Tensor) -> Tensor:
    """Pre-activations that are above both 0 and their latent's threshold, else 0.

    pre_acts: float[... d_sae]; threshold: float[d_sae]
    source: Rajamanoharan et al. 2024, arXiv:2407.14435
    """
    return pre_acts.relu() * (pre_acts > threshold)


def gated(gate: Tensor, magnitude: Tensor) -> Tensor:
    """ReLU(magnitude) where the gate is above 0, else 0; both float[... d_sae]: pre-activations.

    source: Rajamanoharan et al. 2024, arXiv:2404.16014
    """
    return magnitude.relu() * (gate > 0)


@names_misfits
def geometric_median(rows: Tensor, n_iterations: int = 50) -> Tensor:
    """The point with the least summed distance to `rows`, by Weiszfeld's iteration.

    rows: float[n d], n ≥ 1
    returns: float[d], where a decoder bias should start (Gao et al. 2024, appendix A.1)
    raises: ValueError for other rows
    """
    if not rows.is_floating_point() or rows.dim() != 2 or not len(rows):
        raise ValueError(f"geometric_median expected rows float[n d], got {rows.dtype} {list(rows.shape)}")
    guess = rows.mean(0)
    for _ in range(n_iterations):
        weights = 1 / (rows - guess).norm(dim=1).clamp_min(1e-8)
        moved = (weights @ rows) / weights.sum()
        done = (moved - guess).norm() <= 1e-6 * guess.norm()
        guess = moved
        if done:
            break
    return guess
