"""Cached activations of SAELens: a folder of the form that it writes comes in, and a store goes out as one.

tests/peer/test_saelens_acts.py does the same with SAELens itself.
"""

import numpy as np
import pytest
import torch
from datasets import Array2D, Dataset, DatasetDict, Features, Sequence, Value, load_from_disk

from saelens_lite.errors import ShardError
from saelens_lite.store.reader import ActivationStore
from saelens_lite.store.saelens_activations import read_saelens_activations, write_saelens_activations

HOOK = "blocks.0.hook_resid_post"
N_SEQS, CONTEXT, D_MODEL = 7, 5, 4


def acts_of(hook_points=(HOOK,)):
    generator = torch.Generator().manual_seed(0)
    return {name: torch.randn(N_SEQS, CONTEXT, D_MODEL, generator=generator) for name in hook_points}


def token_ids():
    return np.arange(N_SEQS * CONTEXT, dtype=np.int32).reshape(N_SEQS, CONTEXT)


def write_cache(folder, hook_points=(HOOK,), tokens=True):
    """What `CacheActivationsRunner._create_shard` builds, saved."""
    features = {name: Array2D(shape=(CONTEXT, D_MODEL), dtype="float32") for name in hook_points}
    columns = dict(acts_of(hook_points))
    if tokens:
        features["token_ids"] = Sequence(Value(dtype="int32"), length=CONTEXT)
        columns["token_ids"] = torch.from_numpy(token_ids())
    Dataset.from_dict(columns, features=Features(features)).save_to_disk(str(folder), num_shards=2)


def test_import(tmp_path):
    write_cache(tmp_path / "cache")
    store = read_saelens_activations(
        tmp_path / "cache", tmp_path / "store", rows_per_shard=17, model_name="gpt2"
    )
    assert (store.hook_points, store.d_model(), store.context_length, store.model_name) == (
        [HOOK],
        D_MODEL,
        CONTEXT,
        "gpt2",
    )
    assert store.shard_rows == [15, 15, 5]  # of 17 rows, three whole contexts
    assert torch.equal(store.gather(torch.arange(35)), acts_of()[HOOK].view(35, D_MODEL))
    assert store.tokens(1).input_ids.tolist() == token_ids()[3:6].tolist()
    assert store.tokens(1).kept.all() and store.tokens(1).attended.all()
    assert (
        torch.cat([store.row_docs(shard) for shard in range(3)]).tolist() == np.arange(7).repeat(5).tolist()
    )
    assert store.verify() == []


def test_import_of_several_hook_points_as_int8(tmp_path):
    write_cache(tmp_path / "cache", (HOOK, "blocks.1.hook_resid_post"))
    store = read_saelens_activations(tmp_path / "cache", tmp_path / "both", dtype="int8")
    assert store.hook_points == [HOOK, "blocks.1.hook_resid_post"]
    rows = acts_of(store.hook_points)["blocks.1.hook_resid_post"].view(35, D_MODEL)
    torch.testing.assert_close(store.acts(0, "blocks.1.hook_resid_post"), rows, atol=0.03, rtol=0)
    one = read_saelens_activations(
        tmp_path / "cache", tmp_path / "one", hook_points=["blocks.1.hook_resid_post"]
    )
    assert one.hook_points == ["blocks.1.hook_resid_post"]


def test_a_cache_without_tokens_becomes_a_store_without_text(tmp_path):
    write_cache(tmp_path / "cache", tokens=False)
    store = read_saelens_activations(tmp_path / "cache", tmp_path / "store", rows_per_shard=17)
    assert not store.has_tokens
    assert store.shard_rows == [15, 15, 5]
    assert torch.equal(store.gather(torch.arange(35)), acts_of()[HOOK].view(35, D_MODEL))
    assert (
        torch.cat([store.row_docs(shard) for shard in range(3)]).tolist() == np.arange(7).repeat(5).tolist()
    )


def test_the_settings_beside_a_cache_name_the_model(tmp_path):
    write_cache(tmp_path / "cache")
    (tmp_path / "cache/cache_activations_runner_cfg.json").write_text('{"model_name": "tiny-stories-1M"}')
    assert read_saelens_activations(tmp_path / "cache", tmp_path / "store").model_name == "tiny-stories-1M"


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_export_is_the_import_backwards(tmp_path, monkeypatch, dtype):
    """Contexts come back as they were, in several files and batches: of 80 bytes a context two make a batch,
    four a file."""
    monkeypatch.setattr("saelens_lite.store.saelens_activations._BATCH_BYTES", 2 * CONTEXT * D_MODEL * 4)
    monkeypatch.setattr("saelens_lite.store.saelens_activations._FILE_BYTES", 4 * CONTEXT * D_MODEL * 4)
    write_cache(tmp_path / "cache")
    store = read_saelens_activations(tmp_path / "cache", tmp_path / "store", rows_per_shard=17)
    write_saelens_activations(store, tmp_path / "out", dtype=dtype)
    written = load_from_disk(str(tmp_path / "out"))
    assert written.features[HOOK] == Array2D(shape=(CONTEXT, D_MODEL), dtype=dtype)
    found = written.with_format("torch")[:]
    torch.testing.assert_close(
        found[HOOK].float(), acts_of()[HOOK].to(getattr(torch, dtype)).float(), rtol=0, atol=0
    )
    assert found["token_ids"].tolist() == token_ids().tolist()
    if dtype == "float32":
        assert len(list((tmp_path / "out").glob("*.arrow"))) == 2
        assert written.features == load_from_disk(str(tmp_path / "cache")).features


def test_rows_of_other_stores_are_cut_into_contexts(tmp_path, caplog):
    rows = torch.randn(35, 3, generator=torch.Generator().manual_seed(0))
    store = ActivationStore.from_arrays(tmp_path / "store", rows, rows_per_shard=9)
    with caplog.at_level("INFO"):
        write_saelens_activations(store, tmp_path / "out", context_size=8)
    written = load_from_disk(str(tmp_path / "out"))
    assert written.column_names == ["acts"]
    assert torch.equal(torch.tensor(written.with_format("numpy")[:]["acts"]), rows[:32].view(4, 8, 3))
    assert "the last 3 rows fill no context of 8 and are left out" in caplog.text


def test_rows_and_tokens_stay_together_where_positions_have_no_row(tmp_path, gpt2, byte_tokenizer):
    """BOS has no row: the tokens beside the rows are those of the text alone."""
    import saelens_lite as sl

    store = sl.harvest_activations(
        gpt2, ["abcdefgh", "ijkl"], [HOOK], tmp_path / "store", max_tokens=100, context_length=4,
        tokenizer=byte_tokenizer, dtype="float32", progress=False,
    )  # fmt: skip
    write_saelens_activations(store, tmp_path / "out")
    found = load_from_disk(str(tmp_path / "out")).with_format("torch")[:]
    assert byte_tokenizer.decode(found["token_ids"].flatten()) == "abcdefghijkl"
    assert torch.equal(found[HOOK].view(12, 32), store.gather(torch.arange(12)))


def test_what_cannot_be_is_refused(tmp_path):
    write_cache(tmp_path / "cache")
    store = read_saelens_activations(tmp_path / "cache", tmp_path / "store")
    with pytest.raises(ShardError, match="holds a finished store"):
        read_saelens_activations(tmp_path / "cache", tmp_path / "store")
    with pytest.raises(ValueError, match="expected a dataset folder, such as CacheActivationsRunner writes"):
        read_saelens_activations(tmp_path / "store", tmp_path / "a")
    with pytest.raises(ValueError, match="has activations of blocks.0.hook_resid_post, none of 'blocks.9'"):
        read_saelens_activations(tmp_path / "cache", tmp_path / "a", hook_points=["blocks.9"])
    Dataset.from_dict({"text": ["a"]}).save_to_disk(str(tmp_path / "text"))
    with pytest.raises(ValueError, match=r"a column \[context, d_model\] of activations, got 1 rows of text"):
        read_saelens_activations(tmp_path / "text", tmp_path / "a")
    DatasetDict(train=Dataset.from_dict({"text": ["a"]})).save_to_disk(str(tmp_path / "splits"))
    with pytest.raises(ValueError, match="holds the splits train: give the folder of one of them"):
        read_saelens_activations(tmp_path / "splits", tmp_path / "a")
    with pytest.raises(ValueError, match="is not empty"):
        write_saelens_activations(store, tmp_path / "cache")
    with pytest.raises(ValueError, match="dtype expected float32 or float16.*got 'bfloat16'"):
        write_saelens_activations(store, tmp_path / "out", dtype="bfloat16")
    with pytest.raises(ValueError, match="context_size 36 is more than the 35 rows"):
        write_saelens_activations(store, tmp_path / "out", context_size=36)
    vectors = ActivationStore.from_arrays(tmp_path / "vectors", torch.zeros(9, 2))
    with pytest.raises(ValueError, match="has no contexts: say how many rows"):
        write_saelens_activations(vectors, tmp_path / "out")


def test_the_methods_of_an_earlier_version_name_the_functions(tmp_path):
    with pytest.raises(
        AttributeError,
        match=r"^ActivationStore.from_saelens is now saelens_lite.store.read_saelens_activations\(",
    ):
        ActivationStore.from_saelens()
    store = ActivationStore.from_arrays(tmp_path, torch.zeros(9, 2))
    with pytest.raises(
        AttributeError, match=r"to_saelens is now saelens_lite.store.write_saelens_activations\(store"
    ):
        store.to_saelens(tmp_path / "out")
