"""When a dense kind turns to the sparse kernels: as soon as few of its latents are on."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

SPARSE_BELOW = {"cpu": 1 / 16, "cuda": 1 / 48, "cuda tf32": 1 / 256}
"""Share of latents on below which a dense kind turns to the kernels, by device; "cuda tf32" where torch may
multiply float32 in tf32.

cpu: measured. On a core four dense products take as long as the kernels at 0.1 (d_model 192 and 512), four to
six times as long at 0.01.
cuda: by arithmetic, on an H100, not measured. A dense product of one token takes 2 n d / R s, a gather of its
k float32 rows 4 k d / (0.7 · 3.35e12) s: equal at k/n = 1.2e12 / R. R is about 5e13 in float32 and 3e14 in
tf32.
"""
_SPARSE_BELOW_ELSEWHERE = 1 / 256


class PairPlaces(NamedTuple):
    """Tokens int64[P] and latents int64[P] of ragged pairs, with offsets int64[B + 1]."""

    tokens: Tensor
    indices: Tensor
    offsets: Tensor


def few_pairs(mask: Tensor) -> PairPlaces | None:
    """The pairs where bool[B d_sae] is set; None where they are so many that dense products are faster."""
    if not mask.numel():
        return None
    device = mask.device.type
    if device == "cuda" and torch.get_float32_matmul_precision() != "highest":
        device = "cuda tf32"
    if int(mask.count_nonzero()) > SPARSE_BELOW.get(device, _SPARSE_BELOW_ELSEWHERE) * mask.numel():
        return None
    return pairs_of(mask)


def pairs_of(mask: Tensor) -> PairPlaces:
    """The pairs where bool[B d_sae] is set."""
    tokens, indices = mask.nonzero(as_tuple=True)
    offsets = torch.searchsorted(tokens, torch.arange(len(mask) + 1, device=mask.device))
    return PairPlaces(tokens, indices, offsets)
