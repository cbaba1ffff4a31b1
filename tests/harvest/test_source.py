"""Documents from each kind of dataset, in order, and what is said about datasets that cannot be read."""

import gzip
import json

import datasets
import pytest

from saelens_lite.harvest.source import as_names, open_given, open_named

TEXTS = ["one", "two words", "drei\u2028é😀", "", "five"]
ROWS = [{"id": i, "text": text} for i, text in enumerate(TEXTS)]


def test_jsonl_plain_and_compressed(tmp_path):
    lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in ROWS)
    (tmp_path / "a.jsonl").write_text(lines, encoding="utf-8")
    with gzip.open(tmp_path / "b.jsonl.gz", "wt", encoding="utf-8") as file:
        file.write(lines)
    for name in ("a.jsonl", "b.jsonl.gz"):
        source = open_named([str(tmp_path / name)])
        assert source.first == list(source.texts) == TEXTS
        assert source.facts["sources"][0]["file"] == name


@pytest.mark.parametrize("kind", ["json", "parquet", "csv"])
def test_tables(tmp_path, kind):
    getattr(datasets.Dataset.from_list(ROWS), f"to_{kind}")(tmp_path / f"table.{kind}")
    assert list(open_named([str(tmp_path / f"table.{kind}")]).texts) == TEXTS


@pytest.mark.parametrize(
    ("unit", "documents"),
    [
        ("line", ["a b", "c", "", "d"]),
        ("paragraph", ["a b\nc", "d"]),
        ("document", ["a b\nc\n\nd\n"]),
    ],
)
def test_text_files_by_line_paragraph_or_whole(tmp_path, unit, documents):
    (tmp_path / "t.txt").write_text("a b\nc\n\nd\n")
    found = list(open_named([str(tmp_path / "t.txt")], text_unit=unit).texts)
    assert [text.strip() for text in found] == [text.strip() for text in documents]


def test_files_with_other_columns_follow_one_another(tmp_path):
    (tmp_path / "a.jsonl").write_text(json.dumps({"text": "first"}))
    (tmp_path / "b.jsonl").write_text(json.dumps({"origin": "x", "text": "second"}))
    names = [str(tmp_path / "a.jsonl"), str(tmp_path / "b.jsonl")]
    assert list(open_named(names).texts) == ["first", "second"]
    assert list(open_named(names[::-1]).texts) == ["second", "first"]


def test_folders(tmp_path):
    splits = datasets.DatasetDict({"train": datasets.Dataset.from_list(ROWS), "test": datasets.Dataset.from_list(ROWS[:1])})
    splits.save_to_disk(tmp_path / "saved")
    assert list(open_named([str(tmp_path / "saved")]).texts) == TEXTS
    assert list(open_named([str(tmp_path / "saved")], split="test").texts) == TEXTS[:1]
    with pytest.raises(ValueError, match="no split 'tset' .did you mean 'test'..; it has train, test"):
        open_named([str(tmp_path / "saved")], split="tset")
    (tmp_path / "files").mkdir()
    (tmp_path / "files/train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    assert list(open_named([str(tmp_path / "files")]).texts) == TEXTS


def test_objects():
    dataset = datasets.Dataset.from_list(ROWS)
    for given in (
        TEXTS,
        tuple(TEXTS),
        iter(TEXTS),
        (row for row in ROWS),
        dataset,
        dataset.to_iterable_dataset(),
        datasets.DatasetDict({"train": dataset}),
    ):
        source = open_given(given)
        assert list(source.texts) == TEXTS
    assert list(open_given([{"body": None}, {"body": "b"}], text_column="body").texts) == ["", "b"]


def test_a_long_iterator_is_read_once_and_lazily():
    read = []

    def texts():
        for i in range(1000):
            read.append(i)
            yield str(i)

    source = open_given(texts())
    assert len(read) == len(source.first) == 64
    assert list(source.texts) == [str(i) for i in range(1000)]


def test_facts_tell_datasets_apart(tmp_path):
    (tmp_path / "a.txt").write_text("one\n" * 100 + "end")
    first = open_named([str(tmp_path / "a.txt")]).facts
    assert first == open_named([str(tmp_path / "a.txt")]).facts
    (tmp_path / "a.txt").write_text("one\n" * 100 + "End")
    assert first != open_named([str(tmp_path / "a.txt")]).facts
    assert open_given(TEXTS).facts != open_given(TEXTS[:4]).facts


def test_names_or_texts(tmp_path):
    (tmp_path / "plain").write_text("x")
    assert as_names("roneneldan/TinyStories") == ["roneneldan/TinyStories"]
    assert as_names(tmp_path / "a.txt") == [str(tmp_path / "a.txt")]
    assert as_names(["owner/name", "a.jsonl.gz", tmp_path / "plain"]) == [
        "owner/name",
        "a.jsonl.gz",
        str(tmp_path / "plain"),
    ]
    assert as_names(["A text.", "owner/name"]) is None
    assert as_names([""]) is None
    assert as_names(ROWS) is None


def test_texts_too_long_for_a_file_name_are_texts():
    assert as_names(["a story " * 100, "x" * 900, "null \0 byte"]) is None


def test_what_cannot_be_read_is_named(tmp_path):
    (tmp_path / "a.jsonl").write_text(json.dumps({"body": "x", "title": "y"}))
    with pytest.raises(ValueError, match=r"a\.jsonl has no column 'text'; its columns are body, title: name one"):
        open_named([str(tmp_path / "a.jsonl")])
    with pytest.raises(ValueError, match=r"a\.jsonl has no split 'validation'.*train"):
        open_named([str(tmp_path / "a.jsonl")], split="validation")
    (tmp_path / "a.zipx").write_text("x")
    with pytest.raises(ValueError, match=r"expected a file of type \.txt, .*got a\.zipx"):
        open_named([str(tmp_path / "a.zipx")])
    with pytest.raises(FileNotFoundError, match=r"b\.jsonl expected an existing file"):
        open_named([str(tmp_path / "b.jsonl")])
    with pytest.raises(ValueError, match="to harvest texts, pass a list of them"):
        open_named(["Once upon a time there was"])
    (tmp_path / "empty.txt").write_text("")
    with pytest.raises(ValueError, match=r"empty\.txt holds no documents"):
        open_named([str(tmp_path / "empty.txt")])
