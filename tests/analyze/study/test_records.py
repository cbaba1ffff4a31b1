"""Records in every kind of file; what is wrong in them is named by its line, before a model is loaded."""

import bz2
import gzip
import json
import lzma

import pytest

from saelens_lite.analyze.study.questions import Question, batches
from saelens_lite.analyze.study.records import read_questions
from saelens_lite.cli.commands import main

ROWS = [
    {"prompt": "Rome lies in", "entity": "Rome", "answer": ["Italy", "Italia"], "known": True},
    {"prompt": "Oslo or Oslo", "span": [8, 12], "known": False, "popularity": 3.0, "source": "wiki"},
    {"prompt": 'Why, "then"?', "answer": "because, so", "template": "plain", "type": "city"},
]
EXPECTED = [
    Question(prompt="Rome lies in", entity="Rome", answer=("Italy", "Italia"), known=True),
    Question(prompt="Oslo or Oslo", span=(8, 12), known=False, popularity=3.0, source="wiki"),
    Question(prompt='Why, "then"?', answer="because, so", template="plain", type="city"),
]
CSV = b"""prompt,entity,answer,known,span,popularity,source,template,type
Rome lies in,Rome,"[""Italy"", ""Italia""]",true,,,,,
Oslo or Oslo,,,0,"[8, 12]",3,wiki,,
"Why, ""then""?",,"because, so",,,,,plain,city
"""


def as_jsonl(path):
    path.write_text("\n".join(json.dumps(row) for row in ROWS))


def as_csv(path):
    path.write_bytes(CSV)


def as_parquet(path):
    from pyarrow import Table, parquet

    columns = {name: [row.get(name) for row in ROWS] for name in {name: None for row in ROWS for name in row}}
    columns["answer"] = [["Italy", "Italia"], None, ["because, so"]]  # a column has one type
    parquet.write_table(Table.from_pydict(columns), path)


@pytest.mark.parametrize("write", [as_jsonl, as_csv, as_parquet])
@pytest.mark.parametrize(("suffix", "module"), [("", None), (".gz", gzip), (".bz2", bz2), (".xz", lzma)])
def test_every_kind_of_file_gives_the_same_questions(write, suffix, module, tmp_path):
    path = tmp_path / f"records.{write.__name__.removeprefix('as_')}"
    write(path)
    if module is not None:
        (tmp_path / (path.name + suffix)).write_bytes(module.compress(path.read_bytes()))
    found = read_questions(tmp_path / (path.name + suffix))
    assert [(one.prompt, one.entity, one.answers, one.known, one.span) for one in found] == [
        (one.prompt, one.entity, one.answers, one.known, one.span) for one in EXPECTED
    ]
    assert [(one.popularity, one.source, one.template, one.type) for one in found] == [
        (one.popularity, one.source, one.template, one.type) for one in EXPECTED
    ]
    assert [one.place for one in found] == [(0, 4), (8, 12), None]
    assert [one.cluster for one in found] == ["Rome", "Oslo", 'Why, "then"?']


def test_columns_of_other_names_make_prompts_and_fields(tmp_path):
    rows = [
        {"kind": "city", "label": "Rome", "facts": {"country": "Italy"}, "views": 7},
        {"kind": "song", "label": "Rome", "facts": {"year": 1}, "views": 1},
    ]
    path = tmp_path / "entities.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    how = {"fields": {"entity": "label", "answer": "facts.country", "popularity": "views"}}
    found = read_questions(path, prompt="The {kind} {label} lies in", only={"kind": "city"}, **how)
    assert found == [Question(prompt="The city Rome lies in", entity="Rome", answer="Italy", popularity=7)]
    with pytest.raises(ValueError, match="jsonl, line 2 expected a column 'facts.country', got year"):
        read_questions(path, prompt="The {kind} {label} lies in", **how)
    with pytest.raises(ValueError, match="line 1 expected a column 'labl' .did you mean 'label'"):
        read_questions(path, prompt="The {labl}")
    with pytest.raises(ValueError, match="fields of Question, got 'anser' .did you mean 'answer'"):
        read_questions(path, fields={"anser": "label"})
    with pytest.raises(ValueError, match="expected records with kind=film, got none"):
        read_questions(path, prompt="{label}", only={"kind": "film"})


def question(name, **fields):
    return {"prompt": f"{name} is", "entity": name, "answer": "x"} | fields


BAD = {
    "a missing span": (
        [question("Rome"), question("Oslo", entity="Paris")],
        "line 2: entity expected a part of the prompt 'Oslo is', got 'Paris': write it as it stands there",
    ),
    "a span outside the prompt": (
        [question("Rome"), question("Oslo", span=[3, 9])],
        "line 2: span expected a part of the prompt's 7 characters, got (3, 9): give its start",
    ),
    "no gold": (
        [question("Rome"), question("Oslo", answer=[])],
        "line 2: answer expected what is right, got none for 'Oslo is': give it, or known=false",
    ),
    "an empty gold": (
        [question("Rome", answer=" "), question("Oslo")],
        "line 1: answer expected text, got ' ': leave it out where nobody knows",
    ),
    "one entity of a type": (
        [question("Rome", type="a"), question("Oslo", type="a"), question("Bern", type="b")],
        "line 3: type 'b' expected several entities",
    ),
    "one group": (
        [question("Rome", group="g"), question("Oslo", group="g")],
        "line 1: records without a type expected several entities",
    ),
    "nobody unknown": (
        [question("Rome", known=True), question("Oslo", known=True)],
        "line 1, and all others: a study expected known and unknown entities, got known ones alone: add",
    ),
    "labels for some": (
        [question("Rome", known=True), question("Oslo"), question("Bern", known=False)],
        "line 2: records expected all to have known, or none, got 1 of 3 without: say who is known",
    ),
}


@pytest.mark.parametrize("rows, message", BAD.values(), ids=BAD.keys())
def test_what_no_study_can_use_is_refused_before_a_model_is_loaded(
    rows, message, tmp_path, capsys, monkeypatch
):
    monkeypatch.setattr("saelens_lite.cli.study.model_and_tokenizer", lambda *_: pytest.fail("loaded"))
    path = tmp_path / "records.jsonl.gz"
    path.write_bytes(gzip.compress("\n".join(map(json.dumps, rows)).encode()))
    argv = ["study", "--model", "demo", "--sae", "none", "--records", str(path), "--output", str(tmp_path)]
    assert main(argv) == 2
    said = capsys.readouterr().err
    assert f"{path}, {message}" in said and said.count("\n") == 1
    (tmp_path / "good.jsonl").write_text("\n".join(json.dumps(question(name)) for name in ("Rome", "Oslo")))
    assert len(read_questions(tmp_path / "good.jsonl", complete=True)) == 2


@pytest.mark.parametrize(
    "text, message",
    [
        ("prompt,answer\na,b\nc,d,e\n", "line 3 expected 2 cells, as the head has"),
        ("prompt,answer\na\n", "line 2 expected 2 cells"),
        ("prompt,known\na,perhaps\n", "line 2: known expected true or false, got 'perhaps'"),
        ("prompt,span\na,[1\n", "line 2: span expected a JSON list, got .\\[1"),
        ("prompt,popularity\na,many\n", "line 2: popularity expected a number, got 'many'"),
        ('prompt\n"a\n', "after line 1 expected a row of CSV: unexpected end of data"),
        ("prompt,anser\na,b\n", "line 2: unknown key 'anser' .did you mean 'answer'"),
    ],
)
def test_a_bad_row_of_csv_is_named(text, message, tmp_path):
    (tmp_path / "records.csv").write_text(text)
    with pytest.raises(ValueError, match=f"records.csv,? {message}"):
        read_questions(tmp_path / "records.csv")


def test_a_bad_parquet_file_is_named(tmp_path):
    for name, content in (
        ("a.parquet", b"PAR1"),
        ("a.parquet.gz", b"no gzip"),
        ("b.parquet.gz", gzip.compress(b"x")),
    ):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(ValueError, match=f"{name} expected a parquet file, compressed as its name says"):
            read_questions(tmp_path / name)


def test_each_position_marks_its_tokens(byte_tokenizer):
    """A token is a byte here; BOS stands first and padding before it."""
    records = [Question(prompt="is Ada old", entity="Ada"), Question(prompt="Why?")]

    def marked(position):
        [batch] = batches(byte_tokenizer, records, 8, position)
        ids = batch.inputs["input_ids"]
        return [
            [byte_tokenizer.decode(row[mask[i]]) for i, row in enumerate(ids)]
            for mask in (batch.entity, batch.last)
        ]

    assert marked("last") == [["a", "?"], ["a", "?"]]
    assert marked("all") == [["Ada", "Why?"], ["a", "?"]]
    assert marked("prompt_last") == [["d", "?"], ["d", "?"]]
    assert marked("everywhere") == [["is Ada old", "Why?"], ["a", "?"]]


def test_a_second_bos_is_left_out_and_said(byte_tokenizer, caplog):
    [batch] = batches(byte_tokenizer, [Question(prompt="<|bos|>Ada", entity="Ada")], 8)
    assert batch.inputs["input_ids"].tolist() == [byte_tokenizer("Ada")["input_ids"]]
    assert byte_tokenizer.decode(batch.inputs["input_ids"][0, batch.last[0]]) == "a"
    assert "begins with <|bos|>, and the tokenizer puts another before it" in caplog.text
