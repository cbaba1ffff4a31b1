"""TODO clause of train/optimise/fold.py."""

from __future__ import annotations

import torch

from saelens_lite.sae.autoencoder import SparseAutoencoder


@torch.no_grad()
def fold_scale(sae: SparseAutoencoder, scale: float) -> SparseAutoencoder:
    """The SAE that does to x what `sae` does to scale · x, in x's own units.

    Activations are homogeneous in (x, biases, thresholds), so only those are divided; directions stay as they
    are.
    """
    folded = SparseAutoencoder(sae.config).to(sae.device)
    for name, of in sae.config.parameters.items():
        parameter = sae.get_parameter(name)
        folded.get_parameter(name).copy_(parameter / scale if of.in_units_of_acts else parameter)
    return folded


@torch.no_grad()
def fold_decoder_norms_(sae: SparseAutoencoder) -> SparseAutoencoder:
    """Bring decoder rows to norm 1 and let the latents carry the norms, in place; what the SAE computes stays
    the same."""
    norms = torch.linalg.vector_norm(sae.W_dec, dim=1).clamp_min(torch.finfo(sae.dtype).tiny)
    sae.W_dec.div_(norms[:, None])
    sae.W_enc.mul_(norms)
    for name, of in sae.config.parameters.items():
        if of.of_latents and of.in_units_of_acts:
            sae.get_parameter(name).mul_(norms)
    return sae
