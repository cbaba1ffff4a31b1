"""Noise over seeds against what is known of it, and which SAEs may be called seeds of one configuration."""

import dataclasses
import math

import pytest
import torch

from saelens_lite.analyze.evaluation.seed_noise import MAY_DIFFER, check_seeds, seed_noise, stability
from saelens_lite.config import marked
from saelens_lite.train.config import FREE, OF_SEED, TrainConfig

from ..conftest import make_sae


def recorded(sae, seed, store="abc", **train):
    """The SAE with the record of a training, and with weights that its seed moved."""
    facts = {"store": store, "train": {"seed": seed, "output": f"runs/{seed}", "k": 4, "lr": 0.01} | train}
    sae.config = dataclasses.replace(sae.config, metadata={"saelens_lite": facts})
    with torch.no_grad():
        sae.W_dec += 0.1 * torch.randn(sae.W_dec.shape, generator=torch.Generator().manual_seed(seed))
    return sae


def test_by_hand():
    # Mean 3, deviations −1, 0, 1: variance 2 / 2. t of 2 degrees at 97.5 % is 4.303.
    noise = seed_noise([2.0, 3.0, 4.0])
    assert (noise.mean, noise.sd) == (3.0, 1.0)
    assert noise.detectable == pytest.approx(4.302653 * math.sqrt(2), rel=1e-6)


def test_two_of_one_kind_seldom_differ_by_more_than_what_is_detectable():
    """5 % of pairs, by its definition: 4,000 draws of three SAEs for the noise and two more to compare."""
    draws = torch.randn(4000, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    factor = seed_noise([0.0, 1.0, 2.0]).detectable  # for a deviation of 1
    beyond = (draws[:, 3] - draws[:, 4]).abs() > factor * draws[:, :3].std(1)
    assert beyond.double().mean().item() == pytest.approx(0.05, abs=0.012)


def test_one_sae_has_no_noise():
    with pytest.raises(ValueError, match="expected two SAEs or more, got 1"):
        seed_noise([1.0])


def test_stability_of_the_same_and_of_unlike_directions():
    same = stability([make_sae(), make_sae()])
    assert same.mmcs == pytest.approx(1) and same.mcc == pytest.approx(1)
    unlike = make_sae()
    with torch.no_grad():
        unlike.W_dec.copy_(torch.randn(unlike.W_dec.shape, generator=torch.Generator().manual_seed(9)))
    found = stability([make_sae(), unlike])
    assert found.mmcs == pytest.approx(found.random_mmcs, abs=0.05)
    assert found.mcc == pytest.approx(found.random_mcc, abs=0.05)
    third = stability([make_sae(), make_sae(), unlike])  # of three pairs one agrees
    assert third.mcc == pytest.approx((1 + 2 * found.mcc) / 3, abs=1e-6)


def test_seeds_may_differ_in_seed_and_folder():
    check_seeds(
        {
            "trained": recorded(make_sae(), 0),
            "seed 1": recorded(make_sae(), 1),
            "seed 2": recorded(make_sae(), 2),
        }
    )
    check_seeds({"trained": recorded(make_sae(), 0), "seed 1": perturbed(make_sae())})  # one without a record


def test_what_may_differ_is_what_the_configuration_of_training_marks():
    assert marked(TrainConfig, FREE) | marked(TrainConfig, OF_SEED) == MAY_DIFFER


def perturbed(sae):
    with torch.no_grad():
        sae.W_dec.mul_(1.1)
    return sae


@pytest.mark.parametrize(
    "other, told",
    [
        (lambda: recorded(make_sae(), 1, lr=0.02), "seed 1 is not as trained: lr expected 0.01, got 0.02"),
        (lambda: recorded(make_sae(), 1, store="def"), r"store expected \['abc'\], got \['def'\]"),
        (lambda: make_sae(d_sae=64), "d_sae expected 48, got 64"),
        (lambda: make_sae("relu"), "k expected 4, got None; kind"),
        (lambda: make_sae(), "trained and seed 1 have the same weights: give runs of different seeds"),
    ],
)
def test_what_cannot_be_seeds_of_one_configuration_is_refused(other, told):
    with pytest.raises(ValueError, match=told):
        check_seeds(
            {"trained": make_sae() if "same weights" in told else recorded(make_sae(), 0), "seed 1": other()}
        )
