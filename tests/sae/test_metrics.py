"""The metrics have the properties their definitions promise, on cases worked by hand."""

import math

import pytest
import torch

from saelens_lite.sae.latents import SparseLatents
from saelens_lite.sae.metrics import (
    FiringSums,
    ReconstructionSums,
    ce_score,
    kl_score,
    rate_bound,
    rate_interval,
    window_name,
)


def sums(acts, recons, split=None) -> ReconstructionSums:
    total = ReconstructionSums(acts.shape[-1])
    for a, r in zip(acts.split(split or len(acts)), recons.split(split or len(acts))):
        total.update(a, r)
    return total


@pytest.fixture
def acts():
    """Rows with an offset and with norms that differ a hundredfold, as real streams have."""
    generator = torch.Generator().manual_seed(0)
    scale = torch.exp(torch.randn(500, 1, generator=generator) * 2)
    return torch.randn(500, 8, generator=generator) * scale + torch.arange(8.0) * 10


def test_by_hand():
    # x̄ = (2, 0); deviations (-1, 0), (1, 0): Σ = 2. Errors (1, 0), (0, 1): Σ = 2.
    stats = sums(torch.tensor([[1.0, 0.0], [3.0, 0.0]]), torch.tensor([[2.0, 0.0], [3.0, 1.0]]))
    assert stats.fvu == 1.0
    assert stats.mse == 1.0
    assert stats.norm_ratio == pytest.approx((2 / 1 + math.sqrt(10) / 3) / 2)
    assert stats.cosine == pytest.approx((1 + 3 / math.sqrt(10)) / 2)
    assert stats.relative_bias == pytest.approx((4 + 10) / (2 + 9))


@pytest.mark.property_check(1)
def test_predicting_the_mean_explains_nothing(acts):
    for offset in (0, 1, 5, 30, 1e4):
        x = acts.double() + offset
        assert sums(x, x.mean(0).expand_as(x)).fvu == pytest.approx(1.0, abs=1e-12)


def test_perfect_and_zero_reconstruction(acts):
    assert sums(acts, acts).fvu == 0.0
    assert sums(acts, acts).cosine == pytest.approx(1.0)
    centred = acts.double() - acts.double().mean(0)
    assert sums(centred, torch.zeros_like(centred)).fvu == pytest.approx(1.0)


@pytest.mark.property_check(1)
def test_a_constant_shift_changes_nothing(acts):
    recons = acts + torch.randn(acts.shape, generator=torch.Generator().manual_seed(1))
    for offset in (1.0, 1e3, 1e6):
        shifted = sums(acts.double() + offset, recons.double() + offset)
        assert shifted.fvu == pytest.approx(sums(acts, recons).fvu, rel=1e-9)


def test_a_constant_error_is_seen(acts):
    assert sums(acts, acts + 3).mse == pytest.approx(8 * 9, rel=1e-5)
    assert sums(acts, acts + 3).fvu > 0


@pytest.mark.property_check(1)
@pytest.mark.parametrize("split", [1, 7, 64, 499, 500])
def test_batches_do_not_matter(acts, split):
    recons = acts * 0.9
    whole, parts = sums(acts, recons), sums(acts, recons, split)
    for name in ("fvu", "explained_variance", "mse", "cosine", "norm_ratio", "relative_bias"):
        assert getattr(parts, name) == pytest.approx(getattr(whole, name), rel=1e-12)
    torch.testing.assert_close(parts.mean, acts.double().mean(0))


def test_relative_bias_tells_shrinkage_from_noise(acts):
    """Half of x is biased by ½; the projection on a half of the dimensions loses much and is not biased."""
    assert sums(acts, acts).relative_bias == pytest.approx(1)
    assert sums(acts, acts / 2).relative_bias == pytest.approx(1 / 2)
    assert sums(acts, acts * torch.tensor([1.0, 0.0]).repeat(4)).relative_bias == pytest.approx(1)


def test_merged_equals_one(acts):
    recons = acts * 0.9
    first, second = sums(acts[:123], recons[:123]), sums(acts[123:], recons[123:])
    first.merge(second)
    first.merge(ReconstructionSums(8))
    assert first.n_tokens == 500
    assert first.fvu == pytest.approx(sums(acts, recons).fvu, rel=1e-12)


def test_tokens_of_norm_zero_do_not_poison_the_means():
    stats = sums(torch.tensor([[0.0, 0.0], [3.0, 4.0]]), torch.tensor([[1.0, 0.0], [3.0, 4.0]]))
    assert (stats.cosine, stats.norm_ratio) == (1.0, 1.0)


def test_nothing_seen_is_not_a_number():
    empty = ReconstructionSums(4)
    assert math.isnan(empty.fvu) and math.isnan(empty.mse) and math.isnan(empty.cosine)
    empty.update(torch.zeros(0, 4), torch.zeros(0, 4))
    assert empty.n_tokens == 0


def test_shapes_that_differ_are_refused():
    with pytest.raises(ValueError, match=r"d_model=4.*\[2, 4\] and \[2, 3\]"):
        ReconstructionSums(4).update(torch.zeros(2, 4), torch.zeros(2, 3))


FIRING = torch.tensor(
    [
        [1.0, 0.0, 0.0, 0.5],
        [2.0, 0.0, 0.0, 0.0],
        [0.0, 0.0, 3.0, 0.0],
        [0.0, 0.0, 4.0, 0.0],
        [0.0, 0.0, 5.0, 0.5],
    ]
)


def firing(dense, split=5) -> FiringSums:
    stats = FiringSums(dense.shape[1])
    for part in dense.split(split):
        stats.update(SparseLatents.from_dense(part))
    return stats


@pytest.mark.parametrize("split", [1, 2, 5])
def test_firing_by_hand(split):
    stats = firing(FIRING, split)
    assert stats.counts.tolist() == [2, 0, 3, 2]
    assert stats.last_fired.tolist() == [1, -1, 4, 4]
    assert stats.silent_tokens.tolist() == [3, 5, 0, 0]
    assert stats.l0 == 7 / 5
    assert stats.l1 == 16 / 5
    assert stats.density.tolist() == [0.4, 0.0, 0.6, 0.4]
    assert stats.dead_shares([1, 3, 4, 5, 6]) == {1: 0.5, 3: 0.5, 4: 0.25, 5: 0.25, 6: None}


@pytest.mark.parametrize("split", [1, 5])
def test_l1_weighted_does_not_follow_the_scale_of_the_decoder(split):
    norms = torch.tensor([1.0, 9.0, 0.5, 4.0])

    def weighted(dense, norms):
        stats, later = FiringSums(4, decoder_norms=norms), FiringSums(4, decoder_norms=norms)
        stats.update(SparseLatents.from_dense(dense[:split]))
        later.update(SparseLatents.from_dense(dense[split:]))
        stats.merge(later)
        return stats.l1_weighted

    # Σ by latent 3, 0, 12, 1, times the norms: 3 + 6 + 4.
    assert weighted(FIRING, norms) == pytest.approx(13 / 5)
    assert weighted(FIRING / 7, 7 * norms) == pytest.approx(13 / 5)
    assert math.isnan(firing(FIRING).l1_weighted)


def test_stored_zeros_do_not_fire():
    stats = FiringSums(3)
    stats.update(SparseLatents.from_topk(torch.tensor([[1.0, 0.0]]), torch.tensor([[2, 0]]), 3))
    assert stats.counts.tolist() == [0, 0, 1]
    assert stats.l0 == 1


def test_firing_merged_equals_one():
    first, second = firing(FIRING[:2]), firing(FIRING[2:])
    first.merge(second)
    whole = firing(FIRING)
    assert torch.equal(first.counts, whole.counts) and torch.equal(first.last_fired, whole.last_fired)
    assert (first.n_tokens, first.l0, first.l1) == (5, whole.l0, whole.l1)


def test_a_window_has_a_token():
    with pytest.raises(ValueError, match="at least 1 token, got 0"):
        firing(FIRING).dead(0)


def test_ce_score():
    assert ce_score(clean=4.0, spliced=4.0, ablated=8.0) == 1.0
    assert ce_score(clean=4.0, spliced=8.0, ablated=8.0) == 0.0
    assert ce_score(clean=4.0, spliced=5.0, ablated=8.0) == 0.75
    assert math.isnan(ce_score(4.0, 4.0, 4.0))


def test_kl_score():
    assert kl_score(spliced=0.0, ablated=2.0) == 1.0
    assert kl_score(spliced=0.5, ablated=2.0) == 0.75
    assert math.isnan(kl_score(0.0, 0.0))


def test_the_rate_bound_is_a_bound_of_95_percent():
    """At the bound, n tokens without a firing have a chance of at most 5 %, and hardly less."""
    for n in (100, 10_000, 10_000_000):
        assert 0.04 < (1 - rate_bound(n)) ** n <= 0.05
    assert rate_bound(10_000) == 3e-4
    assert (rate_bound(0), rate_bound(2)) == (1.0, 1.0)


def test_the_interval_of_a_rate_by_hand_and_by_what_it_covers():
    """8 of 100 by Wilson: (0.08 + 1.92/100 ± 1.96 √(0.08·0.92/100 + 0.9604/10⁴)) / 1.0384 = 0.0411 to
    0.1500."""
    assert rate_interval(8, 100) == pytest.approx((0.0411, 0.1500), abs=5e-5)
    assert rate_interval(0, 10_000)[0] == 0.0 and rate_interval(0, 10_000)[1] == pytest.approx(
        3.84e-4, rel=1e-3
    )
    assert rate_interval(7, 7)[1] == 1.0 and rate_interval(0, 0) == (0.0, 1.0)
    draws = torch.binomial(
        torch.full((4000,), 2000.0), torch.tensor(0.01), generator=torch.Generator().manual_seed(0)
    )
    ends = [rate_interval(int(n), 2000) for n in draws]
    assert 0.93 < sum(low <= 0.01 <= high for low, high in ends) / len(ends) < 0.97


def test_window_names():
    assert [window_name(w) for w in (500, 1_500, 10_000, 1_000_000, 2_000_000_000)] == [
        "500",
        "1500",
        "10k",
        "1M",
        "2B",
    ]


def test_fvu_of_rows_within_ten_times_the_median_norm_is_that_of_these_alone():
    generator = torch.Generator().manual_seed(0)
    acts = torch.randn(1000, 8, generator=generator)
    acts[::100] *= 1000
    recons = acts + 0.3 * torch.randn(1000, 8, generator=generator)
    norms = acts.norm(dim=1)
    few = norms <= 10 * norms.median()
    assert int(few.sum()) == 990
    found, parts = ReconstructionSums(8, float(norms.median())), ReconstructionSums(8, float(norms.median()))
    found.update(acts, recons)
    for rows in range(0, 1000, 137):
        part = ReconstructionSums(8, float(norms.median()))
        part.update(acts[rows : rows + 137], recons[rows : rows + 137])
        parts.merge(part)
    for one in (found, parts):
        assert one.fvu == pytest.approx(sums(acts, recons).fvu, rel=1e-9)
        assert one.fvu_within_10x == pytest.approx(sums(acts[few], recons[few]).fvu, rel=1e-9)
        assert one.share_within_10x == 0.99
        assert one.fvu < 1e-5 < 0.05 < one.fvu_within_10x
        assert one.massive_rows_in_words.startswith("1.00% of the scored rows have more than 10 times the")
    plain = ReconstructionSums(8, 1e9)
    plain.update(acts, recons)
    assert (plain.fvu_within_10x, plain.massive_rows_in_words) == (plain.fvu, None)
    assert math.isnan(sums(acts, recons).fvu_within_10x)
