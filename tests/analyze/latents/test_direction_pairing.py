"""The best pairing against all pairings, and the cosines."""

import itertools

import pytest
import torch

from saelens_lite.analyze.latents import direction_pairing
from saelens_lite.analyze.latents.direction_pairing import abs_cosines, best_pairing, mcc, mmcs


def best_sum(similarity: torch.Tensor) -> float:
    """By trying every pairing."""
    if similarity.shape[0] > similarity.shape[1]:
        return best_sum(similarity.T)
    n, m = similarity.shape
    return max(
        sum(float(similarity[i, j]) for i, j in enumerate(chosen))
        for chosen in itertools.permutations(range(m), n)
    )


@pytest.mark.parametrize("shape", [(1, 1), (4, 4), (3, 6), (6, 3), (5, 5)])
@pytest.mark.parametrize("seed", range(5))
def test_the_pairing_has_the_largest_sum(shape, seed):
    similarity = torch.rand(shape, generator=torch.Generator().manual_seed(seed)).round(
        decimals=1
    )  # with ties
    pairs = best_pairing(similarity)
    assert pairs.shape == (min(shape), 2)
    assert len(set(pairs[:, 0].tolist())) == len(set(pairs[:, 1].tolist())) == min(shape)
    assert similarity[pairs[:, 0], pairs[:, 1]].sum().item() == pytest.approx(best_sum(similarity))


def test_a_row_gives_up_its_best_column_where_that_pays():
    # Greedy would take 0.9 and be left with 0.1; the other way round has 0.8 + 0.7.
    assert best_pairing(torch.tensor([[0.9, 0.8], [0.7, 0.1]])).tolist() == [[0, 1], [1, 0]]


def test_a_permutation_is_found():
    order = torch.randperm(50, generator=torch.Generator().manual_seed(0))
    assert best_pairing(torch.eye(50)[order])[:, 1].tolist() == order.tolist()


def test_nothing_has_no_pairs():
    assert best_pairing(torch.zeros(0, 3)).shape == (0, 2)


def test_cosines_know_no_length_and_no_sign():
    # cos((3, 4), (1, 0)) = 3/5; a row of zeros is nobody's
    given = abs_cosines(torch.tensor([[3.0, 4.0], [0.0, 0.0]]), torch.tensor([[-2.0, 0.0], [0.0, 1.0]]))
    torch.testing.assert_close(given, torch.tensor([[0.6, 0.8], [0.0, 0.0]]))


PAIR = torch.tensor([[1.0, 0.0], [0.0, 2.0]])
THREE = torch.tensor([[3.0, 4.0], [-5.0, 0.0], [4.0, 3.0]])  # cosines with PAIR: .6 .8, −1 0, .8 .6


def test_mmcs_by_hand(monkeypatch):
    assert mmcs(PAIR, THREE) == pytest.approx((0.8 + 0.8) / 2)
    assert mmcs(THREE, PAIR) == pytest.approx((0.8 + 0.0 + 0.8) / 3)
    monkeypatch.setattr(direction_pairing, "_CHUNK_VALUES", 2)
    assert mmcs(THREE, PAIR) == pytest.approx((0.8 + 0.0 + 0.8) / 3)


def test_mcc_by_hand():
    assert mcc(PAIR, THREE) == mcc(THREE, PAIR) == pytest.approx((1.0 + 0.8) / 2)


def test_copies_agree_in_any_order_and_strangers_do_not():
    one = torch.randn(64, 32, generator=torch.Generator().manual_seed(0))
    other = 3 * one[torch.randperm(64, generator=torch.Generator().manual_seed(1))]
    assert mmcs(one, other) == pytest.approx(1) and mcc(one, other) == pytest.approx(1)
    stranger = torch.randn(64, 32, generator=torch.Generator().manual_seed(2))
    assert mmcs(one, stranger) < 0.6 and mcc(one, stranger) < 0.6


def test_of_many_latents_a_sample_is_paired_with_all(monkeypatch):
    """Too large rather than too small, as fewer compete; between the whole pairing and every latent's own
    best."""
    one, other = (torch.randn(60, 16, generator=torch.Generator().manual_seed(seed)) for seed in range(2))
    whole = mcc(one, other)
    monkeypatch.setattr(direction_pairing, "PAIRED", 30)
    assert whole < mcc(one, other) < abs_cosines(one, other).amax(1).max()
    assert mcc(one, one) == pytest.approx(1)
