"""Confidence in answers: by hand, and by a pass of one text alone."""

import math

import pytest
import torch

from saelens_lite.analyze.answers.confidence import (
    P_TRUE,
    agreement_of,
    answer_confidence,
    semantic_entropy,
)


def test_meanings_are_counted_by_hand():
    samples = ["The Paris.", "paris", "Rome", "PARIS!", "rome"]
    wanted = -(0.6 * math.log(0.6) + 0.4 * math.log(0.4))
    assert semantic_entropy(samples) == pytest.approx(wanted)
    assert semantic_entropy(["a b", "c d"]) == pytest.approx(math.log(2))
    assert semantic_entropy(["x"] * 5) == 0
    assert agreement_of(" Paris", samples) == 0.6 and agreement_of("Berlin", samples) == 0


def test_meanings_may_be_told_by_entailment_both_ways():
    asked = []

    def entails(first: str, second: str) -> bool:
        asked.append((first, second))
        return {"Q: 2": "Q: two", "Q: two": "Q: 2", "Q: 3": "Q: 2"}.get(first) == second

    assert semantic_entropy(["2", "two", "3"], "Q:", entails) == pytest.approx(
        -(2 / 3 * math.log(2 / 3) + 1 / 3 * math.log(1 / 3))
    )
    assert ("Q: 2", "Q: two") in asked and ("Q: two", "Q: 2") in asked
    assert agreement_of("2", ["two", "3"], "Q:", entails) == 0.5


def test_output_is_that_of_a_pass_of_each_text_alone(gpt2, byte_tokenizer):
    model = gpt2.double()
    model.config.max_position_embeddings = None  # the positions of this model are few
    prompts, answers = ["ab", "what"], ["c", " def"]
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("saelens_lite.analyze.answers.confidence.P_TRUE", "{prompt}?{answer}:")
        found = answer_confidence(model, byte_tokenizer, prompts, answers, [["c", "C."], ["x", "y"]])

    def alone(prompt: str, text: str) -> tuple[float, float, int]:
        ids = byte_tokenizer(prompt + text)["input_ids"]
        n = len(text.encode())
        with torch.no_grad():
            log_p = model(torch.tensor([ids])).logits[0].log_softmax(-1)[-n - 1 : -1]
        chosen = log_p[torch.arange(n), ids[-n:]]
        return float(chosen.sum()), float(-(log_p.exp() * log_p).sum(-1).mean()), n

    for i, (prompt, text) in enumerate(zip(prompts, [" c", " def"])):
        total, entropy, n = alone(prompt, text)
        assert float(found["log p"][i]) == pytest.approx(total)
        assert float(found["mean log p"][i]) == pytest.approx(total / n)
        assert float(found["entropy"][i]) == pytest.approx(entropy)
        yes, no = (alone(f"{prompt}?{text.strip()}:", f" ({letter})")[0] for letter in "AB")
        assert float(found["P(True)"][i]) == pytest.approx(math.exp(yes) / (math.exp(yes) + math.exp(no)))
    assert found["agreement"].tolist() == [1, 0]
    assert found["semantic entropy"].tolist() == pytest.approx([0, math.log(2)])


def test_the_question_of_truth_is_asked_as_published():
    assert P_TRUE.format(prompt="2+2?", answer="4").splitlines() == [
        "Question: 2+2?",
        "Proposed answer: 4",
        "Is the proposed answer:",
        " (A) True",
        " (B) False",
        "The proposed answer is:",
    ]


def test_other_numbers_of_answers_are_refused(gpt2, byte_tokenizer):
    with pytest.raises(ValueError, match="expected an answer to each of 2 prompts, got 1"):
        answer_confidence(gpt2, byte_tokenizer, ["a", "b"], ["c"])
    with pytest.raises(ValueError, match="got 1, and samples of 2"):
        answer_confidence(gpt2, byte_tokenizer, ["a"], ["c"], [["d"], ["e"]])
    with pytest.raises(ValueError, match="expected samples of each prompt, got none of one"):
        answer_confidence(gpt2, byte_tokenizer, ["a"], ["c"], [[]])
