"""Statistics of ranks, ties sharing their mean rank: AUROC, Spearman's correlation."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from saelens_lite.misfits import names_misfits

Values = Tensor | np.ndarray | Sequence[float]

_CHUNK_WEIGHTS = 2**22
"""Weights in the order of each score that exist at a time: 32 MB in float64."""


def mean_ranks(values: Values) -> Tensor:
    """Ranks from 1 for the smallest, equal values sharing the mean of theirs: float64[n].

    raises: ValueError for nan, which has no rank
    """
    flat = torch.as_tensor(values).detach().cpu().double().reshape(-1)
    if flat.isnan().any():
        raise ValueError(
            f"ranks expected numbers, got nan at place {int(flat.isnan().nonzero()[0])} of {len(flat)}"
        )
    _, group, counts = flat.unique(return_inverse=True, return_counts=True)
    last = counts.cumsum(0)  # rank of the last member of each group of equal values
    return (last - (counts - 1) / 2).double()[group]


@names_misfits
def auroc(normal: Values, odd: Values) -> float:
    """The chance that a score of `odd` exceeds one of `normal`, ties counting half.

    normal, odd: float[n], float[m]
    raises: ValueError for an empty group or nan
    source: Mann and Whitney 1947; the area under the ROC curve, Hanley and McNeil 1982
    """
    normal, odd = (torch.as_tensor(scores).detach().cpu().double().reshape(-1) for scores in (normal, odd))
    n, m = len(normal), len(odd)
    if not n or not m:
        raise ValueError(f"auroc expected scores of both groups, got {n} normal and {m} odd ones")
    pairs_won = float(mean_ranks(torch.cat([normal, odd]))[n:].sum()) - m * (m + 1) / 2
    return pairs_won / (n * m)


@names_misfits
def spearman(a: Values, b: Values) -> float:
    """Spearman's rank correlation, −1 to 1; nan where one side has only one value.

    raises: ValueError unless both have the same length, at least 2, without nan
    """
    ranks_a, ranks_b = mean_ranks(a), mean_ranks(b)
    if len(ranks_a) != len(ranks_b) or len(ranks_a) < 2:
        raise ValueError(
            f"spearman expected two sides of one length, at least 2, got {len(ranks_a)} and {len(ranks_b)}"
        )
    centred_a, centred_b = ranks_a - ranks_a.mean(), ranks_b - ranks_b.mean()
    return float(centred_a @ centred_b / (centred_a.norm() * centred_b.norm()))


def weighted_auroc(scores: Values, positive: Values, weights: Tensor) -> Tensor:
    """AUROC of weighted items, for each row of weights, as a bootstrap needs it; ties count half.

    scores: float[n], or float[n m] for m scores of the same items; positive: bool[n]
    weights: float64[r n], not negative
    returns: float64[r] or float64[r m]; nan where all positive items, or all others, weigh nothing
    """
    scores, positive = torch.as_tensor(scores).double(), torch.as_tensor(positive).bool()
    if scores.isnan().any():
        raise ValueError(
            f"auroc expected numbers, got nan at place {int(scores.isnan().nonzero()[0, 0])} of {len(scores)}"
        )
    of_item = weights.T.contiguous()
    above, below = of_item * positive[:, None], of_item * ~positive[:, None]
    pairs = above.sum(0) * below.sum(0)
    portion = max(1, _CHUNK_WEIGHTS // max(1, weights.numel()))
    columns = scores.reshape(len(scores), -1).T.split(portion)
    found = torch.cat([_pairs_won(some, above, below) for some in columns], dim=0) / pairs
    return found[0] if scores.ndim == 1 else found.T


def _pairs_won(scores: Tensor, above: Tensor, below: Tensor) -> Tensor:
    """float64[m r]: weight of the pairs in which the one from `above` scores more, ties half.

    scores: float64[m n]; above, below: float64[n r]
    """
    ordered, order = scores.sort(dim=1)
    n, place = scores.shape[1], torch.arange(scores.shape[1]).expand_as(order)
    apart = ordered.diff(dim=1) != 0
    starts, ends = (torch.nn.functional.pad(apart, side, value=True) for side in ((1, 0), (0, 1)))
    first = torch.where(starts, place, 0).cummax(1).values  # of each group of equal scores
    behind = 1 + torch.where(ends, place, n).flip(1).cummin(1).values.flip(1)
    up_to = torch.nn.functional.pad(below[order].cumsum(1), (0, 0, 1, 0))
    of_score = torch.arange(len(scores))[:, None]
    beaten = up_to[of_score, first] + up_to[of_score, behind]
    return torch.einsum("mnr,mnr->mr", above[order], beaten) / 2
