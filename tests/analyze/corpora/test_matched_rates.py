"""Differences of rates, by hand and against scipy."""

import numpy as np
import pytest
from scipy import stats

from saelens_lite.analyze.corpora.matched_rates import fisher_p, mantel_haenszel, newcombe


def test_fisher_by_hand():
    """3 of 3 against 0 of 3: one of the C(6, 3) = 20 ways; twice that. 1 of 3 each: both tails above .5."""
    p = fisher_p(np.array([3, 1, 0]), np.array([0, 1, 0]), 3, 3)
    assert p.tolist() == pytest.approx([2 / 20, 1.0, 1.0])
    one_sided = stats.fisher_exact([[40, 60], [20, 80]], alternative="greater").pvalue
    assert fisher_p(np.array([40]), np.array([20]), 100, 100)[0] == pytest.approx(2 * one_sided)


def test_newcombe_is_that_of_his_paper():
    """Newcombe 1998, table II, row a: 56 of 70 and 48 of 80; method 10 gives .0524 to .3339 of .2."""
    low, high = newcombe(np.array([56]), np.array([48]), 70, 80)
    assert (low[0], high[0]) == pytest.approx((0.0524, 0.3339), abs=5e-5)


def test_within_strata_a_difference_that_the_strata_make_is_none():
    """Rate .8 in stratum 0, .2 in stratum 1, of either corpus; A has 90 and 10 documents, B 10 and 90."""
    hits_a, hits_b = np.array([[72.0], [2.0]]), np.array([[8.0], [18.0]])
    n_a, n_b = np.array([90, 10]), np.array([10, 90])
    difference, low, high = mantel_haenszel(hits_a, hits_b, n_a, n_b)[:, 0]
    assert difference == pytest.approx(0.0) and low < 0 < high


def test_mantel_haenszel_by_hand():
    """Strata of (4, 4) and (2, 6), weights 2 and 1.5: (2 · (3/4 − 1/4) + 1.5 · (2/2 − 3/6)) / 3.5 = .5; a
    third stratum holds nothing of B and does not count."""
    hits_a, hits_b = np.array([[3.0], [2.0], [5.0]]), np.array([[1.0], [3.0], [0.0]])
    n_a, n_b = np.array([4, 2, 5]), np.array([4, 6, 0])
    difference, low, high = mantel_haenszel(hits_a, hits_b, n_a, n_b)[:, 0]
    assert difference == pytest.approx(0.5)
    # (3·1·64 + 1·3·64) / (4·4·64) + (2·0·216 + 3·3·8) / (2·6·64), over 3.5²
    variance = (384 / 1024 + 72 / 768) / 3.5**2
    assert high - low == pytest.approx(2 * 1.959964 * variance**0.5)
    assert np.isnan(mantel_haenszel(hits_a[2:], hits_b[2:], n_a[2:], n_b[2:])).all()
