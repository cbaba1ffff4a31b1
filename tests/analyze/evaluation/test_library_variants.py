"""Other libraries' explained variance, by hand; where each misleads; and that of SAEBench 0.6.0, which is
wrong."""

import math

import pytest
import torch

from saelens_lite.analyze.evaluation.library_variants import VARIANTS, LibraryVariants
from saelens_lite.sae.metrics import ReconstructionSums


def values(acts, recons, split=None) -> dict[str, float]:
    found = LibraryVariants()
    for a, r in zip(acts.split(split or len(acts)), recons.split(split or len(acts)), strict=True):
        found.update(a, r)
    return found.values()


@pytest.fixture
def acts():
    """1,000 rows about means that differ between dimensions: 0, 2, 4, … 14, deviation 1."""
    return torch.randn(1000, 8, generator=torch.Generator().manual_seed(0)).double() + 2 * torch.arange(8.0)


def test_by_hand():
    # x̄ = (2, 1), deviations ∓(1, 1): 2 a token, Σ 4. Errors (1, 0), (1, 1): 1 and 2, Σ 3; about their mean
    # ∓(0, ½): Σ ½. One mean for all numbers: (1 + 0 + 3 + 2) / 4 = 1.5, squares ¼ + 2¼ + 2¼ + ¼ = 5.
    x = torch.tensor([[1.0, 0.0], [3.0, 2.0]])
    found = values(x, x - torch.tensor([[1.0, 0.0], [1.0, 1.0]]))
    assert found == pytest.approx(
        {
            "legacy": ((1 - 1 / 2) + (1 - 2 / 2)) / 2,
            "dictionary_learning": 1 - 0.5 / 4,
            "overcomplete": 1 - 3 / 5,
            "sparsify": 1 - 3 / 4,
        }
    )


def test_on_one_batch_sparsifys_is_ours(acts):
    ours = ReconstructionSums(8)
    ours.update(acts, 0.9 * acts)
    assert values(acts, 0.9 * acts)["sparsify"] == pytest.approx(ours.explained_variance)


def test_what_predicting_the_mean_is_worth(acts):
    """Nothing, but not to one mean for all dimensions: their means vary by 21 beside 1 within, 21 / 22
    explained."""
    found = values(acts, acts.mean(0).expand_as(acts))
    assert found["legacy"] == pytest.approx(0, abs=1e-9)
    assert found["dictionary_learning"] == pytest.approx(0, abs=1e-9)
    assert found["sparsify"] == pytest.approx(0, abs=1e-9)
    assert found["overcomplete"] == pytest.approx(21 / 22, abs=0.01)


def test_a_constant_error_is_invisible_to_variances(acts):
    found = values(acts, acts + 3)
    assert found["dictionary_learning"] == pytest.approx(1)
    assert found["sparsify"] == pytest.approx(1 - 9, rel=0.05)


def test_legacy_follows_the_tokens_near_the_mean():
    """Three rows far from the mean are rebuilt to 1 %; one near it is lost, and takes the mean of the four
    below zero."""
    x = torch.tensor([[10.0, 0.0], [-10.0, 0.0], [0.0, 10.0], [0.0, -10.0], [0.1, 0.0], [-0.1, 0.0]])
    error = torch.tensor([[0.1, 0.0]]).expand_as(x) * torch.tensor([[1.0, 1.0, 1.0, 1.0, 10.0, 10.0]]).T
    found = values(x, x - error)
    assert found["sparsify"] > 0.99
    assert found["legacy"] < -30  # two of six tokens count 1 − 1 / 0.01 = −99 each


@pytest.mark.parametrize("name", VARIANTS)
def test_the_batch_matters_to_all_of_them_and_not_to_ours(acts, name):
    recons = acts * (1 + 0.1 * torch.randn(1000, 1, generator=torch.Generator().manual_seed(1)))
    whole, parts = values(acts, recons)[name], values(acts, recons, 4)[name]
    assert abs(whole - parts) > 1e-5
    ours = [ReconstructionSums(8), ReconstructionSums(8)]
    ours[0].update(acts, recons)
    for a, r in zip(acts.split(4), recons.split(4), strict=True):
        ours[1].update(a, r)
    assert ours[1].explained_variance == pytest.approx(ours[0].explained_variance, rel=1e-12)


def test_batches_without_variance_are_left_out():
    x = torch.tensor([[1.0, 2.0], [3.0, 4.0], [5.0, 5.0]])
    assert values(x, 0.9 * x, split=2) == values(x[:2], 0.9 * x[:2]) | {
        "overcomplete": pytest.approx(0.9, abs=0.2)
    }
    nothing = LibraryVariants()
    nothing.update(torch.zeros(0, 2), torch.zeros(0, 2))
    assert all(math.isnan(value) for value in nothing.values().values())


def saebench_0_6_0(acts, recons) -> float:
    """Its explained variance: the mean of x² over tokens and dimensions, squared, in the place of ‖mean‖²."""
    second_moment = acts.square().mean(0).mean()
    total_variance = acts.square().sum(1).mean() - second_moment**2
    return (1 - (acts - recons).square().sum(1).mean() / total_variance).item()


@pytest.mark.parametrize("offset, told", [(1, 0.50), (5, 0.96), (30, 1.00)])
def test_saebench_0_6_0_takes_the_mean_for_an_explanation(offset, told):
    acts = torch.randn(5000, 512, generator=torch.Generator().manual_seed(0)).double() + offset
    mean = acts.mean(0).expand_as(acts)
    assert saebench_0_6_0(acts, mean) == pytest.approx(told, abs=0.005)
    ours = ReconstructionSums(512)
    ours.update(acts, mean)
    assert ours.explained_variance == pytest.approx(0, abs=1e-9)
