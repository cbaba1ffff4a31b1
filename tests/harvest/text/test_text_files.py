"""Text and jsonl files read by byte offset: the same documents as `datasets` gives, and broken files
named."""

import gzip
import json
import sys
import tracemalloc

import datasets
import pytest

from saelens_lite.harvest.text.sources import open_given, open_named

TRICKY = [
    "a b\nc\n\nd\n",
    "a\r\nb\r\rc\n\r\nd",
    "\n\n\na\n\n\n\nb\n\n\nc\n\n",
    "one\u2028line\x0b\x0c\x85 \u00e9 \U0001f600\n \n\t\n",
    "\ufeffmark\r",
    "\r",
    "no end",
]


def documents(path, **options):
    return list(open_named([str(path)], **options).open(0, None))


@pytest.mark.parametrize("unit", ["line", "paragraph", "document"])
@pytest.mark.parametrize("text", TRICKY)
def test_text_is_cut_as_datasets_cuts_it(tmp_path, text, unit):
    path = tmp_path / "t.txt"
    path.write_bytes(text.encode())
    stream = datasets.load_dataset(
        "text", data_files=str(path), sample_by=unit, split="train", streaming=True
    )
    expected = [row["text"] for row in stream]
    if not expected:
        with pytest.raises(ValueError, match="holds no documents"):
            open_named([str(path)], text_unit=unit)
        return
    source = open_named([str(path)], text_unit=unit)
    everything = list(source.open(0, None))
    assert everything == expected
    stream = source.open(0, None)
    for start in range(len(everything) + 1):
        assert list(source.open(start, stream.cursor())) == everything[start:]
        next(stream, None)


def test_an_empty_file_is_one_empty_document_at_most(tmp_path):
    (tmp_path / "t.txt").write_text("")
    source = open_named([str(tmp_path / "t.txt")], text_unit="document")
    stream = source.open(0, None)
    assert list(stream) == [""]
    assert list(source.open(1, stream.cursor())) == []


def test_jsonl_rows_are_those_of_datasets(tmp_path):
    rows = [{"text": "a\nb\u2028"}, {"text": None}, {"text": ""}, {"n": 1, "text": "é"}, {"n": 2}]
    text = "\n".join(json.dumps(row, ensure_ascii=bool(i % 2)) + "\r" * (i % 2) for i, row in enumerate(rows))
    (tmp_path / "a.jsonl").write_bytes(text.replace("\n", "\n \n\n", 1).encode())
    stream = datasets.load_dataset(
        "json", data_files=str(tmp_path / "a.jsonl"), split="train", streaming=True
    )
    assert (
        documents(tmp_path / "a.jsonl")
        == [row["text"] or "" for row in stream]
        == ["a\nb\u2028", "", "", "é", ""]
    )


def test_text_and_jsonl_need_no_datasets(tmp_path, monkeypatch):
    (tmp_path / "a.jsonl").write_text('{"text": "a"}')
    (tmp_path / "a.txt").write_text("b")
    monkeypatch.setitem(sys.modules, "datasets", None)
    assert list(open_named([str(tmp_path / "a.jsonl"), str(tmp_path / "a.txt")]).open(0, None)) == ["a", "b"]
    assert open_given(["a"]).first == ["a"]


def test_a_byte_order_mark_is_no_part_of_the_json(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"text": "a"}\n', encoding="utf-8-sig")
    assert documents(tmp_path / "a.jsonl") == ["a"]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"text": "cut', "line 102: expected one JSON object a line, got .*cut"),
        ("[1, 2]", "line 102: expected one JSON object a line, such as .* got list; an array"),
        ('{"text": 7}', "line 102 expected text, a chat or token ids, got int"),
        (b'{"text": "\xff"}', "line 102: expected UTF-8 text, got byte 0xff"),
    ],
)
def test_broken_lines_are_named(tmp_path, line, message):
    good = b'{"text": "fine"}\n'
    line = line if isinstance(line, bytes) else line.encode()
    path = tmp_path / "a.jsonl.gz"
    path.write_bytes(gzip.compress(b"\n" + good * 100 + line + b"\n" + good))
    stream = open_named([str(path)]).open(0, None)
    assert stream.skip(99) == 99
    cursor = stream.cursor()
    assert next(stream) == "fine"
    with pytest.raises(ValueError, match=rf"a\.jsonl\.gz, {message}"):
        next(stream)
    with pytest.raises(ValueError, match=rf"a\.jsonl\.gz, {message}"):
        list(open_named([str(path)]).open(99, cursor))


@pytest.mark.long
def test_a_damaged_archive_is_named(tmp_path):
    rows = "".join(json.dumps({"text": str(i)}) + "\n" for i in range(100_000))
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(rows.encode())[:-1000])
    source = open_named([str(tmp_path / "a.jsonl.gz")])
    with pytest.raises(
        ValueError, match=r"gz is damaged, it cannot be read beyond line \d{4,}: Compressed file"
    ):
        list(source.open(0, None))


def test_bytes_that_are_no_text_are_named(tmp_path):
    (tmp_path / "a.txt").write_bytes(gzip.compress(b"text"))
    with pytest.raises(
        ValueError, match=r"a\.txt, line 1: expected UTF-8 .* or give it the suffix of its compression"
    ):
        open_named([str(tmp_path / "a.txt")])


def test_bytes_that_are_no_text_are_named_in_the_first_rows_too(tmp_path):
    (tmp_path / "a.jsonl").write_bytes(b'{"text": "a"}\n{"text": "\xff"}\n')
    with pytest.raises(ValueError, match=r"a\.jsonl, line 2: expected UTF-8 text, got byte 0xff"):
        open_named([str(tmp_path / "a.jsonl")])


@pytest.mark.long
@pytest.mark.parametrize(
    ("name", "content", "options"),
    [
        ("a.jsonl.gz", b'{"text": "%s"}\n', {}),
        ("a.txt.gz", b"%s", {}),
        ("a.txt.gz", b"%s", {"text_unit": "paragraph"}),
        ("a.txt.gz", b"%s", {"text_unit": "document"}),
    ],
)
def test_a_line_is_not_read_before_its_length_is_known(tmp_path, monkeypatch, name, content, options):
    """A small archive may hold a line that no memory does."""
    monkeypatch.setattr("saelens_lite.harvest.text.text_files.MOST_BYTES", 1 << 20)
    path = tmp_path / name
    path.write_bytes(gzip.compress(content % ((b"a word\n" if options else b" " * 7) * 3_000_000), 1))
    tracemalloc.start()
    with pytest.raises(ValueError, match=rf"{name}, line .*: expected lines and documents of at most 1 MiB"):
        open_named([str(path)], **options)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 10_000_000  # of 21
