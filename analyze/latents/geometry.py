"""How an SAE's weights lie: encoder against decoder, norms and biases, and decoder rows among each other."""

from __future__ import annotations

import torch
from torch import Tensor

from saelens_lite.arguments import takes_folders
from saelens_lite.misfits import names_misfits
from saelens_lite.sae.autoencoder import SparseAutoencoder
from saelens_lite.sae.config import BIAS

from .direction_pairing import unit

ALL_PAIRS = 16_384
"""Up to this many latents all pairs are compared; beyond, as many pairs as this many latents have."""
_CHUNK_VALUES, _BLOCK_ROWS = 2**24, 2**11


@takes_folders
@names_misfits
def encoder_decoder_cosine(sae: SparseAutoencoder) -> Tensor:
    """Cosine of each latent's encoder column with its decoder row, float32[d_sae]; 0 if either is zero."""
    with torch.no_grad():
        return torch.cosine_similarity(sae.W_enc.T.float(), sae.W_dec.float(), dim=1)


def decoder_norms(sae: SparseAutoencoder) -> Tensor:
    """float32[d_sae], ‖W_dec[i]‖."""
    return sae.W_dec.detach().float().norm(dim=1)


def encoder_biases(sae: SparseAutoencoder) -> dict[str, Tensor]:
    """b_enc, or b_gate and b_mag of a gated SAE, by name: float32[d_sae]."""
    return {
        name: sae.get_parameter(name).detach().float()
        for name, of in sae.config.parameters.items()
        if of.of_latents and of.role == BIAS
    }


@takes_folders
@names_misfits
def decoder_neighbors(sae: SparseAutoencoder, m: int, latents: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """The m other latents whose decoder rows have the largest cosine with each latent's, largest first.

    latents: int64[n], by default all d_sae
    returns: ids int32[n m], -1 where fewer than m others exist, and cosines float32[n m]
    """
    W_dec = sae.W_dec.detach()
    chosen = torch.arange(len(W_dec)) if latents is None else latents
    ids, cosines = torch.full((len(chosen), m), -1, dtype=torch.int32), torch.zeros(len(chosen), m)
    for first in range(0, len(chosen) if m else 0, _BLOCK_ROWS):
        places = slice(first, first + _BLOCK_ROWS)
        rows = chosen[places].to(W_dec.device)
        values = torch.full((len(rows), m), -torch.inf, device=W_dec.device)
        found = torch.full((len(rows), m), -1, device=W_dec.device)
        for start in range(0, len(W_dec), _CHUNK_VALUES // _BLOCK_ROWS):
            products = unit(W_dec[rows]) @ unit(W_dec[start : start + _CHUNK_VALUES // _BLOCK_ROWS]).T
            itself = (rows >= start) & (rows < start + products.shape[1])
            products[itself, rows[itself] - start] = -torch.inf
            rise = (products.amax(1) > values[:, -1]).nonzero()[:, 0]  # later blocks seldom have a nearer one
            best = products[rise].topk(min(m, products.shape[1]), dim=1)
            merged = torch.cat([values[rise], best.values], 1)
            ids_of = torch.cat([found[rise], best.indices + start], 1)
            kept = merged.topk(m, dim=1)
            values[rise], found[rise] = kept.values, ids_of.gather(1, kept.indices)
        absent = ~(values > -torch.inf)
        ids[places] = found.masked_fill(absent, -1).int().cpu()
        cosines[places] = values.masked_fill(absent, 0).cpu()
    return ids, cosines


def max_decoder_cosines(sae: SparseAutoencoder) -> Tensor:
    """The largest cosine of a latent's decoder row with another's; near 1 for near copies.

    returns: float32[n], of all latents up to ALL_PAIRS of them, else of ALL_PAIRS² / d_sae drawn at random
        (seed 0), each compared with all others; a zero row has cosine 0
    """
    directions = unit(sae.W_dec)
    d_sae = len(directions)
    if d_sae < 2:
        return torch.empty(0)
    chosen = torch.arange(d_sae)
    if d_sae > ALL_PAIRS:
        drawn = torch.randperm(d_sae, generator=torch.Generator().manual_seed(0))
        chosen = drawn[: max(1, ALL_PAIRS**2 // d_sae)]
    largest = []
    for rows in chosen.split(max(1, _CHUNK_VALUES // d_sae)):
        cosines = directions[rows] @ directions.T
        cosines[torch.arange(len(rows)), rows] = -torch.inf
        largest.append(cosines.amax(1))
    return torch.cat(largest)
