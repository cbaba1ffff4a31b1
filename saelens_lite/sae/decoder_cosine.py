"""How much decoder rows lean on each other: the mean |cosine| of pairs, which tells where l0 mixes features.

An SAE with fewer latents a token than there are features, or with more, mixes features that fire together,
and its decoder rows lean on each other. Where the features are nearly orthogonal the mean is least at their
own number a token. source: Chanin and Garriga-Alonso 2025, "Sparse but Wrong", arXiv:2508.16560 (c_dec there)
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from saelens_lite.misfits import names_misfits

ALL_PAIRS = 16_384
"""Rows of which all pairs are compared; of more, so many are drawn (seed 0)."""
_CHUNK_ROWS = 1024


@names_misfits
@torch.no_grad()
def mean_decoder_cosine(W_dec: Tensor, fires: Tensor | None = None) -> float:
    """The mean |cosine| over all pairs of different rows; nan with less than two.

    W_dec: float[d_sae d_model]; rows of zero are left out
    fires: bool[d_sae], rows to compare, as those of dead latents are random; None for all
    raises: ValueError for another shape
    """
    if W_dec.ndim != 2 or (fires is not None and fires.shape != W_dec.shape[:1]):
        got = [list(W_dec.shape), *([] if fires is None else [list(fires.shape)])]
        raise ValueError(f"expected W_dec[d_sae d_model] and fires[d_sae], got {got}")
    rows = W_dec if fires is None else W_dec[fires.to(W_dec.device)]
    rows = rows[rows.any(1)].float()
    if len(rows) > ALL_PAIRS:
        drawn = torch.randperm(len(rows), generator=torch.Generator().manual_seed(0))[:ALL_PAIRS]
        rows = rows[drawn.to(rows.device)]
    n = len(rows)
    if n < 2:
        return math.nan
    units = torch.nn.functional.normalize(rows, dim=1)
    total = sum((part @ units.T).abs().sum().item() for part in units.split(_CHUNK_ROWS))
    return (total - n) / (n * (n - 1))
