"""Intervals that cover as often as they say, p values that are uniform where there is nothing, by hand and by
simulation."""

import pytest
import torch

from saelens_lite.analyze.stats.bootstrap import (
    benjamini_hochberg,
    cluster_bootstrap,
    rank_p,
    student_t,
    westfall_young_p,
)

N_BLOCKS = 20


def coverage(kind: str, n_clusters: int, n_simulations: int, n_resamples: int = 1000) -> float:
    """Share of 95 % intervals that hold the true mean: clusters of 1 to 5 items, half of the variance between
    clusters.

    Simulations are the columns of one table; every block of them draws other cluster sizes and other
    resamples.
    """
    held = []
    for block in range(N_BLOCKS):
        generator = torch.Generator().manual_seed(block)
        clusters = torch.arange(n_clusters).repeat_interleave(
            torch.randint(1, 6, (n_clusters,), generator=generator)
        )
        of_cluster = torch.rand(n_clusters, n_simulations // N_BLOCKS, generator=generator)[clusters]
        of_item = torch.rand(of_cluster.shape, generator=generator)
        if kind == "normal":
            values, mean = torch.erfinv(2 * of_cluster - 1) + torch.erfinv(2 * of_item - 1), 0.0
        elif kind == "skewed":  # exponential
            values, mean = -(-of_cluster).log1p() - (-of_item).log1p(), 2.0
        else:
            values, mean = (of_item < of_cluster).float(), 0.5
        interval = cluster_bootstrap(values, clusters, n_resamples=n_resamples, seed=1000 + block)
        held.append((interval.low <= mean) & (mean <= interval.high))
    return torch.cat(held).double().mean().item()


@pytest.mark.property_check(10)
@pytest.mark.parametrize("kind", ["normal", "skewed", "rates"])
def test_intervals_of_a_hundred_clusters_cover(kind):
    assert 0.93 <= coverage(kind, 100, 2000) <= 0.97


@pytest.mark.parametrize("kind, least", [("normal", 0.93), ("skewed", 0.90), ("rates", 0.93)])
def test_intervals_of_twenty_clusters_cover_as_the_docstring_says(kind, least):
    assert least <= coverage(kind, 20, 2000) <= 0.97


def test_items_taken_for_independent_cover_too_little():
    """The control: forty equal items a cluster, each counted as its own, make an interval √40 times too
    narrow."""
    values = torch.randn(20, 200, generator=torch.Generator().manual_seed(0)).repeat_interleave(40, 0)
    of_items = cluster_bootstrap(values, n_resamples=200)
    of_clusters = cluster_bootstrap(values, torch.arange(20).repeat_interleave(40), n_resamples=200)
    width = ((of_clusters.high - of_clusters.low) / (of_items.high - of_items.low)).mean()
    assert 5 < width < 8
    assert ((of_items.low <= 0) & (of_items.high >= 0)).double().mean() < 0.5


def test_a_bootstrap_by_hand():
    """Two clusters, {1, 1, 1} and {5}: a resample's mean is 1, 5, or of both 8/4 = 2; the mean of items is
    2."""
    interval = cluster_bootstrap([1.0, 1.0, 1.0, 5.0], torch.tensor([7, 7, 7, -2]), n_resamples=500)
    assert (interval.estimate, interval.low, interval.high) == (2.0, 1.0, 5.0)
    assert interval.n_clusters == 2


def test_the_interval_is_as_wide_as_that_of_student():
    """±t·s/√n = ±2.2622 · 0.9886 / √10 = ±0.7072 for ten values spread as a normal has them.

    Without the factor √(10/9) in its quantile the interval would be 6 % narrower.
    """
    values = torch.tensor([-1.645, -1.036, -0.674, -0.385, -0.126, 0.126, 0.385, 0.674, 1.036, 1.645])
    assert values.std().item() == pytest.approx(0.9886, abs=1e-4)
    interval = cluster_bootstrap(values, n_resamples=50_000)
    assert (interval.high - interval.low).item() / 2 == pytest.approx(0.7072, rel=0.02)


def test_columns_are_drawn_together_and_order_does_not_matter():
    generator = torch.Generator().manual_seed(0)
    values, clusters = torch.randn(60, generator=generator), torch.arange(60) // 3
    pair = cluster_bootstrap(torch.stack([values, values + 1.0, -values], 1), clusters)
    torch.testing.assert_close(pair.low[1] - pair.low[0], torch.tensor(1.0).double())
    torch.testing.assert_close(pair.low[2], -pair.high[0])
    order = torch.randperm(60, generator=generator)
    alone = cluster_bootstrap(values[order], clusters[order])
    torch.testing.assert_close((alone.low, alone.high), (pair.low[0], pair.high[0]))
    assert alone.low == cluster_bootstrap(values, clusters).low  # the seed decides


@pytest.mark.parametrize(
    "degrees, t",
    [(1, 12.706205), (2, 4.302653), (4, 2.776445), (10, 2.228139), (1000, 1.962339), (10**6, 1.959966)],
)
def test_student_t_is_that_of_the_tables(degrees, t):
    assert student_t(0.975, degrees) == pytest.approx(t, rel=1e-6)
    assert student_t(0.5, degrees) == 0


def test_rank_p_by_hand():
    controls = torch.tensor([1.0, 2.0, 3.0, 4.0])
    assert rank_p(3.0, controls) == 3 / 5  # 3 and 4 are no less
    assert rank_p(9.0, controls) == 1 / 5
    assert rank_p(1.5, controls, "less") == 2 / 5
    assert rank_p(-9.0, controls, "two-sided") == 1 / 5
    assert rank_p(torch.tensor([9.0, 0.0]), controls[:, None].expand(4, 2)).tolist() == [1 / 5, 1.0]


@pytest.mark.property_check(10)
@pytest.mark.parametrize("alternative", ["greater", "less", "two-sided"])
def test_rank_p_is_uniform_where_there_is_nothing(alternative):
    """4,000 draws of 20 exchangeable numbers: each of the 20 values of p comes 200 times, ± 4 standard
    deviations."""
    draws = torch.randn(20, 4000, generator=torch.Generator().manual_seed(0)).exp()
    p = rank_p(draws[0], draws[1:], alternative)
    counts = torch.bincount((p * 20).round().long(), minlength=21)[1:]
    if (
        alternative == "two-sided"
    ):  # the median of 20 lies midway between two numbers, which tie; ties count against
        counts = counts[-2:].sum()[None], counts[:-2]
        assert abs(int(counts[0]) - 400) < 80
        counts = counts[1]
    assert (counts - 200).abs().max() < 4 * (4000 * 0.05 * 0.95) ** 0.5


def test_benjamini_hochberg_by_hand():
    """p · m / rank: 0.04·4/4, 0.03·4/3 = 0.04, 0.021·4/2 = 0.042, more than a larger p has, so 0.04;
    0.005·4/1 = 0.02."""
    adjusted = benjamini_hochberg(torch.tensor([0.03, 0.005, 0.04, 0.021]))
    torch.testing.assert_close(adjusted, torch.tensor([0.04, 0.02, 0.04, 0.04]).double())
    assert benjamini_hochberg(torch.tensor([])).shape == (0,)


def test_benjamini_hochberg_keeps_the_share_of_false_ones():
    """80 of 100 hypotheses are null; of those found at 0.1, a mean share of at most 0.1 · 80/100 is."""
    generator = torch.Generator().manual_seed(0)
    shares = []
    for _ in range(400):
        z = torch.randn(100, generator=generator).double()
        z[80:] += 3.0
        found = benjamini_hochberg(0.5 * torch.erfc(z / 2**0.5)) <= 0.1
        shares.append((found[:80].sum() / found.sum().clamp_min(1)).item())
    assert 0.05 < sum(shares) / len(shares) < 0.1


@pytest.mark.long
def test_the_maximum_keeps_the_chance_of_any_false_one():
    """20 correlated statistics of very different spread, 99 controls, 2,000 times: any p ≤ 0.05 comes 5 % of
    the time."""
    generator = torch.Generator().manual_seed(0)
    any_corrected, any_plain = 0, 0
    spread = torch.logspace(-2, 2, 20)
    for _ in range(2000):
        draws = (
            torch.randn(100, 20, generator=generator) + torch.randn(100, 1, generator=generator)
        ) * spread
        any_corrected += bool((westfall_young_p(draws[0], draws[1:]) <= 0.05).any())
        any_plain += bool((rank_p(draws[0], draws[1:]) <= 0.05).any())
    assert abs(any_corrected / 2000 - 0.05) < 4 * (0.05 * 0.95 / 2000) ** 0.5
    assert any_plain / 2000 > 0.2


def test_the_maximum_by_hand():
    """One statistic is its own maximum; of two equal ones, each is compared with the larger of the
    controls'."""
    controls = torch.tensor([[1.0], [2.0], [3.0]])
    assert westfall_young_p(torch.tensor([2.5]), controls) == rank_p(torch.tensor([2.5]), controls)
    controls = torch.tensor([[1.0, 4.0], [2.0, 3.0], [3.0, 2.0], [4.0, 1.0]])
    assert westfall_young_p(torch.tensor([3.5, 3.5]), controls).tolist() == [3 / 5, 3 / 5]


@pytest.mark.parametrize(
    "call, match",
    [
        (lambda: cluster_bootstrap(torch.tensor([1.0, torch.nan])), "finite values"),
        (lambda: cluster_bootstrap(torch.ones(3), torch.zeros(3)), "at least 2 clusters, got 1"),
        (lambda: cluster_bootstrap(torch.ones(3), torch.zeros(2)), "each of 3 items, got 2"),
        (lambda: cluster_bootstrap(torch.ones(3), confidence=95), "share between 0 and 1, got 95"),
        (lambda: rank_p(1.0, torch.ones(0)), "n ≥ 1"),
        (lambda: rank_p(1.0, torch.ones(3, 2)), "got \\[3, 2\\]"),
        (lambda: rank_p(torch.nan, torch.ones(3)), "finite numbers"),
        (lambda: rank_p(1.0, torch.ones(3), "both"), "'two-sided'.*got 'both'"),
        (lambda: benjamini_hochberg(torch.tensor([1.5])), "from 0 to 1"),
    ],
)
def test_bad_arguments_are_named(call, match):
    with pytest.raises(ValueError, match=match):
        call()
