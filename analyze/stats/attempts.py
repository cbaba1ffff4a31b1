"""Answers that were tried: how many, how many of them right, and the risk as confidence falls."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor


class Attempts(NamedTuple):
    """Of all questions, about known and unknown entities together.

    coverage: share that is answered; accuracy: share right of those answered, None where none is
    risk_area: area under the risk–coverage curve: mean over k of the share wrong among the k answers of which
        the model was surest, by its margin to refusal; 0 is best. None without margins or answers
    source: of the area, Geifman and El-Yaniv 2017, arXiv:1705.08500
    """

    coverage: float
    accuracy: float | None
    risk_area: float | None


def attempts(refused: Tensor, correct: Tensor, margin: Tensor | None) -> Attempts:
    """refused, correct: float64[n], shares; margin: float[n], larger where refusal is nearer"""
    answered = 1 - refused
    total = float(answered.sum())
    coverage = total / len(refused)
    if not total:
        return Attempts(coverage, None, None)
    area = None
    if margin is not None:
        order = margin.argsort(stable=True)
        order = order[answered[order] > 0]
        wrong = (answered - correct)[order].cumsum(0)
        area = float((wrong / answered[order].cumsum(0)).mean())
    return Attempts(coverage, float(correct.sum()) / total, area)
