"""Data files that stay mapped: how many, which of them, and what a file must be."""

import gc
import json

import pytest
import torch
from safetensors.torch import save_file

from saelens_lite.errors import ShardError
from saelens_lite.store import mapped_files
from saelens_lite.store.mapped_files import mapped
from saelens_lite.store.reader import ActivationStore


@pytest.fixture
def made(tmp_path, monkeypatch):
    """made(n): a store of n shards of one row; row r is (r, r). Nothing else is mapped."""
    monkeypatch.setattr(mapped_files, "_KEPT", type(mapped_files._KEPT)())

    def make(n):
        rows = torch.arange(float(n))[:, None].expand(n, 2)
        folder = tmp_path / f"of{n}-{len(list(tmp_path.iterdir()))}"
        return ActivationStore.from_arrays(folder, {"a": rows, "b": -rows}, rows_per_shard=1)

    return make


def mapped_now():
    """(shard, hook point) of each mapped file, that which goes first before the others."""
    names = (name.removesuffix(".safetensors").split("/") for _, name in mapped_files._KEPT)
    return [(int(shard), point) for _, shard, point in names]


def test_few_files_stay_mapped_and_all_are_read(made, monkeypatch):
    """A store alone has all of the room, and two share it."""
    monkeypatch.setattr(mapped_files, "_MOST", 8)
    store, other = made(12), made(10)
    for point, sign in (("a", 1), ("b", -1), ("a", 1)):
        rows = torch.randperm(12)
        assert store.gather(rows, point)[:, 0].tolist() == (sign * rows).tolist()
        assert mapped_now() == [(shard, point) for shard in range(4, 12)]
    other.gather(torch.arange(3), "b")
    assert mapped_now() == [*((shard, "a") for shard in range(7, 12)), *((shard, "b") for shard in range(3))]
    kept = store.acts(3, "a")
    other.gather(torch.arange(10), "b")
    assert mapped_now() == [(shard, "b") for shard in range(2, 10)]
    assert kept.tolist() == [[3, 3]]  # a view outlives what is forgotten


def test_the_last_file_used_is_the_last_to_go_and_is_not_opened_again(made, monkeypatch):
    store, opened = made(6), []
    monkeypatch.setattr(mapped_files, "_MOST", 2)
    monkeypatch.setattr(mapped_files, "mapped", lambda path, size: opened.append(path) or mapped(path, size))
    for shard in (0, 1, 0, 2, 0):
        store.acts(shard, "a")
    assert mapped_now() == [(2, "a"), (0, "a")]
    assert [int(path.split("/")[-2]) for path in opened] == [0, 1, 2]


def test_files_of_a_store_that_is_gone_are_not_kept(made):
    store, other = made(4), made(3)
    store.gather(torch.arange(4), "a")
    other.gather(torch.arange(3), "b")
    del store
    gc.collect()
    assert mapped_now() == [(0, "b"), (1, "b"), (2, "b")]


def test_a_file_of_documents_that_lacks_them_is_named(made):
    """It has the size that the store records: one that has another is refused before."""
    store = made(2)
    path = store.path / "shards/00001/documents.safetensors"
    path.write_bytes(path.read_bytes().replace(b'"doc_id"', b'"doc_no"'))
    with pytest.raises(ShardError, match="00001/documents.safetensors expected doc_id, it has no doc_id"):
        store.held_out_rows()
    path.write_bytes(b"x" * path.stat().st_size)
    with pytest.raises(ShardError, match="00001/documents.safetensors is no readable safetensors file"):
        store.row_docs(1)


def test_files_that_are_not_plain_are_left_to_safetensors(tmp_path):
    save_file({"acts": torch.arange(6.0).view(3, 2), "norm": torch.ones(3)}, tmp_path / "good")
    good = (tmp_path / "good").read_bytes()
    tensors = mapped(tmp_path / "good", len(good))
    assert tensors["acts"].tolist() == [[0, 1], [2, 3], [4, 5]] and tensors["norm"].tolist() == [1, 1, 1]
    size = int.from_bytes(good[:8], "little")
    header = json.loads(good[8 : 8 + size])
    for name, value in (
        ("shape", [3, 3]), ("shape", [-3, -2]), ("shape", [True, 6]), ("shape", 6), ("dtype", "F33"),
        ("data_offsets", [0, 24000]), ("data_offsets", [-24, 0]), ("data_offsets", [0]),
        ("data_offsets", None), ("data_offsets", [1, 25]),
    ):  # fmt: skip
        bad = json.dumps({**header, "acts": {**header["acts"], name: value}}).encode()
        (tmp_path / "bad").write_bytes(len(bad).to_bytes(8, "little") + bad + good[8 + size :])
        assert mapped(tmp_path / "bad", (tmp_path / "bad").stat().st_size) is None
    for content in (b"", b"\xff" * 8, b"\x02" + b"\0" * 7 + b"[]", b"\x04" + b"\0" * 7 + b"null"):
        (tmp_path / "bad").write_bytes(content)
        assert mapped(tmp_path / "bad", len(content)) is None
