"""Scores as alarms and as probabilities: thresholds that keep a false-alarm rate, calibration errors."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from saelens_lite.misfits import names_misfits

from .ranks import Values


@names_misfits
def conformal_threshold(scores: Values, alpha: float) -> float:
    """What the score of another item of the same kind exceeds with a chance of at most alpha.

    scores: float[n], of items that should raise no alarm, exchangeable with later ones
    alpha: false-alarm rate, between 0 and 1
    returns: the ⌈(n + 1)(1 − alpha)⌉-th smallest score; infinity where that is beyond the largest, for
        n < 1/alpha − 1 items cannot promise so little
    raises: ValueError for no scores, nan, or another alpha
    source: split conformal prediction, Vovk et al. 2005; Angelopoulos and Bates 2021, arXiv:2107.07511
    """
    values = torch.as_tensor(scores).detach().cpu().double().reshape(-1)
    if not len(values) or values.isnan().any() or not 0 < alpha < 1:
        raise ValueError(
            "conformal_threshold expected scores without nan and an alpha between 0 and 1, got "
            f"{len(values)} scores and {alpha}"
        )
    rank = math.ceil(round((len(values) + 1) * (1 - alpha), 9))  # 0.1 · 10 is not 1 in binary
    return float(values.sort().values[rank - 1]) if rank <= len(values) else math.inf


@names_misfits
def brier_score(probabilities: Values, outcomes: Values) -> float:
    """Mean squared distance of probabilities from outcomes, 0 or 1: 0 is best, 0.25 what always 0.5 gets.

    raises: ValueError for numbers that are no probabilities, or another number of outcomes
    source: Brier 1950
    """
    p, ones = _probabilities(probabilities, outcomes)
    return float(((p - ones) ** 2).mean())


@names_misfits
def calibration_error(probabilities: Values, outcomes: Values, n_bins: int = 10) -> float:
    """Expected calibration error: |share of ones − mean probability| of bins, weighted by their items.

    Bins have equal width; items at an edge belong to the one above it.
    raises: as `brier_score`
    source: Naeini et al. 2015; Guo et al. 2017, arXiv:1706.04599
    """
    p, ones = _probabilities(probabilities, outcomes)
    bins = (p * n_bins).long().clamp_max(n_bins - 1)
    gaps = torch.bincount(bins, p - ones, minlength=n_bins)
    return float(gaps.abs().sum() / len(p))


def _probabilities(probabilities: Values, outcomes: Values) -> tuple[Tensor, Tensor]:
    p, ones = (torch.as_tensor(of).detach().cpu().double().reshape(-1) for of in (probabilities, outcomes))
    if not len(p) or len(p) != len(ones) or not ((p >= 0) & (p <= 1)).all():
        raise ValueError(
            f"expected probabilities from 0 to 1 and an outcome each, got {len(p)} and {len(ones)}"
        )
    return p, ones
