"""Who is known, by answers or by a share of samples; the table of counts; how large a study is."""

import pytest
import torch

from saelens_lite.analyze.stats.power import entities_needed
from saelens_lite.analyze.study.answers import shared_first_tokens
from saelens_lite.analyze.study.effects import cost_of
from saelens_lite.analyze.study.half import Outcome
from saelens_lite.analyze.study.labels import label_counts, labelled
from saelens_lite.analyze.study.questions import Question


def questions(*entities):
    return [
        Question(prompt=f"{entity} {i}", entity=entity, answer="x", relation=f"r{i % 2}")
        for i, entity in enumerate(entities)
    ]


def test_labels_by_right_answers_and_by_their_share():
    """Ann: right in 2 of 3; Bo: 1 of 3; Cy: none; Di: her one question."""
    records = questions("Ann", "Ann", "Ann", "Bo", "Bo", "Bo", "Cy", "Di")
    right = [1, 1, 0, 1, 0, 0, 0, 1]
    of = ["Ann", "Bo", "Cy", "Di"]

    def found(*how):
        labels = dict(zip([record.entity for record in records], labelled(records, right, *how)))
        return [labels[name] for name in of]

    assert found("answers", 2, 0.5) == [True, None, False, True]
    assert found("answers", 1, 0.5) == [True, True, False, True]
    assert found("share", 2, 0.5) == [True, None, False, True]  # 2/3, 1/3, 0 and 1
    assert found("share", 2, 0.7) == [None, None, False, True]


def test_counts_by_relation_with_examples():
    records = questions("Ann", "Bo", "Cy")
    outcome = Outcome(
        torch.tensor([0.0, 0.5, 1.0]), torch.tensor([1.0, 0.25, 0.0]), None, 0.0, ("x\nand", "y" * 70, "no")
    )
    lines = label_counts(records, [True, None, False], outcome, n_examples=1).split("\n")
    assert [line.split() for line in lines[:4]] == [
        "relation questions entities known unknown between right refused".split(),
        "r0 2 2 1 1 0 0.500 0.500".split(),
        "r1 1 1 0 0 1 0.250 0.500".split(),
        "all 3 3 1 1 1 0.417 0.500".split(),
    ]
    assert lines[4:] == [
        "known: 'Ann 0' → 'x and', right; 'x' is right",
        "unknown: 'Cy 2' → 'no', refused; 'x' is right",
        f"between: 'Bo 1' → '{'y' * 60}…', 25% right, 50% refused; 'x' is right",
    ]


def test_entities_that_an_effect_needs():
    """(1.959964 + 0.841621) · 0.5 / 0.1 = 14.0079, squared 196.2."""
    assert entities_needed(0.1, 0.5) == 197
    assert entities_needed(0.2, 0.5) == 50 and entities_needed(1.0, 0.0) == 2
    assert entities_needed(0.1, 0.5, power=0.5) == 97  # (1.959964 · 5)² = 96.04
    with pytest.raises(ValueError, match="expected an effect above 0, .* got 0, 0.5, 0.8 and 0.95"):
        entities_needed(0, 0.5)


def test_forward_passes_before_a_run():
    """Clean, two SAEs of 6 clamps and 4 ablations with 100 controls each and a splice, 12 of directions."""
    cost = cost_of(900, n_doses=3, n_controls=100, n_saes=2, batch_size_seqs=256, passes_of_answer=5)
    assert cost.n_edits == 1 + 2 * (10 * 101 + 1) + 12 == 2035
    assert cost.n_batches == 2035 * 4 and cost.n_passes == 2035 * 4 * 5
    assert cost.hours(0.36) == pytest.approx(0.814)


def test_answers_that_begin_alike(byte_tokenizer):
    """A token is a byte: of six answers four begin like a different one, and two are the same."""
    answers = ["The Hague", "The Beatles", "Rome", "Oslo", "Oslo", "Ottawa", None]
    records = [Question(prompt="a", answer=answer or ()) for answer in answers]
    found = shared_first_tokens(byte_tokenizer, records, separator="")
    assert found == (6, 5, 3, ("O", 3))
    assert str(found).startswith(
        "5 of 6 right answers begin with the first token of a different answer (3 first"
    )
    assert shared_first_tokens(byte_tokenizer, records[-1:]) is None


@pytest.mark.long
def test_answers_of_a_real_vocabulary_begin_alike(shared_data):
    """TriviaQA's first hundred in a vocabulary of 4,096, counted once by a plain loop."""
    from transformers import AutoTokenizer

    from saelens_lite.analyze.study.records import read_questions

    tokenizer = AutoTokenizer.from_pretrained(shared_data / "models" / "stories3m-llama")
    path = shared_data / "corpora" / "triviaqa_gemma2b" / "answers.jsonl.gz"
    records = read_questions(path, fields={"answer": "answers"}, prompt="Question: {question}\nAnswer:")
    found = shared_first_tokens(tokenizer, records[:100])
    assert len(records) == 9961 and found[:3] == (100, 87, 37)
