"""How an SAE's weights lie: per latent, between encoder and decoder, and among the decoder's directions."""

from __future__ import annotations

import torch
from torch import Tensor

from saelens_lite.sae.autoencoder import SparseAutoencoder
from saelens_lite.sae.config import BIAS

ALL_PAIRS = 16_384
"""Up to so many latents all pairs are compared; of more, as many pairs as of so many."""
_CHUNK_VALUES, _BLOCK_ROWS = 2**24, 2**11


def encoder_decoder_cosine(sae: SparseAutoencoder) -> Tensor:
    """float32[d_sae], the cosine of each latent's encoder column with its decoder row; 0 where one of them is
    zero."""
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


def decoder_neighbors(sae: SparseAutoencoder, m: int, latents: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """The m latents whose decoder rows have the largest cosine with each latent's, largest first; not the
    latent itself.

    latents: int64[n], whose neighbours, by default all d_sae
    returns: ids int32[n m], -1 in places that fewer than m others leave empty, and cosines float32[n m]
    Costs one product of the decoder with itself, in blocks; nothing for m = 0.
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
            products = _unit(W_dec[rows]) @ _unit(W_dec[start : start + _CHUNK_VALUES // _BLOCK_ROWS]).T
            itself = (rows >= start) & (rows < start + products.shape[1])
            products[itself, rows[itself] - start] = -torch.inf
            rise = (products.amax(1) > values[:, -1]).nonzero()[:, 0]  # later blocks seldom have a nearer one
            best = products[rise].topk(min(m, products.shape[1]), dim=1)
            merged, ids_of = (
                torch.cat([values[rise], best.values], 1),
                torch.cat([found[rise], best.indices + start], 1),
            )
            kept = merged.topk(m, dim=1)
            values[rise], found[rise] = kept.values, ids_of.gather(1, kept.indices)
        there = values > -torch.inf
        ids[places], cosines[places] = (
            found.masked_fill(~there, -1).int().cpu(),
            values.masked_fill(~there, 0).cpu(),
        )
    return ids, cosines


def _unit(rows: Tensor) -> Tensor:
    return torch.nn.functional.normalize(rows.float(), dim=1)


def max_decoder_cosines(sae: SparseAutoencoder) -> Tensor:
    """The largest cosine of a latent's decoder row with another latent's, of near copies near 1.

    returns: float32[n]: of all latents up to ALL_PAIRS of them; of more, of ALL_PAIRS² / d_sae latents drawn
        at random (seed 0), each compared with all others. A zero row has cosine 0
    """
    unit = torch.nn.functional.normalize(sae.W_dec.detach().float(), dim=1)
    d_sae = len(unit)
    if d_sae < 2:
        return torch.empty(0)
    chosen = torch.arange(d_sae)
    if d_sae > ALL_PAIRS:
        chosen = torch.randperm(d_sae, generator=torch.Generator().manual_seed(0))[
            : max(1, ALL_PAIRS**2 // d_sae)
        ]
    largest = []
    for rows in chosen.split(max(1, _CHUNK_VALUES // d_sae)):
        cosines = unit[rows] @ unit.T
        cosines[torch.arange(len(rows)), rows] = -torch.inf
        largest.append(cosines.amax(1))
    return torch.cat(largest)
