"""Which rows are scored: whole documents by hash, from all of the store, and as many rows as asked for."""

import pytest
import torch

import saelens_lite as sl
from saelens_lite.hashing import is_held_out
from saelens_lite.store.document_sample import sampled_rows

DOCS = torch.arange(300).repeat_interleave(torch.arange(300) % 5 + 1)  # 1 to 5 rows, 900 in all


@pytest.fixture
def store(tmp_path):
    return sl.ActivationStore.from_arrays(tmp_path, torch.zeros(900, 2), documents=DOCS, rows_per_shard=70)


def chosen(store, fraction, max_rows):
    return torch.cat(list(sampled_rows(store, fraction, max_rows)))


@pytest.mark.parametrize("max_rows", [1, 7, 100, 899])
def test_as_many_rows_as_asked_for_of_whole_documents_but_one(store, max_rows):
    scored = chosen(store, None, max_rows)
    assert int(scored.sum()) == max_rows
    parts = [doc for doc in DOCS[scored].unique() if not scored[doc == DOCS].all()]
    assert len(parts) <= 1
    for doc in parts:  # of the last one, the first rows
        rows = scored[doc == DOCS]
        assert rows[: int(rows.sum())].all()


def test_a_larger_sample_holds_the_smaller_and_both_reach_over_the_store(store):
    small, large = chosen(store, None, 100), chosen(store, None, 300)
    assert not (small & ~large).any()
    for scored in (small, large):
        thirds = [int(part.sum()) for part in scored.chunk(3)]
        assert min(thirds) > sum(thirds) / 6


def test_held_out_documents_alone_and_all_of_them_where_fewer_rows_are_there(store):
    held_out = is_held_out(DOCS, 0.3)
    assert not (chosen(store, 0.3, 50) & ~held_out).any()
    for max_rows in (None, 10_000, int(held_out.sum())):
        assert torch.equal(chosen(store, 0.3, max_rows), held_out)
    assert chosen(store, None, None).all()
    assert not chosen(store, 0.0, 10).any()


def test_shards_do_not_matter(store, tmp_path):
    one = sl.ActivationStore.from_arrays(tmp_path / "one", torch.zeros(900, 2), documents=DOCS)
    assert torch.equal(chosen(store, None, 123), chosen(one, None, 123))
