"""Intervals of equal share: their members lie inside, they cover every positive activation, and zero is in
none."""

from itertools import pairwise

import pytest
import torch

from saelens_lite.analyze.index.intervals import intervals, quantile_edges
from saelens_lite.analyze.index.tally import Tally
from saelens_lite.sae.latents import SparseLatents


def test_few_firings_by_hand():
    """Ten activations 1 … 10 in 5 intervals: edges at the 0th, 2nd, 4th, 6th and 8th of them."""
    values, rows = torch.arange(1.0, 11), torch.arange(10) + 100
    found = intervals(torch.zeros(96), values.flip(0), rows.flip(0), 10, 10.0, 5)
    assert [(interval.low, interval.high) for interval in found] == [(1, 3), (3, 5), (5, 7), (7, 9), (9, 10)]
    assert [interval.values for interval in found] == [(2, 1), (4, 3), (6, 5), (8, 7), (10, 9)]
    assert found[0].rows == (101, 100)
    assert intervals(torch.zeros(96), torch.zeros(3), torch.full((3,), -1), 0, 0.0) == ()
    one = intervals(torch.zeros(96), torch.tensor([4.0, 0]), torch.tensor([7, -1]), 1, 4.0, 2)
    assert [interval.rows for interval in one] == [(), (7,)]


@pytest.mark.property_check(7)
@pytest.mark.parametrize("n_fired", [3, 64, 65, 5000])
@pytest.mark.parametrize("spread", [0.1, 1.0, 8.0])
def test_members_lie_inside_and_all_positives_are_covered(n_fired, spread):
    generator = torch.Generator().manual_seed(n_fired)
    values = torch.zeros(6000)
    fired = torch.randperm(6000, generator=generator)[:n_fired]
    values[fired] = torch.randn(n_fired, generator=generator).mul(spread).exp()
    tally = Tally(1, 4, 64)
    tally.update(SparseLatents.from_dense(values[:, None]), 0)
    largest = float(tally.top.values[0, 0])
    found = intervals(tally.histogram[0], tally.sample.values[0], tally.sample.rows[0], n_fired, largest)
    assert len(found) == 5
    edges = [found[0].low, *(interval.high for interval in found)]
    assert edges == sorted(edges) and edges[0] >= 0
    positives = values[fired]
    assert edges[0] <= positives.min() and edges[-1] == positives.max()
    for place, interval in enumerate(found):
        for value, row in zip(interval.values, interval.rows, strict=True):
            assert 0 < value == values[row]
            assert interval.low <= value and (value < interval.high or place == 4)
        assert list(interval.values) == sorted(interval.values, reverse=True)
    assert sum(len(interval.rows) for interval in found) == min(n_fired, 64), (
        "every sampled firing is in one interval"
    )
    if n_fired == 5000:
        shares = [
            float(((positives >= low) & (positives < high)).double().mean()) for low, high in pairwise(edges)
        ]
        allowed = {0.1: 0.08, 1.0: 0.02, 8.0: 0.15}[
            spread
        ]  # 64 samples in three bins; in many; most beyond the last edge
        assert max(abs(share - 0.2) for share in shares) < allowed, shares


@pytest.mark.property_check(7)
def test_beyond_the_sample_edges_come_from_the_histogram():
    """400 firings in the bin 1 to 1.25, 600 in 1.25 to 1.5: the median has a sixth of the second bin below
    it.

    Two of the sample in that bin, at 1.3 and 1.4, cut it into thirds: a sixth is halfway to the first.
    """
    histogram = torch.zeros(96, dtype=torch.int32)
    histogram[32], histogram[33] = 400, 600
    assert quantile_edges(histogram, torch.ones(10), 1000, 1.49, 2) == [
        1.0,
        pytest.approx(1.25 + 0.24 / 6),
        1.49,
    ]
    sample = torch.tensor([1.1, 1.4, 1.3])
    assert quantile_edges(histogram, sample, 1000, 1.49, 2) == [1.0, pytest.approx(1.275), 1.49]


@pytest.mark.parametrize("scale", [2.0**-20, 2.0**18])
def test_activations_beyond_the_histogram_have_quantiles_too(scale):
    """All 5,000 in the first bin or in the last: the 64 sampled ones say where the quantiles are."""
    values = scale * torch.linspace(1, 2, 5000)
    tally = Tally(1, 4, 64)
    tally.update(SparseLatents.from_dense(values[:, None]), 0)
    assert tally.histogram[0].count_nonzero() == 1
    found = intervals(
        tally.histogram[0], tally.sample.values[0], tally.sample.rows[0], 5000, float(values[-1])
    )
    shares = [float(((values >= part.low) & (values < part.high)).double().mean()) for part in found]
    assert max(abs(share - 0.2) for share in shares) < 0.1, shares
