"""The benchmark of painted defects: its maps, defects and scores by hand, on pictures made here."""

import numpy as np
import pytest
import torch
from scipy.spatial.distance import mahalanobis

from ...bench import textures

DRAWS = np.random.default_rng(0)
NOISE = torch.from_numpy(DRAWS.standard_normal((2, 64, 64)))


def test_a_map_is_the_mean_over_the_patches_on_a_pixel():
    torch.testing.assert_close(textures.maps(NOISE, lambda of: of), NOISE)
    one_patch = torch.zeros(textures.patches(NOISE).shape).double()
    one_patch[0] = 1.0  # of the first picture's corner, which alone covers the first 4 × 4 pixels
    found = textures.maps(NOISE, lambda of: one_patch)
    assert found[0, :4, :8].tolist() == [[1.0] * 4 + [0.5] * 4] * 4 and found[1].abs().max() == 0


@pytest.mark.parametrize("kind", textures.DEFECTS)
def test_a_defect_changes_what_lies_in_it_alone(kind):
    tile, other = DRAWS.uniform(0.3, 0.7, (2, 64, 64))
    spoilt, where = textures.defective(tile, other, kind, 0.2, np.random.default_rng(1))
    assert np.array_equal(spoilt[~where], tile[~where]) and (spoilt[where] != tile[where]).all()
    assert {"scratch": 24 * 3, "grain": 64 * np.pi, "foreign": 64 * np.pi}[kind] == pytest.approx(
        where.sum(), rel=0.12
    )
    of = {"scratch": spoilt - tile - 0.2, "grain": 0, "foreign": spoilt[where].mean() - tile[where].mean()}
    assert np.allclose(of[kind] * where, 0)


def test_scores_by_hand():
    """Of the defect's four pixels two are above all others: half is found, at every rate."""
    scored, where = np.zeros((2, 8, 8)), np.zeros((2, 8, 8), bool)
    where[1, 2:4, 2:4] = True
    scored[1, 2, 2:4] = 1.0
    assert textures.found_shares(scored, where).tolist() == [[0.5] * 61]
    found = textures.measured([(scored, where)] * 2, draws=3)
    assert (found["image_auroc"], found["overlap"], found["pixel_auroc"]) == (1.0, 0.5, 0.75)
    four = np.array([1.0, 3.0, 3.0, 2.0])[:, None, None]  # clean 1 and 3, defective 3 and 2
    assert textures.image_wins(four).tolist() == [[1.0, 1.0], [0.5, 0.0]]


def test_the_rival_is_the_distance_of_mean_and_log_variance():
    train = textures.patches(NOISE)
    moments = np.stack([train.flatten(1).mean(1), train.flatten(1).var(1).log()], axis=1)
    inverse = np.linalg.inv(np.cov(moments.T))
    found = textures.by_moments(train)(train[:5])
    expected = [mahalanobis(one, moments.mean(0), inverse) ** 2 for one in moments[:5]]
    assert found.shape == (5, 1, 16, 16) and found[:, 0, 3, 7].tolist() == pytest.approx(expected)
