"""Statistics of ranks, ties sharing their mean rank: AUROC, Spearman's correlation."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from saelens_lite.misfits import names_misfits

Values = Tensor | np.ndarray | Sequence[float]


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

    scores: float[n]; positive: bool[n]; weights: float64[r n], not negative
    returns: float64[r]; nan where all positive items, or all others, weigh nothing
    """
    scores, positive = torch.as_tensor(scores).double(), torch.as_tensor(positive).bool()
    if scores.isnan().any():
        raise ValueError(
            f"auroc expected numbers, got nan at place {int(scores.isnan().nonzero()[0])} of {len(scores)}"
        )
    order = scores.argsort()
    weights, positive, scores = weights[:, order], positive[order], scores[order]
    ends = torch.cat([scores[1:] != scores[:-1], torch.tensor([True])])  # of each group of equal scores
    last = ends.nonzero()[:, 0]
    above = torch.where(positive, weights, 0.0).cumsum(1)[:, last]
    below = torch.where(positive, 0.0, weights).cumsum(1)[:, last]
    in_group = above.diff(dim=1, prepend=above.new_zeros(len(above), 1))
    beaten = (below + torch.nn.functional.pad(below, (1, 0))[:, :-1]) / 2
    return (in_group * beaten).sum(1) / (above[:, -1] * below[:, -1])
