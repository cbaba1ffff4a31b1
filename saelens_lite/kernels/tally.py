"""Counting firings, and which latents fire together, by tally.c; the callers in analyze/index define both."""

from __future__ import annotations

import os

import torch
from torch import Tensor

from saelens_lite.kernels import cpu


def tally_(
    values: Tensor,
    indices: Tensor,
    offsets: Tensor,
    k: int | None,
    first_row: int,
    row_bins: Tensor | None,
    seed: int,
    counts: Tensor,
    first_fired: Tensor,
    last_fired: Tensor,
    histogram: Tensor,
    positions: Tensor,
    top_values: Tensor,
    top_rows: Tensor,
    sample_values: Tensor,
    sample_rows: Tensor,
) -> bool:
    """Add a block of latents to the tables of a Tally, in place; False without tally.c.

    values, indices, offsets, k: as in SparseLatents; row_bins: uint8[rows] or None
    the tables: see analyze/index/tally.py
    """
    if not _usable(values, top_values, sample_values):
        return False
    rows = len(offsets) - 1
    sizes = (len(counts), histogram.shape[1], positions.shape[1], top_rows.shape[1], sample_rows.shape[1])
    cpu.call(
        "tally", values, indices.contiguous(), None if k else offsets, rows, k or 0, first_row, row_bins,
        seed, torch.get_num_threads(), *sizes, counts, first_fired, last_fired, histogram, positions,
        top_values, top_rows, sample_values, sample_rows,
    )  # fmt: skip
    return True


def _usable(*tensors: Tensor) -> bool:
    return os.environ.get("SAELENS_LITE_KERNELS", "") in ("", "cpu") and cpu.usable(*tensors)


def cofiring_(
    offsets: Tensor,
    latents: Tensor,
    starts: Tensor,
    places: Tensor,
    min_together: int,
    jaccard_ids: Tensor,
    lift_ids: Tensor,
    jaccard: Tensor,
    lift: Tensor,
) -> bool:
    """Fill the tables of nearest latents, int32 and float64 [d_sae m]; False without tally.c.

    offsets, latents: int64[rows + 1], int32[n_pairs], the latents of each row
    starts, places: int64[d_sae + 1], int64[n_pairs], the rows of each latent
    """
    if not _usable(torch.empty(0)):
        return False
    sizes = (len(starts) - 1, jaccard_ids.shape[1], min_together)
    tables = (jaccard_ids, lift_ids, jaccard, lift)
    cpu.call("cofiring", offsets, latents.contiguous(), starts, places, *sizes, *tables)
    return True


def meetings_(
    offsets: Tensor,
    latents: Tensor,
    values: Tensor,
    starts: Tensor,
    places: Tensor,
    own_values: Tensor,
    first: int,
    together: Tensor,
    dot: Tensor,
) -> bool:
    """Add to int32 and float64 [n m] on how many rows latents first to first + n fire with each of m others,
    and the products of their activations; False without tally.c.

    offsets, latents, values: int64[rows + 1], int32[n_pairs], float32[n_pairs], the m others' firings by row
    starts, places, own_values: int64[d_sae + 1], int64[n], float32[n], rows and activations of each latent
    """
    if not _usable(values, own_values):
        return False
    others = (offsets, latents.contiguous(), values.contiguous())
    cpu.call("meetings", *others, starts, places, own_values, first, *together.shape, together, dot)
    return True
