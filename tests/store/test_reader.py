"""The store's files byte by byte, and reading them; stores here are written by hand, without a model."""

import hashlib
import json
import os
import resource
import struct
from pathlib import Path

import numpy as np
import pytest
import torch

from saelens_lite.errors import ShardError
from saelens_lite.hashing import is_held_out
from saelens_lite.store import reader
from saelens_lite.store.codecs import STORE_DTYPES
from saelens_lite.store.folder import open_folder
from saelens_lite.store.layout import FORMAT, encode_json
from saelens_lite.store.packing import PackedContexts, pack
from saelens_lite.store.reader import ActivationStore
from saelens_lite.store.writer import write_manifest, writing_shard

HOOK = "blocks.0.hook_resid_post"
DOCUMENTS = [[(0, [5, 6, 7]), (1, [8])], [(2, [9, 10])], [(4, [11, 12, 13, 14])]]
"""Three shards of two documents (of the last two, the other is empty): contexts of 4 with BOS 1 give 4, 2 and
4 rows."""


def write_store(
    folder: Path, d_models: dict[str, int], dtype: str = "float32", max_tokens: int = 100, documents=DOCUMENTS
) -> dict[str, list[torch.Tensor]]:
    """A store with random rows; returns the rows by hook point and shard."""
    plan = {
        "format": FORMAT,
        "version": 1,
        "model": {"name": "tiny"},
        "tokenizer": {"name": "bytes"},
        "hook_points": {name: {"d_model": d_model} for name, d_model in d_models.items()},
        "context_length": 4,
        "max_tokens": max_tokens,
        "dtype": dtype,
    }
    store = open_folder(folder)
    store.write("plan.json", encode_json(plan))
    generator = torch.Generator().manual_seed(0)
    written: dict[str, list[torch.Tensor]] = {name: [] for name in d_models}
    for index, shard in enumerate(documents):
        contexts = pack(shard, 4, 1, special_ids=[1], first_doc=2 * index)
        with writing_shard(store, index, contexts, 2, d_models, STORE_DTYPES[dtype]) as writers:
            for name, writer in writers.items():
                rows = torch.randn(contexts.n_rows, d_models[name], generator=generator).to(
                    STORE_DTYPES[dtype]
                )
                for part in rows.split(3):
                    writer.append(part)
                written[name].append(rows)
    write_manifest(store, plan, len(documents), "dataset")
    return written


# the format


def test_acts_file_is_pinned(tmp_path):
    """One row (3, 4) in bfloat16: 0x4040 and 0x4080; its norm 5.0 in float32 is 0x40a00000. All
    little-endian."""
    contexts = PackedContexts(
        *(np.ones((1, 1), dtype=t) for t in (np.int32, np.uint8, np.uint8, np.int32)), first_doc=0
    )
    with writing_shard(open_folder(tmp_path), 7, contexts, 1, {HOOK: 2}, torch.bfloat16) as writers:
        writers[HOOK].append(torch.tensor([[3.0, 4.0]]))
    header = b'{"acts":{"dtype":"BF16","shape":[1,2],"data_offsets":[0,4]},'
    header += b'"norm":{"dtype":"F32","shape":[1],"data_offsets":[4,8]}}'
    header += b" " * (-len(header) % 8)
    expected = struct.pack("<Q", len(header)) + header + bytes.fromhex("40408040") + bytes.fromhex("0000a040")
    folder = tmp_path / "shards/00007"
    assert (folder / f"{HOOK}.safetensors").read_bytes() == expected

    record = json.loads((folder / f"{HOOK}.json").read_bytes())
    tokens = (folder / "tokens.safetensors").read_bytes()
    assert record == {
        "shard": 7,
        "hook_point": HOOK,
        "rows": 1,
        "sequences": 1,
        "first_document": 0,
        "documents": 1,
        "files": {
            f"{HOOK}.safetensors": {"bytes": len(expected), "sha256": hashlib.sha256(expected).hexdigest()},
            "tokens.safetensors": {"bytes": len(tokens), "sha256": hashlib.sha256(tokens).hexdigest()},
        },
        "sum": [3.0, 4.0],
        "sum_sq_norm": 25.0,
    }
    assert sorted(path.name for path in folder.iterdir()) == sorted(
        [f"{HOOK}.json", f"{HOOK}.safetensors", "tokens.safetensors"]
    )


def test_manifest_is_pinned(tmp_path):
    write_store(tmp_path, {HOOK: 3}, max_tokens=9)
    manifest = json.loads((tmp_path / "manifest.json").read_bytes())
    stated = manifest.pop("sha256")
    canonical = json.dumps(manifest, sort_keys=True, ensure_ascii=False) + "\n"
    assert hashlib.sha256(canonical.encode()).hexdigest() == stated
    assert [shard["rows"] for shard in manifest["shards"]] == [4, 2, 4]
    assert manifest["rows_used"] == 3  # 4 + 2 + 3 = 9
    assert manifest["totals"]["documents"] == 6
    files = (tmp_path / "shards").rglob("*.safetensors")
    assert manifest["totals"]["bytes"] == sum(path.stat().st_size for path in files)
    assert manifest["plan_sha256"] == hashlib.sha256((tmp_path / "plan.json").read_bytes()).hexdigest()


# reading


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_rows_are_read_as_written(tmp_path, dtype):
    written = write_store(tmp_path, {HOOK: 3, "model.layers.1": 5}, dtype)
    store = ActivationStore(tmp_path)
    assert store.hook_points == [HOOK, "model.layers.1"]
    assert (store.n_rows, store.n_shards, store.shard_rows) == (10, 3, [4, 2, 4])
    assert (store.d_model(HOOK), store.d_model("model.layers.1")) == (3, 5)
    for name, shards in written.items():
        for shard, rows in enumerate(shards):
            acts = store.acts(shard, name)
            assert acts.dtype == STORE_DTYPES[dtype]
            torch.testing.assert_close(acts, rows, rtol=0, atol=0)
            torch.testing.assert_close(store.norms(shard, name), rows.float().norm(dim=1))
        rows = torch.cat(shards)
        order = torch.tensor([9, 0, 5, 5, 3, 4])
        torch.testing.assert_close(store.gather(order, name), rows[order].float(), rtol=0, atol=0)
        torch.testing.assert_close(store.mean(name), rows.double().mean(0))
        assert store.mean_sq_norm(name) == pytest.approx(
            float(rows.double().square().sum(1).mean()), rel=1e-6
        )
    assert store.gather(torch.tensor([], dtype=torch.int64), HOOK).shape == (0, 3)


def test_rows_lead_back_to_tokens_and_documents(tmp_path):
    """Shard 0 packs 5 6 7 | 8 as [1 5 6 7] [1 8 0 0]; shard 2 packs 11 12 13 14 as [1 11 12 13] [1 14 0
    0]."""
    write_store(tmp_path, {HOOK: 3})
    store = ActivationStore(tmp_path)
    assert store.tokens(0).input_ids.tolist() == [[1, 5, 6, 7], [1, 8, 0, 0]]
    sequence, position = store.row_positions(0)
    assert (sequence.tolist(), position.tolist()) == ([0, 0, 0, 1], [1, 2, 3, 1])
    assert [store.row_docs(shard).tolist() for shard in range(3)] == [[0, 0, 0, 1], [2, 2], [4, 4, 4, 4]]
    assert (store.tokens(2).first_doc, store.tokens(2).doc_id.tolist()) == (4, [[0, 0, 0, 0], [0, 0, -1, -1]])
    held_out = store.held_out_rows(0.5)
    assert torch.equal(held_out, is_held_out(torch.tensor([0, 0, 0, 1, 2, 2, 4, 4, 4, 4]), 0.5))


def test_surplus_rows_of_the_last_shard_are_cut_everywhere(tmp_path):
    written = write_store(tmp_path, {HOOK: 3}, max_tokens=7)
    store = ActivationStore(tmp_path)
    rows = torch.cat(written[HOOK])[:7]
    assert (store.n_rows, store.shard_rows) == (7, [4, 2, 1])
    assert (
        len(store.acts(2))
        == len(store.norms(2))
        == len(store.row_docs(2))
        == int(store.tokens(2).kept.sum())
        == 1
    )
    assert len(store.held_out_rows()) == 7
    torch.testing.assert_close(store.gather(torch.arange(7)), rows, rtol=0, atol=0)
    torch.testing.assert_close(store.mean(), rows.double().mean(0))
    with pytest.raises(ValueError, match="rows go from 0 to 6, got 0 to 7"):
        store.gather(torch.tensor([0, 7]))


def test_the_hook_point_may_be_left_out_where_there_is_one(tmp_path):
    write_store(tmp_path / "one", {HOOK: 3})
    write_store(tmp_path / "two", {HOOK: 3, "blocks.1.hook_resid_post": 3})
    assert ActivationStore(tmp_path / "one").hook_point() == HOOK
    with pytest.raises(ValueError, match=r"several hook points, name one of: blocks\.0.*blocks\.1"):
        ActivationStore(tmp_path / "two").acts(0)
    with pytest.raises(
        ValueError, match=r"no hook point 'blocks.0.resid_post' .did you mean 'blocks.0.hook_resid_post'"
    ):
        ActivationStore(tmp_path / "one").d_model("blocks.0.resid_post")


def test_a_shard_without_rows(tmp_path):
    write_store(tmp_path, {HOOK: 3}, documents=[DOCUMENTS[0], [], [(4, [9, 10])]])
    store = ActivationStore(tmp_path)
    assert store.shard_rows == [4, 0, 2]
    assert store.acts(1).shape == (0, 3)
    assert store.tokens(1).input_ids.shape == (0, 4)
    torch.testing.assert_close(store.gather(torch.tensor([4])), store.acts(2)[:1])


def test_acts_are_mapped_not_read(tmp_path):
    """100 MB of rows, of which one is looked at, cost next to no memory; and mapping holds no file open."""
    contexts = PackedContexts(
        np.ones((1, 200_000), np.int32),
        *(np.ones((1, 200_000), np.uint8) for _ in range(2)),
        np.zeros((1, 200_000), np.int32),
        0,
    )
    plan = {"format": FORMAT, "version": 1, "hook_points": {HOOK: {"d_model": 128}}, "max_tokens": 200_000}
    folder = open_folder(tmp_path)
    folder.write("plan.json", encode_json(plan))
    with writing_shard(folder, 0, contexts, 1, {HOOK: 128}, torch.float32) as writers:
        for _ in range(100):
            writers[HOOK].append(torch.zeros(2000, 128))
    write_manifest(folder, plan, 1, "dataset")
    store = ActivationStore(tmp_path)
    before = _resident_bytes()
    acts = store.acts(0)
    assert float(acts[150_000].sum()) == 0.0
    assert acts.shape == (200_000, 128)
    assert _resident_bytes() - before < 10_000_000
    assert not any(HOOK in str(link.resolve()) for link in Path("/proc/self/fd").iterdir() if link.exists())


def _resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


def test_fingerprint_names_the_content(tmp_path):
    for name, max_tokens in (("a", 9), ("b", 9), ("c", 8)):
        write_store(tmp_path / name, {HOOK: 3}, max_tokens=max_tokens)
    a, b, c = (ActivationStore(tmp_path / name).fingerprint for name in "abc")
    assert a == b != c


# what is broken


def test_no_store_and_unfinished_store(tmp_path):
    with pytest.raises(ShardError, match=r"plan.json does not exist: this folder is no activation store"):
        ActivationStore(tmp_path)
    write_store(tmp_path, {HOOK: 3})
    (tmp_path / "manifest.json").unlink()
    with pytest.raises(ShardError, match="unfinished; run the same command again"):
        ActivationStore(tmp_path)


def test_a_newer_format_is_refused(tmp_path):
    write_store(tmp_path, {HOOK: 3})
    plan = json.loads((tmp_path / "plan.json").read_bytes())
    (tmp_path / "plan.json").write_bytes(encode_json(plan | {"version": 2}))
    with pytest.raises(ShardError, match="has version 2, this saelens_lite reads version 1"):
        ActivationStore(tmp_path)


@pytest.mark.parametrize("file", [f"{HOOK}.safetensors", "tokens.safetensors"])
def test_a_short_or_missing_file_is_named(tmp_path, file):
    write_store(tmp_path, {HOOK: 3})
    path = tmp_path / "shards/00001" / file
    whole = path.read_bytes()
    path.write_bytes(whole[:-1])
    with pytest.raises(
        ShardError, match=rf"00001/{file} has {len(whole) - 1} bytes, the store records {len(whole)} bytes"
    ):
        ActivationStore(tmp_path)
    path.unlink()
    with pytest.raises(ShardError, match=rf"00001/{file} is missing"):
        ActivationStore(tmp_path)


def test_a_file_cut_short_after_opening_is_an_error_not_a_crash(tmp_path):
    write_store(tmp_path, {HOOK: 3})
    store = ActivationStore(tmp_path)
    path = tmp_path / f"shards/00001/{HOOK}.safetensors"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(ShardError, match="00001"):
        store.acts(1)


def test_every_flipped_bit_is_found(tmp_path):
    """One bit in each file: in JSON beside the data opening finds it, in a shard verify does; and the file is
    named."""
    write_store(tmp_path, {HOOK: 3})
    assert ActivationStore(tmp_path).verify() == []
    rng = np.random.default_rng(0)
    for path in sorted(path for path in tmp_path.rglob("*") if path.is_file()):
        whole = path.read_bytes()
        for _ in range(5):
            flipped = bytearray(whole)
            flipped[rng.integers(len(whole))] ^= 1 << rng.integers(8)
            path.write_bytes(flipped)
            try:
                problems = "".join(ActivationStore(tmp_path).verify())
            except ShardError as error:
                problems = str(error)
            assert path.name in problems
        path.write_bytes(whole)


def test_an_altered_header_is_an_error(tmp_path):
    write_store(tmp_path, {HOOK: 3})
    path = tmp_path / f"shards/00000/{HOOK}.safetensors"
    path.write_bytes(b"\xff" * len(path.read_bytes()))
    with pytest.raises(ShardError, match="is no readable safetensors file"):
        ActivationStore(tmp_path).acts(0)


def test_shards_are_numbered_from_zero(tmp_path):
    write_store(tmp_path, {HOOK: 3})
    store = ActivationStore(tmp_path)
    for shard in (-1, 3):
        with pytest.raises(IndexError, match=f"has shards 0 to 2, got {shard}"):
            store.acts(shard)


@pytest.mark.parametrize("read", ["mean", "mean_sq_norm"])
def test_sums_whose_record_was_altered_are_not_used(tmp_path, read):
    """One digit of a sum would move the scale of all training."""
    write_store(tmp_path, {HOOK: 4})
    commit = tmp_path / f"shards/00001/{HOOK}.json"
    record = json.loads(commit.read_bytes())
    commit.write_bytes(encode_json(record | {"sum_sq_norm": record["sum_sq_norm"] + 100}))
    store = ActivationStore(tmp_path)
    with pytest.raises(ShardError, match=rf"shards/00001/{HOOK}.json was altered: .* manifest.json records"):
        getattr(store, read)(HOOK)


@pytest.mark.long
@pytest.mark.parametrize("read", ["gather", "acts", "norms"])
def test_a_shard_that_is_cut_short_while_it_is_read_is_named(tmp_path, read):
    """Without a look at its size, the process ends by SIGBUS: here the rows reach far behind the cut."""
    documents = [[(0, [5] * 30_000)]]
    written = write_store(tmp_path, {HOOK: 64}, documents=documents, max_tokens=10**6)
    store = ActivationStore(tmp_path)
    rows = torch.tensor([0, 29_999])
    assert torch.equal(store.gather(rows, HOOK), written[HOOK][0][rows])
    data = tmp_path / f"shards/00000/{HOOK}.safetensors"
    os.truncate(data, 8192)
    calls = {
        "gather": lambda: store.gather(rows, HOOK),
        "acts": lambda: store.acts(0),
        "norms": lambda: store.norms(0),
    }
    with pytest.raises(ShardError, match=rf"{HOOK}.safetensors has 8192 bytes, the store records"):
        calls[read]()


# many shards


@pytest.fixture
def many(tmp_path):
    """many(n): a store of n shards of 4 rows at two hook points; row r is (r, r + 0.5)."""

    def make(n):
        rows = torch.arange(4.0 * n)[:, None] + torch.tensor([0.0, 0.5])
        points = {"a": rows, "b": -rows}
        return ActivationStore.from_arrays(tmp_path / f"of{n}", points, rows_per_shard=4)

    return make


def test_rows_of_many_small_shards_stand_where_they_are_asked_for(many, monkeypatch):
    """Also where a row is asked for twice, and whatever number of shards is put in place at a time."""
    store = many(40)
    rows = torch.randperm(160, generator=torch.Generator().manual_seed(0))[:97].repeat(2)
    places = torch.randperm(200)[: len(rows)]
    for at_once in (1, 64, 2**19):  # bytes: a shard at a time, 8 rows, all
        monkeypatch.setattr(reader, "_GATHERED_BYTES", at_once)
        out = torch.full((200, 2), -1.0)
        store.gather_into(out, places, rows, "b")
        expected = torch.full((200, 2), -1.0)
        expected[places] = -(rows[:, None] + torch.tensor([0.0, 0.5]))
        assert torch.equal(out, expected)
        assert torch.equal(store.gather(rows, "b", torch.bfloat16), expected[places].bfloat16())
    assert store.gather(rows[:0], "b").shape == (0, 2)


def test_of_more_shards_each_costs_the_same(many, monkeypatch):
    """No list of all shards is made for one of them: what is made of n shards is made once."""
    store = many(50)
    made = []

    class Shards(list):
        def __iter__(self):
            made.append(0)
            return super().__iter__()

    store._shards = Shards(store._shards)
    store.gather(torch.arange(200), "a")
    store.held_out_rows()
    store.median_norm("b")
    store.mean_sq_norm("a")
    assert len(made) <= 1  # of the sums
    assert store.shard_rows is store.shard_rows
