"""The rival of every edit: a constant added to the logits of refusal, and the trade-off that it draws."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor

from saelens_lite.lm.decoder import Decoder, Model

QUANTILES = (0.02, 0.1, 0.25, 0.5, 0.75, 0.9, 0.98)
"""Of the clean margins: the constants bring them to 0, so that this share of questions is refused, or not."""


class TradeOff(NamedTuple):
    """What one constant does: rates of all questions about unknown and about known entities."""

    constant: float
    hallucination: float
    refusal: float
    accuracy: float


@contextmanager
def refusal_logit(model: Model, ids: Sequence[int], constant: float) -> Iterator[None]:
    """Inside, `constant` is added to the logits of these tokens, at every position and step."""
    head = Decoder.of(model).head

    def add(_module: Any, _args: Any, logits: Tensor) -> Tensor:
        moved = logits.clone()
        moved[..., list(ids)] += constant
        return moved

    handle = head.register_forward_hook(add)
    try:
        yield
    finally:
        handle.remove()


def constants(margin: Tensor) -> list[float]:
    """What to add, smallest first, from the margins of clean answers: float[n].

    In hundredths, and just above what brings a quantile to 0, so that no answer is left to rounding.
    """
    at = torch.tensor(QUANTILES, dtype=torch.float64)
    return sorted({math.floor(1 - 100 * of) / 100 for of in margin.double().quantile(at).tolist()})
