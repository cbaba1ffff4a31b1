"""Rows made of other stores' rows: by hand, and refused where the texts differ."""

import pytest
import torch

from saelens_lite.store.derived import difference_store, paired_store
from saelens_lite.store.reader import ActivationStore


def stored(path, rows, hook_point="acts", documents=None, rows_per_shard=3):
    return ActivationStore.from_arrays(
        path, torch.as_tensor(rows).float(), hook_point=hook_point, documents=documents,
        rows_per_shard=rows_per_shard,
    )  # fmt: skip


DOCUMENTS = torch.tensor([0, 0, 1, 1, 2])
BASE = torch.tensor([[1.0, 2], [3, 4], [5, 6], [7, 8], [9, 10]])
TUNED = torch.tensor([[1.0, 1], [3, 5], [0, 6], [7, 8], [10, 8]])


@pytest.fixture
def two(tmp_path):
    return stored(tmp_path / "a", BASE, documents=DOCUMENTS), stored(
        tmp_path / "b", TUNED, documents=DOCUMENTS
    )


def test_the_difference_is_tuned_minus_base(two):
    store = difference_store(*two)
    rows = torch.tensor([[0.0, -1], [0, 1], [-5, 0], [0, 0], [1, -2]])
    assert store.n_rows == 5 and store.n_shards == 2 and store.d_model() == 2
    torch.testing.assert_close(torch.cat([store.acts(0), store.acts(1)]), rows)
    torch.testing.assert_close(store.acts(0, "acts", slice(1, 3)), rows[1:3])
    torch.testing.assert_close(store.gather(torch.tensor([4, 0, 2])), rows[[4, 0, 2]])
    torch.testing.assert_close(store.all_norms(), torch.tensor([1, 1, 5, 0, 5**0.5]))
    assert store.mean_sq_norm() == pytest.approx((1 + 1 + 25 + 0 + 5) / 5)
    torch.testing.assert_close(store.mean(), torch.tensor([-4 / 5, -2 / 5], dtype=torch.float64))
    torch.testing.assert_close(store.row_docs(1), torch.tensor([1, 2]))
    assert store.verify() == []


def test_rows_side_by_side(two, tmp_path):
    wide = stored(tmp_path / "c", torch.arange(15).view(5, 3), documents=DOCUMENTS)
    store = paired_store([two[0], wide])
    assert store.d_model() == 5
    torch.testing.assert_close(store.acts(1), torch.tensor([[7.0, 8, 9, 10, 11], [9, 10, 12, 13, 14]]))


def test_a_derived_store_is_another_content_than_its_sources(two):
    base, tuned = two
    prints = {
        base.fingerprint,
        tuned.fingerprint,
        difference_store(base, tuned).fingerprint,
        difference_store(tuned, base).fingerprint,
        paired_store([base, tuned]).fingerprint,
    }
    assert len(prints) == 5
    assert difference_store(base, tuned).fingerprint == difference_store(base, tuned).fingerprint


def test_stores_that_do_not_fit_are_refused(two, tmp_path):
    base, _ = two
    with pytest.raises(ValueError, match="differ in the documents of shard 1: harvest both from one text"):
        difference_store(base, stored(tmp_path / "c", TUNED, documents=torch.tensor([0, 0, 1, 1, 1])))
    with pytest.raises(ValueError, match="5 and 4 rows in 2 and 2 shards"):
        difference_store(base, stored(tmp_path / "d", TUNED[:4], documents=DOCUMENTS[:4]))
    with pytest.raises(ValueError, match=r"has 2 and .* has 3: paired_store takes rows of two widths"):
        difference_store(base, stored(tmp_path / "e", torch.zeros(5, 3), documents=DOCUMENTS))
    with pytest.raises(ValueError, match="two stores or more and a hook point for each, got 1 and 1"):
        paired_store([base])
