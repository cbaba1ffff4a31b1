"""The standard library as a corpus: real modules, in a fixed order, each in one split for good."""

import ast

import pytest

from saelens_lite.demo.corpus import is_held_out, stdlib_documents


@pytest.mark.long
def test_splits_have_no_module_in_common_and_together_are_everything():
    names = {
        split: [document["name"] for document in stdlib_documents(split)]
        for split in ("train", "held_out", "all")
    }
    assert not set(names["train"]) & set(names["held_out"])
    assert sorted(names["train"] + names["held_out"]) == names["all"] == sorted(names["all"])
    assert 0.02 < len(names["held_out"]) / len(names["all"]) < 0.10


def test_the_split_of_a_module_never_moves():
    # worked with hashlib: int(blake2b(b"base64.py", 8 bytes)) % 100 < 5, and for json/decoder.py not
    assert is_held_out("base64.py")
    assert not is_held_out("json/decoder.py")


@pytest.mark.long
def test_documents_are_source_and_neither_tests_nor_tables():
    documents = {document["name"]: document["text"] for document in stdlib_documents("all")}
    ast.parse(documents["json/decoder.py"])
    assert "def py_scanstring" in documents["json/decoder.py"]
    assert sum(map(len, documents.values())) > 5_000_000
    for name in documents:
        assert not {"test", "tests", "idle_test", "site-packages", "encodings"} & set(name.split("/")), name
        assert not name.startswith("_sysconfigdata"), name


@pytest.mark.long
def test_line_ends_are_newlines():
    assert not any("\r\n" in document["text"] for document in stdlib_documents("held_out"))


def test_an_unknown_split_is_refused_when_called():
    with pytest.raises(ValueError, match="expected split 'train', 'held_out' or 'all', got 'test'"):
        stdlib_documents("test")


def test_an_interpreter_without_source_is_named(monkeypatch, tmp_path):
    monkeypatch.setattr("sysconfig.get_paths", lambda: {"stdlib": str(tmp_path)})
    with pytest.raises(FileNotFoundError, match="found no module there"):
        stdlib_documents()
