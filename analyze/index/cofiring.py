"""Which latents fire together, over a sample of rows: for each latent the nearest by Jaccard and by PMI.

The memory is that of the sample and of a block of neighbours. The torch code is the definition; on a CPU
tally.c does the same.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from saelens_lite.kernels import tally as kernel

from ..latents.store_pass import spans
from .token_sample import TokenSample

MIN_TOGETHER = 5
"""PMI is largest for latents that met once by chance: only pairs that met this often are looked at."""

_BLOCK_MEETINGS = 2**22


@dataclass(frozen=True, slots=True)
class Cofiring:
    """The m nearest of each latent; ids int32[d_sae m], -1 in empty places, where scores are 0.

    jaccard: tokens on which both fire, as a share of those on which either does: float32[d_sae m], largest
        first
    pmi: log of P(both) / (P(one) P(other)), in nats: float32[d_sae m], of pairs that met MIN_TOGETHER times
    At equal scores the lower latent comes first.
    """

    jaccard_ids: Tensor
    jaccard: Tensor
    pmi_ids: Tensor
    pmi: Tensor


def cofiring(sample: TokenSample, d_sae: int, m: int) -> Cofiring:
    by_latent = sample.latents.argsort(stable=True)
    places = sample.row_ids()[by_latent]
    counts = sample.counts(d_sae)
    starts = torch.cat([counts.new_zeros(1), counts.cumsum(0)])
    ids = [torch.full((d_sae, m), -1, dtype=torch.int32) for _ in range(2)]
    scores = [torch.zeros(d_sae, m, dtype=torch.float64) for _ in range(2)]
    if m and not kernel.cofiring_(
        sample.offsets, sample.latents, starts, places, MIN_TOGETHER, *ids, *scores
    ):
        _cofiring(sample, starts, places, ids, scores)
    jaccard, lift = scores  # lift: tokens on which both fire / those of the other one
    pmi = lift.mul_(len(sample.rows)).div_(counts.clamp_min(1)[:, None]).log_().masked_fill_(ids[1] < 0, 0)
    return Cofiring(ids[0], jaccard.float(), ids[1], pmi.float())


def _cofiring(
    sample: TokenSample, starts: Tensor, places: Tensor, ids: list[Tensor], scores: list[Tensor]
) -> None:
    """The definition of kernel.cofiring_, in plain torch."""
    d_sae, counts, sizes = len(starts) - 1, starts.diff().double(), sample.offsets.diff()
    meetings = sizes[places].cumsum(0)  # of the pairs so far, by latent
    totals = torch.cat([meetings.new_zeros(1), meetings])[starts]
    first = 0
    while first < d_sae:
        full = int(torch.searchsorted(totals, totals[first] + _BLOCK_MEETINGS, right=True))
        last = max(first + 1, full - 1)
        rows = places[starts[first] : starts[last]]
        of_row = torch.arange(first, last).repeat_interleave(starts.diff()[first:last])
        one = of_row.repeat_interleave(sizes[rows])
        other = sample.latents[spans(sample.offsets[rows], sizes[rows])].long()
        pairs, together = (one * d_sae + other)[one != other].unique(return_counts=True)
        one, other = pairs // d_sae, pairs % d_sae
        jaccard = together / (counts[one] + counts[other] - together)
        _keep(one, other, jaccard, ids[0], scores[0])
        often = together >= MIN_TOGETHER
        _keep(one[often], other[often], (together / counts[other])[often], ids[1], scores[1])
        first = last


def _keep(one: Tensor, other: Tensor, score: Tensor, ids: Tensor, scores: Tensor) -> None:
    """Write the best of each `one`; pairs come by (one, other)."""
    order = score.argsort(descending=True, stable=True)
    order = order[one[order].argsort(stable=True)]
    one, other, score = one[order], other[order], score[order]
    _, group, sizes = one.unique_consecutive(return_inverse=True, return_counts=True)
    rank = torch.arange(len(one)) - (sizes.cumsum(0) - sizes)[group]
    best = rank < ids.shape[1]
    ids[one[best], rank[best]] = other[best].int()
    scores[one[best], rank[best]] = score[best]
