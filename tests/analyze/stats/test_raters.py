"""Agreement of two raters."""

import math

import pytest

from saelens_lite.analyze.stats.raters import agreement


def test_kappa_is_that_of_a_table_worked_by_hand_and_of_scikit_learn():
    # 20 both yes, 5 yes / no, 10 no / yes, 15 both no
    first = ["yes"] * 25 + ["no"] * 25
    second = ["yes"] * 20 + ["no"] * 5 + ["yes"] * 10 + ["no"] * 15
    found = agreement(first, second)
    assert found.share == 0.7
    assert found.kappa == pytest.approx((0.7 - 0.5) / 0.5)  # by chance ½ · 0.6 + ½ · 0.4
    assert found.counts == {("yes", "yes"): 20, ("yes", "no"): 5, ("no", "yes"): 10, ("no", "no"): 15}
    assert found.differing == tuple(range(20, 35))
    from sklearn.metrics import cohen_kappa_score

    assert found.kappa == pytest.approx(cohen_kappa_score(first, second))


def test_one_label_for_all_leaves_kappa_without_a_value():
    found = agreement([1, 1], [1, 1])
    assert found.share == 1 and math.isnan(found.kappa)


def test_other_numbers_of_labels_are_refused():
    with pytest.raises(ValueError, match="labels of the same items, at least one, got 1 and 2"):
        agreement([1], [1, 2])
    with pytest.raises(ValueError, match="got 0 and 0"):
        agreement([], [])
