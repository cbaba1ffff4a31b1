"""Records of a study: their file, where the entity stands, their tokens, and the token that an answer begins
with."""

import bz2
import gzip
import json
import lzma
from types import SimpleNamespace

import pytest
import torch

from saelens_lite.analyze.study.answers import NextToken
from saelens_lite.analyze.study.questions import Question, batches
from saelens_lite.analyze.study.records import read_questions


def test_a_file_of_records(tmp_path):
    lines = [
        {
            "prompt": "The city Leeuwarden lies in",
            "entity": "Leeuwarden",
            "answer": "Netherlands",
            "type": "city",
        },
        {
            "prompt": "Ada met Ada",
            "entity": "Ada",
            "span": [8, 11],
            "answer": ["x", "y"],
            "known": False,
            "group": "Q1",
        },
    ]
    lines[1]["relation"] = "next\u2028to"  # no end of a line in JSON
    text = "\n\n".join(json.dumps(line, ensure_ascii=False) for line in lines) + "\n"
    (tmp_path / "records.jsonl").write_text(text, encoding="utf-8")
    first, second = read_questions(tmp_path / "records.jsonl")
    assert first == Question(
        prompt=lines[0]["prompt"], entity="Leeuwarden", answer="Netherlands", type="city"
    )
    assert first.place == (9, 19) and first.cluster == "Leeuwarden" and first.answers == ("Netherlands",)
    assert (
        second.place == (8, 11)
        and second.cluster == "Q1"
        and second.answers == ("x", "y")
        and second.known is False
    )


@pytest.mark.parametrize(
    "line, message",
    [
        ('{"prompt": "a b", "entity": "c"}', "line 2: entity expected a part of the prompt 'a b', got 'c'"),
        ('{"prompt": "a a", "entity": "a"}', "line 2: 'a' stands 2 times in 'a a': give span"),
        ('{"prompt": "a ", "entity": "a"}', "line 2: prompt expected text without a space at its end"),
        (
            '{"prompt": "a", "entity": "a", "span": [0, 2]}',
            "line 2: span expected a part of the prompt's 1 characters",
        ),
        (
            '{"prompt": "a b", "entity": "b", "span": [0, 1]}',
            "line 2: span expected to be that of 'b', got 'a'",
        ),
        ('{"prompt": "a", "entity": "a", "span": [0]}', "line 2: span expected two places in the prompt"),
        (
            '{"prompt": "a", "entity": "a", "anser": "b"}',
            "line 2: unknown key 'anser' .did you mean 'answer'",
        ),
        ('{"entity": "a"}', "line 2: Question needs prompt"),
        ('{"prompt": "a", "answer": ["b", " "]}', "line 2: answer expected text, got .*: leave it out"),
        ('{"prompt": "a", "entity": "a", "known": "yes"}', "line 2: known expected bool"),
        ("[1]", "line 2 expected a JSON object with fields of Question, got list"),
        ("{", "line 2 expected a JSON object"),
    ],
)
def test_a_bad_line_is_named(tmp_path, line, message):
    (tmp_path / "records.jsonl").write_text('{"prompt": "a", "entity": "a"}\n' + line)
    with pytest.raises(ValueError, match=message):
        read_questions(tmp_path / "records.jsonl")


def test_an_empty_file_is_refused(tmp_path):
    (tmp_path / "records.jsonl").write_text("\n")
    with pytest.raises(ValueError, match="expected records, got an empty file"):
        read_questions(tmp_path / "records.jsonl")


def test_prompts_of_different_lengths_end_together_and_mark_their_entity(byte_tokenizer):
    records = [Question(prompt="is Ada old", entity="Ada"), Question(prompt="Bo", entity="Bo")]
    [batch] = batches(byte_tokenizer, records, 8, "all")
    ids, mask = batch.inputs["input_ids"], batch.inputs["attention_mask"]
    assert ids.shape == (2, 11) and mask.sum(1).tolist() == [11, 3]
    assert (
        byte_tokenizer.decode(ids[0, batch.entity[0]]) == "Ada"
        and byte_tokenizer.decode(ids[1, batch.entity[1]]) == "Bo"
    )
    assert byte_tokenizer.decode(ids[0, batch.last[0]]) == "a" and batch.last.sum(1).tolist() == [1, 1]
    [batch] = batches(byte_tokenizer, records, 8, "last")
    assert torch.equal(batch.entity, batch.last)
    assert [len(of.records) for of in batches(byte_tokenizer, records * 3, 4)] == [4, 2]


class Logits(torch.nn.Module):
    """A model that says the same about every text: 0 for every token, until it is told otherwise."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(259))

    def forward(self, input_ids, attention_mask):
        return SimpleNamespace(logits=self.weight.expand(*input_ids.shape, -1))


def test_the_next_token_is_refused_right_or_wrong(byte_tokenizer):
    def token(text):
        return byte_tokenizer(text)["input_ids"][-1]

    records = [
        Question(prompt="is Ada", entity="Ada", answer=answer) for answer in ("x", ("y", "xylo"), (), "z")
    ]
    [batch] = batches(byte_tokenizer, records, 4)

    def answers(judge, **logits):
        model = Logits()
        with torch.no_grad():
            for name, value in logits.items():
                model.weight[token(name)] = value
        return judge.bound(byte_tokenizer, batch.records)(model, batch.inputs)

    judge = NextToken(["no", "?"], separator="")
    found = answers(judge, x=1000.0, n=999.0)
    assert found.refused.tolist() == [False] * 4 and found.correct.tolist() == [True, True, False, False]
    assert found.margin.tolist() == [-1.0] * 4
    found = answers(judge, x=1000.0, n=1002.5)
    assert found.refused.all() and not found.correct.any() and found.margin.tolist() == [2.5] * 4
    # with options nothing else counts: x is far ahead, and yet "y" and "n" are compared
    found = answers(NextToken(["n"], ["y"], separator=""), x=1000.0, y=700.0, n=600.0)
    assert not found.refused.any() and found.margin.tolist() == [-100.0] * 4
    assert found.correct.tolist() == [False, True, False, False]
    with pytest.raises(ValueError, match="expected finite logits"):
        answers(judge, x=float("nan"))
    # a space stands between prompt and answer by default, and is then the first token of a tokenizer of bytes
    with pytest.raises(ValueError, match="begins like a refusal"):
        NextToken(["no"]).bound(byte_tokenizer, batch.records)
    assert NextToken([token("?")], separator="").bound(byte_tokenizer, batch.records)


def test_refusal_and_options_must_differ(byte_tokenizer):
    records = [Question(prompt="a", entity="a")]
    for judge in (NextToken([]), NextToken(["a"], ["a"]), NextToken(["a"], [])):
        with pytest.raises(ValueError, match="expected tokens that refuse, and others as options if any"):
            judge.bound(byte_tokenizer, records)


@pytest.mark.parametrize(("suffix", "module"), [(".gz", gzip), (".bz2", bz2), (".xz", lzma)])
def test_records_may_be_compressed_and_what_is_not_as_its_name_says_is_named(suffix, module, tmp_path):
    lines = b'{"prompt": "a b", "entity": "b"}\r\n\n{"prompt": "b a\xc3\xa9", "entity": "b"}'
    file = tmp_path / f"records.jsonl{suffix}"
    file.write_bytes(module.compress(lines))
    assert [question.prompt for question in read_questions(file)] == ["a b", "b aé"]
    for content in (lines, module.compress(lines)[:-9], module.compress(b"\xff")):
        file.write_bytes(content)
        with pytest.raises(ValueError, match=f"records.jsonl{suffix} expected UTF-8 text"):
            read_questions(file)


def test_a_line_that_no_memory_holds_is_refused_before_it_is_read(tmp_path):
    file = tmp_path / "records.jsonl.gz"
    file.write_bytes(gzip.compress(b"x" * 40_000_000))
    with pytest.raises(ValueError, match="records.jsonl.gz expected lines below 16,777,216 characters"):
        read_questions(file)
