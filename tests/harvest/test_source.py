"""Documents from each kind of dataset, in order, and what is said about datasets that cannot be read."""

import bz2
import gzip
import json
import lzma
import shutil

import datasets
import numpy as np
import pytest
import torch

from saelens_lite.harvest.source import as_names, open_given, open_named

TEXTS = ["one", "two words", "drei\u2028é😀", "", "five"]
ROWS = [{"id": i, "text": text} for i, text in enumerate(TEXTS)]


def documents(source, start=0, cursor=None):
    return list(source.open(start, cursor))


def test_jsonl_plain_and_compressed(tmp_path):
    lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in ROWS)
    (tmp_path / "a.jsonl").write_text(lines, encoding="utf-8")
    with gzip.open(tmp_path / "b.jsonl.gz", "wt", encoding="utf-8") as file:
        file.write(lines)
    for name in ("a.jsonl", "b.jsonl.gz"):
        source = open_named([str(tmp_path / name)])
        assert source.first == documents(source) == TEXTS
        assert source.facts["sources"][0]["file"] == name


@pytest.mark.parametrize("kind", ["json", "parquet", "csv"])
def test_tables(tmp_path, kind):
    getattr(datasets.Dataset.from_list(ROWS), f"to_{kind}")(tmp_path / f"table.{kind}")
    assert documents(open_named([str(tmp_path / f"table.{kind}")])) == TEXTS


@pytest.mark.parametrize(
    ("unit", "expected"),
    [
        ("line", ["a b", "c", "", "d"]),
        ("paragraph", ["a b\nc", "d"]),
        ("document", ["a b\nc\n\nd\n"]),
    ],
)
def test_text_files_by_line_paragraph_or_whole(tmp_path, unit, expected):
    (tmp_path / "t.txt").write_text("a b\nc\n\nd\n")
    found = documents(open_named([str(tmp_path / "t.txt")], text_unit=unit))
    assert [text.strip() for text in found] == [text.strip() for text in expected]


def test_files_with_other_columns_follow_one_another(tmp_path):
    (tmp_path / "a.jsonl").write_text(json.dumps({"text": "first"}))
    (tmp_path / "b.jsonl").write_text(json.dumps({"origin": "x", "text": "second"}))
    names = [str(tmp_path / "a.jsonl"), str(tmp_path / "b.jsonl")]
    assert documents(open_named(names)) == ["first", "second"]
    assert documents(open_named(names[::-1])) == ["second", "first"]


def test_folders(tmp_path):
    splits = datasets.DatasetDict({"train": datasets.Dataset.from_list(ROWS), "test": datasets.Dataset.from_list(ROWS[:1])})
    splits.save_to_disk(tmp_path / "saved")
    assert documents(open_named([str(tmp_path / "saved")])) == TEXTS
    assert documents(open_named([str(tmp_path / "saved")], split="test")) == TEXTS[:1]
    with pytest.raises(ValueError, match="no split 'tset' .did you mean 'test'..; it has train, test"):
        open_named([str(tmp_path / "saved")], split="tset")
    (tmp_path / "files").mkdir()
    (tmp_path / "files/train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    assert documents(open_named([str(tmp_path / "files")])) == TEXTS


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
        assert documents(source) == TEXTS
    assert documents(open_given([{"body": None}, {"body": "b"}], text_column="body")) == ["", "b"]


def test_a_long_iterator_is_read_once_and_lazily():
    read = []

    def texts():
        for i in range(1000):
            read.append(i)
            yield str(i)

    source = open_given(texts())
    assert len(read) == len(source.first) == 64
    assert documents(source) == [str(i) for i in range(1000)]


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


LONG = [f"document {i} é" + "\n" * (i % 3) + "." * (i % 5) for i in range(90)]
"""More documents than are read to look at a source."""

CHAT = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]


def write_jsonl(path, texts=LONG, opener=open):
    with opener(path, "wt", encoding="utf-8") as file:
        file.writelines(json.dumps({"text": text}) + "\n" * (1 + i % 2) for i, text in enumerate(texts))
    return str(path)


def named_sources(folder):
    """The same long dataset in every kind of file: name → names of the datasets."""
    (folder / "plain.txt").write_text("\n".join(LONG), newline="")
    half = [LONG[:50], LONG[50:]]
    for i, part in enumerate(half):
        write_jsonl(folder / f"{i}.jsonl", part)
        dataset = datasets.Dataset.from_dict({"text": part})
        dataset.to_parquet(folder / f"{i}.parquet", batch_size=7)
        dataset.to_csv(folder / f"{i}.csv")
        (folder / "many").mkdir(exist_ok=True)
        dataset.to_parquet(folder / f"many/{i}.parquet", batch_size=7)
    datasets.Dataset.from_dict({"text": LONG}).save_to_disk(folder / "saved")
    return {
        "jsonl": [write_jsonl(folder / "a.jsonl")],
        "gz": [write_jsonl(folder / "a.jsonl.gz", opener=gzip.open)],
        "bz2": [write_jsonl(folder / "a.jsonl.bz2", opener=bz2.open)],
        "xz": [write_jsonl(folder / "a.jsonl.xz", opener=lzma.open)],
        "jsonl files": [str(folder / f"{i}.jsonl") for i in range(2)],
        "txt": [str(folder / "plain.txt")],
        "parquet files": [str(folder / f"{i}.parquet") for i in range(2)],
        "folder": [str(folder / "many")],
        "csv files": [str(folder / f"{i}.csv") for i in range(2)],
        "saved": [str(folder / "saved")],
        "other kinds": [str(folder / "0.csv"), str(folder / "1.jsonl")],
    }


def given_sources():
    dataset = datasets.Dataset.from_dict({"text": LONG})
    return {
        "list": LONG,
        "tuple": tuple(LONG),
        "array": np.array(LONG),
        "dataset": dataset,
        "picked rows": datasets.Dataset.from_dict({"text": LONG[::-1]}).select(range(89, -1, -1)),
        "stream": dataset.to_iterable_dataset(num_shards=3),
        "mapped stream": dataset.to_iterable_dataset().map(lambda row: {"text": row["text"] + "!"}).filter(lambda row: True),
        "iterable": {text: None for text in LONG}.keys(),
    }


def check_positions(source, reopened):
    """From every document on, what is left is the same: by the cursor, by reading past, and by skipping."""
    everything = documents(source)
    assert len(everything) > 64 and source.first == everything[:64]
    stream = source.open(0, None)
    for start in range(len(everything) + 1):
        cursor = json.loads(json.dumps(stream.cursor()))
        if start % 10 == 0:
            assert documents(reopened, start, cursor) == everything[start:]
            skipped = source.open(0, None)
            assert skipped.skip(start) == start
            after = json.loads(json.dumps(skipped.cursor()))
            assert list(skipped) == everything[start:]
            assert documents(reopened, start, after) == everything[start:]
            assert documents(reopened, start, None) == everything[start:]
        again = source.open(start, cursor)
        assert again.cursor() == cursor or start == 0 or cursor is None
        assert list(again) == everything[start:], start
        if start < len(everything):
            assert next(stream) == everything[start]
    assert next(stream, None) is None
    assert documents(reopened, len(everything), json.loads(json.dumps(stream.cursor()))) == []
    assert source.open(0, None).skip(1000) == len(everything)


@pytest.mark.parametrize(
    "kind",
    ["jsonl", "gz", "bz2", "xz", "jsonl files", "txt", "parquet files", "folder", "csv files", "saved", "other kinds"],
)
def test_every_position_of_named_datasets(tmp_path, kind):
    names = named_sources(tmp_path)[kind]
    check_positions(open_named(names), open_named(names))


@pytest.mark.parametrize("kind", list(given_sources()))
def test_every_position_of_given_datasets(kind):
    check_positions(open_given(given_sources()[kind]), open_given(given_sources()[kind]))
