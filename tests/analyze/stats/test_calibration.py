"""Thresholds that keep a false-alarm rate, and calibration errors, by hand."""

import math

import pytest
import torch

from saelens_lite.analyze.stats.calibration import brier_score, calibration_error, conformal_threshold


def test_the_threshold_is_the_ranked_score_by_hand():
    """9 scores: ⌈10 · 0.9⌉ = the 9th, ⌈10 · 0.75⌉ = the 8th, ⌈10 · 0.95⌉ = a 10th, which there is not."""
    scores = torch.tensor([9.0, 1, 2, 3, 4, 5, 6, 7, 8])
    assert conformal_threshold(scores, 0.1) == 9
    assert conformal_threshold(scores, 0.25) == 8
    assert conformal_threshold(scores, 0.05) == math.inf


@pytest.mark.parametrize("alpha", [0.05, 0.1])
def test_the_mean_false_alarm_rate_of_random_splits_is_alpha(alpha):
    """200 splits of 400 right answers, 200 of them selecting: within a point of alpha."""
    generator = torch.Generator().manual_seed(0)
    scores = torch.randn(400, generator=generator).exp()
    rates = []
    for _ in range(200):
        order = torch.randperm(400, generator=generator)
        threshold = conformal_threshold(scores[order[:200]], alpha)
        rates.append(float((scores[order[200:]] > threshold).double().mean()))
    # in the mean 1 − ⌈201 (1 − α)⌉ / 201
    assert sum(rates) / 200 == pytest.approx(1 - math.ceil(201 * (1 - alpha)) / 201, abs=0.006)
    assert abs(sum(rates) / 200 - alpha) < 0.01


def test_brier_and_calibration_error_are_those_of_a_case_by_hand():
    p, ones = [0.1, 0.1, 0.8, 1.0], [0, 1, 1, 1]
    assert brier_score(p, ones) == pytest.approx((0.01 + 0.81 + 0.04 + 0) / 4)
    # bins [.1, .2): share ½ against .1 for two items; [.8, .9): 1 against .8; [.9, 1]: 1 against 1
    assert calibration_error(p, ones) == pytest.approx((2 * 0.4 + 0.2 + 0) / 4)
    # of one bin: ¾ against the mean 0.5
    assert calibration_error(p, ones, n_bins=1) == pytest.approx(0.25)


def test_what_is_no_probability_or_alpha_is_refused():
    with pytest.raises(
        ValueError, match="expected probabilities from 0 to 1 and an outcome each, got 1 and 1"
    ):
        brier_score([1.5], [1])
    with pytest.raises(ValueError, match="got 2 and 1"):
        calibration_error([0.5, 0.5], [1])
    with pytest.raises(ValueError, match="an alpha between 0 and 1, got 1 scores and 1.5"):
        conformal_threshold([1.0], 1.5)
