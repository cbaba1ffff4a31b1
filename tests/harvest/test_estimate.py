"""What a harvest will take, by hand."""

import pytest
import torch

from saelens_lite.errors import ShardError
from saelens_lite.harvest import estimate as module
from saelens_lite.harvest import estimate_harvest
from saelens_lite.harvest.estimate import Estimate, check_fits, estimate
from saelens_lite.harvest.text.documents import Source
from saelens_lite.store.folder import open_folder

PLAN = {"max_tokens": 1000, "dtype": "bfloat16", "hook_points": {"a": {"d_model": 8}, "b": {"d_model": 4}}}


def source(n_documents=None, approximate_bytes=None):
    return Source({}, ["text"], n_documents, approximate_bytes, open=None)


def test_bytes_of_a_row(tmp_path):
    """A position costs 10 bytes of tokens; a bfloat16 row of width 8 costs 16 + 4, one of width 4 8 + 4."""
    found = estimate(PLAN, source(), 10.0, 40.0, open_folder(tmp_path), rows_there=0)
    assert (found.rows, found.size_bytes, found.of_dataset) == (1000, 1000 * (10 + 20 + 12), False)
    assert estimate(PLAN, source(), 10.0, 40.0, open_folder(tmp_path), rows_there=900).rows == 100
    for dtype, size in (("float32", 10 + 36 + 20), ("int8", 10 + 14 + 10)):
        assert (
            estimate(PLAN | {"dtype": dtype}, source(), 10.0, 40.0, open_folder(tmp_path), 0).size_bytes
            == 1000 * size
        )


def test_a_short_dataset_limits_the_rows(tmp_path):
    folder = open_folder(tmp_path)
    assert estimate(PLAN, source(n_documents=20), 10.0, 40.0, folder, 0).rows == 200
    assert estimate(PLAN, source(n_documents=200), 10.0, 40.0, folder, 0).rows == 1000
    by_size = estimate(
        PLAN, source(approximate_bytes=400), 10.0, 40.0, folder, 0
    )  # ten documents of 40 bytes
    assert (by_size.rows, by_size.of_dataset, by_size.at_most) == (100, True, True)
    assert not estimate(PLAN, source(n_documents=20), 10.0, 40.0, folder, 0).at_most


def test_what_cannot_fit_is_refused_with_the_way_out(tmp_path):
    check_fits(Estimate(10, 100, 100), open_folder(tmp_path))
    check_fits(Estimate(10, 100, None), open_folder("memory://nowhere"))
    with pytest.raises(ShardError, match="room for 10 rows, 2 KB; 100 bytes are free: make room"):
        check_fits(Estimate(10, 2000, 100), open_folder(tmp_path))


def test_it_reads_as_a_sentence():
    found = Estimate(1_000_000, 388_000_000, 5_000_000_000, seconds=240.0, of_dataset=True, at_most=True)
    assert str(found) == (
        "at most 1,000,000 rows (the dataset's length, guessed from its first documents), 388 MB; 5 GB are "
        "free; about 4 min of "
        "forward passes"
    )


def test_a_harvest_that_cannot_fit_writes_no_row(harvest, monkeypatch, tmp_path):
    monkeypatch.setattr(module.Estimate, "fits", property(lambda self: False))
    with pytest.raises(ShardError, match="check_space=False"):
        harvest()
    assert not (tmp_path / "store/shards").exists()
    assert harvest(check_space=False).n_rows == 1000


def test_the_estimate_of_a_harvest(harvest, gpt2, byte_tokenizer, texts, tmp_path):
    options = {"max_tokens": 1000, "context_length": 32, "batch_size_seqs": 4, "tokenizer": byte_tokenizer}
    found = estimate_harvest(gpt2, texts, ["blocks.0.hook_resid_post"], tmp_path / "store", **options)
    assert (found.rows, found.size_bytes) == (1000, 1000 * (10 + 64 + 4))
    assert found.seconds > 0
    assert not (tmp_path / "store").exists()
    n_tokens = sum(len(text.encode()) for text in texts)
    options["max_tokens"] = 10**6
    assert (
        estimate_harvest(gpt2, texts, ["blocks.0.hook_resid_post"], tmp_path / "store", **options).rows
        == n_tokens
    )


def test_the_estimate_of_another_plan_is_refused(harvest, gpt2, byte_tokenizer, texts, tmp_path):
    store = harvest()
    options = {"context_length": 16, "batch_size_seqs": 4, "tokenizer": byte_tokenizer}
    with pytest.raises(ShardError, match="context_length expected 32, got 16"):
        estimate_harvest(gpt2, texts, store.hook_points, store.path, max_tokens=1000, **options)
    estimate_harvest(gpt2, texts, store.hook_points, tmp_path / "new", max_tokens=1000, **options)
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("given", [torch.zeros(2), torch.tensor(1.0), "cpu"])
def test_how_to_load_is_refused_beside_a_model_that_is_loaded(gpt2, texts, tmp_path, given):
    asked = gpt2, texts, ["blocks.0.hook_resid_post"], tmp_path / "store"
    with pytest.raises(ValueError, match="device says how to load a model, and this one is an object: leave"):
        estimate_harvest(*asked, max_tokens=1000, device=given)
    with pytest.raises(ValueError, match="split says how to read a dataset by name, and this one is an obj"):
        estimate_harvest(*asked, max_tokens=1000, split=given)
