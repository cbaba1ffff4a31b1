"""How far two raters agree on the same items."""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Sequence
from dataclasses import dataclass

from saelens_lite.misfits import names_misfits


@dataclass(frozen=True, slots=True)
class Agreement:
    """What `agreement` found.

    share: of items on which both say the same
    kappa: Cohen's κ, 1 for full agreement, 0 for what chance gives with these shares of each label
    counts: items by (first rater's label, second's)
    differing: places of the items on which they differ
    """

    share: float
    kappa: float
    counts: dict[tuple[Hashable, Hashable], int]
    differing: tuple[int, ...]


@names_misfits
def agreement(first: Sequence[Hashable], second: Sequence[Hashable]) -> Agreement:
    """Two raters' labels of the same items compared; κ is nan where both give one and the same label to all.

    raises: ValueError for no items, or another number of labels
    source: Cohen 1960, doi:10.1177/001316446002000104
    """
    if len(first) != len(second) or not len(first):
        raise ValueError(
            f"agreement expected labels of the same items, at least one, got {len(first)} and {len(second)}"
        )
    n, counts = len(first), Counter(zip(first, second))
    differing = tuple(i for i, (a, b) in enumerate(zip(first, second)) if a != b)
    share = 1 - len(differing) / n
    of_second = Counter(second)
    by_chance = sum(times * of_second[label] for label, times in Counter(first).items()) / n**2
    kappa = (share - by_chance) / (1 - by_chance) if by_chance < 1 else float("nan")
    return Agreement(share, kappa, dict(counts), differing)
