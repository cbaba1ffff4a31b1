"""Codes without the latents that the others make up for: leave-one-out scores of firing latents.

With x̂ = b_dec + Σⱼ zⱼ dⱼ, leaving latent i out adds ‖zᵢ dᵢ‖² + 2 zᵢ ⟨x − x̂, dᵢ⟩ to the squared error. Its
score is sᵢ = ⟨x − x̂, dᵢ⟩ / ‖dᵢ‖ + zᵢ ‖dᵢ‖, how far the rest of the reconstruction falls short of x along dᵢ:
about zᵢ ‖dᵢ‖ where the latent explains a part of its own, near 0 where others explain it. All latents of a
token are judged at once, in one round.
"""

from __future__ import annotations

import torch
from torch import Tensor

from saelens_lite.kernels import dispatch as kernels
from saelens_lite.sae.latents import SparseLatents


@torch.no_grad()
def leave_one_out(normalized: Tensor, latents: SparseLatents, W_dec: Tensor, b_dec: Tensor) -> Tensor:
    """sᵢ of each pair: float[nnz].

    normalized: float[batch d_model], in the SAE's own scale; latents: of these rows
    """
    values, indices, offsets = latents.values.detach(), latents.indices, latents.offsets
    if latents.k is not None:
        (values, indices), offsets = (part.view(latents.batch, latents.k) for part in (values, indices)), None
    passed = kernels.token_pass(
        normalized, values, indices, W_dec.detach(), b_dec.detach(), -1.0, None, offsets
    )
    norms = torch.linalg.vector_norm(W_dec, dim=1)[latents.indices]
    along = passed.pair_grads.view(-1)  # ⟨x − x̂, dᵢ⟩: the gradient of −½ ‖x̂ − x‖² by zᵢ
    return along / norms.clamp_min(torch.finfo(norms.dtype).tiny) + latents.values.detach() * norms


def pruned(
    normalized: Tensor, latents: SparseLatents, W_dec: Tensor, b_dec: Tensor, tau: float
) -> SparseLatents:
    """The same pairs, the value 0 where the score is not above tau; the choice has no gradient."""
    keep = leave_one_out(normalized, latents, W_dec, b_dec) > tau
    return latents.with_values(latents.values * keep)
