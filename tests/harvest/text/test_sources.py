"""Documents from each kind of dataset, in order, and what is said about datasets that cannot be read."""

import bz2
import gzip
import json
import lzma
from types import SimpleNamespace

import datasets
import numpy as np
import pytest
import torch

from saelens_lite.harvest.text.sources import as_names, open_given, open_named

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
    splits = datasets.DatasetDict(
        {"train": datasets.Dataset.from_list(ROWS), "test": datasets.Dataset.from_list(ROWS[:1])}
    )
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
    with pytest.raises(
        ValueError, match=r"a\.jsonl has no column 'text'; its columns are body, title: name one"
    ):
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


LONG = [f"document {i} é" + "\n" * (i % 3) + "." * (i % 5) for i in range(76)]
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
        "picked rows": datasets.Dataset.from_dict({"text": LONG[::-1]}).select(range(75, -1, -1)),
        "stream": dataset.to_iterable_dataset(num_shards=3),
        "mapped stream": dataset.to_iterable_dataset()
        .map(lambda row: {"text": row["text"] + "!"})
        .filter(lambda row: True),
        "iterable": dict.fromkeys(LONG).keys(),
    }


def check_positions(source, reopened):
    """From every document on, what is left is the same: by the cursor, by reading past, and by skipping."""
    everything = documents(source)
    assert len(everything) > 64 and source.first == everything[:64]
    stream = source.open(0, None)
    for start in range(len(everything) + 1):
        cursor = json.loads(json.dumps(stream.cursor()))
        if start in (0, 1, 40, 64, 70, len(everything)):
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


@pytest.mark.long
@pytest.mark.parametrize(
    "kind",
    [
        "jsonl",
        "gz",
        "bz2",
        "xz",
        "jsonl files",
        "txt",
        "parquet files",
        "folder",
        "csv files",
        "saved",
        "other kinds",
    ],
)
def test_every_position_of_named_datasets(tmp_path, kind):
    names = named_sources(tmp_path)[kind]
    check_positions(open_named(names), open_named(names))


@pytest.mark.long
@pytest.mark.parametrize("kind", list(given_sources()))
def test_every_position_of_given_datasets(kind):
    check_positions(open_given(given_sources()[kind]), open_given(given_sources()[kind]))


def test_a_stream_that_went_on_elsewhere_leaves_the_callers_object_alone():
    stream = datasets.Dataset.from_dict({"text": LONG}).to_iterable_dataset(num_shards=3)
    source = open_given(stream)
    one, other = source.open(0, None), source.open(0, None)
    one.skip(70)
    assert next(other) == LONG[0]
    assert documents(source, 70, one.cursor()) == LONG[70:]
    assert [row["text"] for row in stream] == LONG


def test_a_stream_shuffled_through_a_buffer_is_refused():
    stream = datasets.Dataset.from_dict({"text": LONG}).to_iterable_dataset(num_shards=3)
    shuffled = stream.shuffle(seed=0, buffer_size=10)
    for given in (
        shuffled,
        shuffled.map(lambda row: row).take(3),
        datasets.concatenate_datasets([stream, shuffled]),
        datasets.IterableDatasetDict({"train": shuffled}),
    ):
        with pytest.raises(ValueError, match=r"is shuffled through a buffer, .*pass it without shuffle\(\)"):
            open_given(given)


def test_interleaved_streams_go_on_too():
    stream = datasets.Dataset.from_dict({"text": LONG}).to_iterable_dataset(num_shards=3)
    both = open_given(datasets.interleave_datasets([stream, stream], probabilities=[0.5, 0.5], seed=0))
    everything = documents(both)
    for start in (1, 70, len(everything)):
        skipped = both.open(0, None)
        assert skipped.skip(start) == start
        assert documents(both, start, json.loads(json.dumps(skipped.cursor()))) == everything[start:]


def test_an_iterator_is_opened_once():
    source = open_given(iter(LONG))
    stream = source.open(70, None)
    assert stream.cursor() is None and list(stream) == LONG[70:]
    with pytest.raises(
        ValueError, match="list_iterator of documents can be read only once: pass a fresh one, or a list"
    ):
        source.open(0, None)


def test_an_iterable_that_changes_is_refused():
    class Rest:
        def __init__(self):
            self.texts = iter(LONG)

        def __iter__(self):
            yield from self.texts

    source = open_given(Rest())
    assert documents(source) == LONG
    with pytest.raises(ValueError, match="gave other documents when it was read again"):
        source.open(0, None)


def test_what_is_known_of_the_size(tmp_path):
    kinds = named_sources(tmp_path)

    def known(names):
        source = open_named(names)
        return source.n_documents, source.approximate_bytes

    size = {path: path.stat().st_size for path in tmp_path.rglob("*") if path.is_file()}
    assert known(kinds["txt"]) == (None, size[tmp_path / "plain.txt"])
    assert known(kinds["gz"]) == (None, 8 * size[tmp_path / "a.jsonl.gz"])
    assert known(kinds["jsonl files"]) == (None, sum(size[tmp_path / f"{i}.jsonl"] for i in range(2)))
    assert known(kinds["folder"]) == (None, 8 * sum(size[tmp_path / f"many/{i}.parquet"] for i in range(2)))
    n_documents, size_of_saved = known(kinds["saved"])
    assert n_documents == 76 and size_of_saved > sum(len(text) for text in LONG)
    assert (open_given(LONG).n_documents, open_given(LONG).approximate_bytes) == (76, None)
    assert open_given(iter(LONG)).n_documents is None


def test_chats_and_token_ids_are_told_by_their_value(tmp_path):
    rows = [{"messages": CHAT, "input_ids": [1, 5, 6]}, {"messages": CHAT[:1], "input_ids": []}]
    dataset = datasets.Dataset.from_list(rows)
    dataset.to_parquet(tmp_path / "a.parquet")
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    for name in ("a.parquet", "a.jsonl"):
        path = str(tmp_path / name)
        assert documents(open_named([path], text_column="messages")) == [CHAT, CHAT[:1]]
        assert documents(open_named([path], text_column="input_ids")) == [[1, 5, 6], []]
        with pytest.raises(
            ValueError, match="no column 'text'.*text_column='messages' for its chats or .*='input_ids' for"
        ):
            open_named([path])
    for given in (
        dataset,
        dataset.with_format("numpy"),
        dataset.with_format("torch"),
        dataset.to_iterable_dataset(),
        dataset.to_iterable_dataset().with_format("torch"),
    ):
        assert documents(open_given(given, text_column="input_ids")) == [[1, 5, 6], []]
    assert documents(
        open_given([CHAT, [3, np.int64(4)], np.array([5]), torch.tensor([6]), ("7",)[0], None])
    ) == [
        CHAT,
        [3, 4],
        [5],
        [6],
        "7",
        "",
    ]
    assert documents(open_given(torch.tensor([[1, 2], [3, 4]]))) == [[1, 2], [3, 4]]


def test_tables_of_messages_carry_no_empty_keys():
    messages = [
        {"role": "user", "content": "Hi", "tools": None},
        {"role": "tool", "content": None, "tools": ["a"]},
    ]
    (document,) = open_given([messages]).first
    assert document == [{"role": "user", "content": "Hi"}, {"role": "tool", "tools": ["a"]}]


@pytest.mark.parametrize(
    ("value", "got"),
    [
        (3.5, "float"),
        ([1.5, 2], "list of float, int"),
        ([True], "list of bool"),
        (["a", "b"], "list of str"),
        (np.zeros((2, 3), dtype=np.int64), r"an array of shape \[2, 3\] and type int64"),
        (b"bytes", "bytes"),
    ],
)
def test_values_that_are_no_documents(value, got):
    with pytest.raises(
        ValueError,
        match=f"document 1 expected text, a chat or token ids, got {got}: name another text_column",
    ):
        open_given([{"text": "a"}, {"text": value}])


def test_messages_without_role_are_no_chat():
    with pytest.raises(ValueError, match="document 0 expected chat messages .*, got one with from, value"):
        open_given([[{"from": "human", "value": "Hi"}]])


def test_real_twin(shared_data):
    name = str(shared_data / "corpora/tinystories/train_v1.jsonl.gz")
    source = open_named([name])
    stories = documents(source)
    reference = datasets.load_dataset("json", data_files=name, split="train", streaming=True)
    assert stories == [row["text"] for row in reference] and len(stories) == 1000
    for start in (1, 63, 64, 65, 500, 999, 1000):
        stream = source.open(0, None)
        stream.skip(start)
        assert documents(open_named([name]), start, stream.cursor()) == stories[start:]


def test_a_hub_dataset_is_known_by_its_commit(monkeypatch):
    """main, which moves on, and the commit that it was at make the same plan."""

    class Builder:
        config = SimpleNamespace(
            data_files={"train": [f"hf://datasets/owner/name@{'0a' * 20}/train.parquet"]}
        )

        def as_streaming_dataset(self, split):
            return datasets.Dataset.from_dict({"text": ["one", "two"]}).to_iterable_dataset()

    monkeypatch.setattr(datasets, "load_dataset_builder", lambda **arguments: Builder())
    moving, fixed = (open_named(["owner/name"], revision=revision).facts for revision in (None, "0a" * 20))
    assert moving == fixed
    assert moving["sources"][0] == {"hub": "owner/name", "config": None, "revision": "0a" * 20}


def test_what_a_folder_leaves_out_is_said(tmp_path, caplog):
    """`datasets` takes the split from a file's name, and one type of file; the size is of what is read."""
    folder = tmp_path / "texts"
    (folder / ".cache").mkdir(parents=True)
    for name, text in (
        ("train_v1", "one"),
        ("more", "two"),
        ("validation_v1", "three"),
        (".cache/x", "four"),
    ):
        (folder / f"{name}.jsonl").write_text(json.dumps({"text": text}) + "\n")
    (folder / "notes.txt").write_text("five\n")
    source = open_named([str(folder)])
    assert documents(source) == ["one"] and source.approximate_bytes == len('{"text": "one"}\n')
    assert (
        "split train is 1 of its 4 files. Left out: more.jsonl (no split), notes.txt (no split), "
        "validation_v1.jsonl (validation). To read these too, name the files one by one"
    ) in caplog.text
    caplog.clear()
    assert documents(open_named([str(folder)], split="validation")) == ["three"]
    for name in ("validation_v1.jsonl", "notes.txt", "train_v1.jsonl"):
        (folder / name).unlink()
    caplog.clear()
    assert documents(open_named([str(folder)])) == ["two"] and not caplog.text
