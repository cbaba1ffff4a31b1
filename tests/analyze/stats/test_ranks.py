"""Rank statistics: worked by hand, with ties."""

import math

import pytest
import torch

from saelens_lite.analyze.stats.ranks import auroc, mean_ranks, spearman


def test_ranks_share_ties():
    assert mean_ranks([30.0, 10.0, 20.0, 20.0, 20.0]).tolist() == [5, 1, 3, 3, 3]


def test_auroc_counts_pairs_and_half_the_ties():
    """Of the pairs (1,2) (1,3) (2,2) (2,3) (4,2) (4,3) three are won and one is tied: 3.5 / 6."""
    assert auroc([1, 2, 4], [2, 3]) == pytest.approx(3.5 / 6)
    assert auroc([0.0, 1.0], [2.0, 3.0]) == 1 and auroc([2.0], [1.0]) == 0 and auroc([1.0, 1.0], [1.0]) == 0.5


def test_auroc_equals_all_pairs():
    generator = torch.Generator().manual_seed(0)
    normal, odd = (torch.randint(20, (n,), generator=generator) for n in (150, 90))
    won = (odd[None] > normal[:, None]).double() + 0.5 * (odd[None] == normal[:, None]).double()
    assert auroc(normal, odd) == pytest.approx(float(won.mean()))


def test_spearman_sees_order_only():
    """Ranks 1 2 3 4 against 1 3 2 4: 1 − 6 · (0 + 1 + 1 + 0) / (4 · 15) = 0.8."""
    assert spearman([1.0, 2.0, 3.0, 4.0], [0.1, 50.0, 7.0, 900.0]) == pytest.approx(0.8)
    assert spearman([1.0, 2.0, 3.0], [9.0, 4.0, 1.0]) == pytest.approx(-1)
    assert math.isnan(spearman([1.0, 1.0], [1.0, 2.0]))


def test_what_has_no_ranks_is_refused():
    with pytest.raises(ValueError, match="nan at place 1 of 2"):
        mean_ranks([0.0, math.nan])
    with pytest.raises(ValueError, match="got 0 normal and 1 odd"):
        auroc([], [1.0])
    with pytest.raises(ValueError, match="got 2 and 3"):
        spearman([1.0, 2.0], [1.0, 2.0, 3.0])
