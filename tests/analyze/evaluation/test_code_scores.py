"""What a code is worth, by hand, by enumeration and by scikit-learn."""

import itertools
import math

import numpy as np
import pytest
import torch
from sklearn.decomposition import PCA as TheirPCA
from sklearn.linear_model import LogisticRegression

from saelens_lite.analyze.evaluation.code_scores import (
    CodeSums,
    as_sparse,
    code_bits,
    coded,
    decoded,
    denoising_gain,
    latent_map,
    linear_cka,
    probe_auroc,
)
from saelens_lite.analyze.stats.ranks import auroc
from tests.autoencoders.test_network import made

from ..conftest import make_sae

DRAWS = torch.Generator().manual_seed(0)
ROWS = torch.randn(200, 6, generator=DRAWS)


def test_bits_by_hand():
    """Two of four units: log2 6 to say which, 8 for each; a dense code of three: 24."""
    assert code_bits(as_sparse(torch.tensor([[1.0, 0, -2, 0], [0, 0, 0, 0]]))).tolist() == pytest.approx(
        [math.log2(6) + 16, 0]
    )
    assert code_bits(as_sparse(torch.ones(1, 3))).tolist() == pytest.approx([24])


def test_sums_by_hand():
    """Variances 1.25, 0 and 2e-5 of three units, mean 0.4167: two are below 1e-4 of it."""
    codes = torch.tensor([[0.0, 5.0, 1.0], [1.0, 5.0, 1.0], [2.0, 5.0, 1.0], [3.0, 5.0, 1.01]])
    whole, parts = CodeSums(3), CodeSums(3)
    whole.update(as_sparse(codes))
    for part in codes.split(3):
        parts.update(as_sparse(part))
    for sums in (whole, parts):
        assert sums.dead == pytest.approx(2 / 3) and sums.active == 11 / 4
        assert sums.bits == pytest.approx((math.log2(3) + 16 + 3 * 24) / 4)
        assert sums.least.tolist() == [1, 5, 1] and sums.most.tolist() == pytest.approx([3, 5, 1.01])


def test_levels_by_hand():
    """Two bits over [−1, 5]: −1, 1, 3, 5; what is 0 stays 0, a unit with one value keeps it."""
    codes = torch.tensor([[-1.0, 7.0], [0.0, 7.0], [1.9, 0.0], [2.1, 7.0], [5.0, 7.0]])
    sums = CodeSums(2)
    sums.update(as_sparse(codes))
    found = sums.quantised(as_sparse(codes), 2).to_dense()
    assert found.tolist() == [[-1, 7], [0, 7], [1, 0], [3, 7], [5, 7]]


@pytest.mark.parametrize("normalize", ["none", "layer_norm"])
def test_codes_decode_to_the_reconstruction(normalize):
    sae, relative = make_sae(normalize_activations=normalize), made(32, kind="multilayer", code_size=4)
    rows = torch.randn(9, 32, generator=torch.Generator().manual_seed(1))
    for one in (sae, relative):
        with torch.no_grad():
            expected = one(rows).recons
        torch.testing.assert_close(decoded(one, rows, coded(one, rows)), expected)


def test_cka_is_the_u_statistic_over_quadruples():
    """HSIC = mean over distinct i, j, q, r of K_ij (L_ij + L_qr − 2 L_iq), Song et al. 2012."""
    x, y = ROWS[:6, :3].double(), ROWS[:6, 2:5].double()
    k, l = x @ x.T, y @ y.T

    def hsic(k, l):
        quadruples = itertools.permutations(range(6), 4)
        return float(np.mean([k[i, j] * (l[i, j] + l[q, r] - 2 * l[i, q]) for i, j, q, r in quadruples]))

    expected = hsic(k, l) / math.sqrt(hsic(k, k) * hsic(l, l))
    assert linear_cka(x, y) == pytest.approx(expected, rel=1e-9)


def test_cka_of_rotated_and_of_independent_codes():
    rotation = torch.linalg.qr(torch.randn(6, 6, generator=DRAWS)).Q
    assert linear_cka(ROWS, 3 * ROWS @ rotation + 1) == pytest.approx(1, abs=1e-5)
    wide = torch.randn(2, 200, 500, generator=DRAWS)  # plain CKA is 0.72 here
    assert abs(linear_cka(*wide)) < 0.03
    with pytest.raises(ValueError, match="the same rows, 4 or more, got 200 and 100"):
        linear_cka(ROWS, ROWS[:100])


def test_a_probe_is_scikit_learns():
    labels = (ROWS[:, 0] + torch.randn(200, generator=DRAWS) > 0).long() + 3
    tests = torch.arange(200) % 2 == 0
    scale = ROWS[~tests].double().numpy().std(0)
    model = LogisticRegression(C=0.1).fit(ROWS[~tests].numpy() / scale, labels[~tests])
    odds, positive = model.decision_function(ROWS[tests].numpy() / scale), labels[tests].numpy() == 4
    expected = auroc(odds[~positive], odds[positive])
    assert 0.7 < expected < 0.95
    assert probe_auroc(as_sparse(ROWS), labels, tests) == pytest.approx(expected, abs=2e-3)
    assert math.isnan(probe_auroc(as_sparse(ROWS), torch.zeros(200), tests))


def test_a_map_is_of_two_units_or_two_principal_components():
    two = made(6, kind="multilayer", code_size=2)
    assert torch.equal(latent_map(two, ROWS), two.encode(ROWS).detach().double())
    four = made(6, kind="multilayer", code_size=4)
    theirs = TheirPCA(2).fit_transform(four.encode(ROWS).detach().double().numpy())
    torch.testing.assert_close(
        latent_map(four, ROWS).abs(), torch.from_numpy(theirs).abs(), atol=1e-5, rtol=0
    )
    assert latent_map(make_sae(), torch.randn(5, 32)).shape == (5, 2)
    with pytest.raises(ValueError, match=r"2 units or more, got codes \[200, 1\]"):
        latent_map(made(6, code_size=1), ROWS)


def test_noise_outside_the_principal_components_is_taken_away():
    """Rows in a plane of eight dimensions keep a quarter of the noise: 10 log10 4 dB."""
    pca = made(8, kind="pca", code_size=2)
    rows = torch.zeros(5000, 8)
    rows[:, :2] = torch.randn(5000, 2, generator=torch.Generator().manual_seed(2))
    assert denoising_gain(pca, rows, 0.5) == pytest.approx(10 * math.log10(4), abs=0.1)
    assert denoising_gain(pca, rows, 0.5) == denoising_gain(pca, rows, 0.5)
    with pytest.raises(ValueError, match="noise_std above 0, got 0"):
        denoising_gain(pca, rows, 0.0)
