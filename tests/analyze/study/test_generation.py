"""Answers of any length: token for token those of a plain loop in any batch, and resumed after a kill."""

import math

import numpy as np
import pytest
import torch

import saelens_lite as sl
from saelens_lite.analyze.study.answers import Answers
from saelens_lite.analyze.study.generation import OpenAnswer, _number
from saelens_lite.analyze.study.judge import Judge
from saelens_lite.analyze.study.kept import Kept
from saelens_lite.analyze.study.questions import Question, as_chat, batches
from saelens_lite.hashing import hashed_uniform

from ..conftest import make_sae

QUESTIONS = [
    Question(prompt=f"Who {verb} {name}?", entity=name, answer=("a", "b"), known=bool(i % 2))
    for i, (verb, name) in enumerate(
        (v, n) for v in ("is", "found") for n in ("Ada", "Bo", "Cleo", "Eve", "Fay")
    )
]
CHATML = (
    "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
)


@pytest.fixture
def model(gpt2):
    """With weights large enough that it says different things about different texts."""
    with torch.no_grad():
        for parameter in gpt2.transformer.h.parameters():
            parameter.mul_(10)
    return gpt2.double()


def plain_loop(model, ids, n_new, drawn=lambda step: None, temperature=1.0):
    """The new tokens of one text, one forward over the whole text each, in plain transformers."""
    ids = list(ids)
    for step in range(n_new):
        logits = model(input_ids=torch.tensor([ids])).logits[0, -1]
        at = drawn(step)
        if at is None:
            ids.append(int(logits.argmax()))
        else:
            shares = np.cumsum(torch.softmax(logits / temperature, 0).detach().numpy())
            ids.append(int(np.searchsorted(shares / shares[-1], at, side="right")))
        if ids[-1] == model.config.eos_token_id:
            return ids[:-1]
    return ids


def written(judge, model, tokenizer, batch_size):
    found = []
    for batch in batches(tokenizer, QUESTIONS, batch_size):
        found += judge.bound(tokenizer, batch.records)(model, batch.inputs).texts
    return found


def test_greedy_answers_are_those_of_a_plain_loop_in_any_batch(model, byte_tokenizer):
    judge = OpenAnswer(max_new_tokens=7)
    expected = []
    for question in QUESTIONS:
        ids = byte_tokenizer(question.prompt)["input_ids"]
        expected.append(
            byte_tokenizer.decode(plain_loop(model, ids, 7)[len(ids) :], skip_special_tokens=True)
        )
    assert len(set(expected)) > 1
    for batch_size in (1, 3, 10):
        assert written(judge, model, byte_tokenizer, batch_size) == expected


@pytest.mark.long
@pytest.mark.parametrize("temperature", [0.7, 2.0])
def test_drawn_answers_are_those_of_a_plain_loop_with_the_same_uniform_numbers(
    model, byte_tokenizer, temperature
):
    """Sample 0 of each; the uniform number of a step is the hash of question, seed, sample and step."""
    judge = OpenAnswer(max_new_tokens=7, n_samples=2, temperature=temperature, seed=5)
    expected = []
    for question in QUESTIONS:
        ids = byte_tokenizer(question.prompt)["input_ids"]
        number = np.array([_number(torch.tensor(ids))])

        def at(step, number=number):
            return hashed_uniform(number, 5, 0, step)[0]

        new = plain_loop(model, ids, 7, at, temperature)[len(ids) :]
        expected.append(byte_tokenizer.decode(new, skip_special_tokens=True))
    assert len(set(expected)) == len(QUESTIONS)
    for batch_size in (1, 4):
        assert written(judge, model, byte_tokenizer, batch_size) == expected


def test_rates_are_shares_of_the_samples(model, byte_tokenizer):
    """A judge by the text's length: the shares are those that the texts of each sample alone give."""

    def verdict(text, record):
        return ("correct", "wrong", "refused")[len(text.encode()) % 3]

    judge = OpenAnswer(judge=verdict, max_new_tokens=6, n_samples=3, temperature=3.0)
    [batch] = batches(byte_tokenizer, QUESTIONS, 10)
    found = judge.bound(byte_tokenizer, batch.records)(model, batch.inputs)
    verdicts = []
    for sample in range(3):
        tokens, _ = judge._written(model, byte_tokenizer, batch.inputs, sample, None)
        verdicts.append(
            [verdict(byte_tokenizer.decode(row, skip_special_tokens=True), None) for row in tokens]
        )
    assert found.refused.tolist() == pytest.approx(
        [sum(v == "refused" for v in of) / 3 for of in zip(*verdicts)]
    )
    assert found.correct.tolist() == pytest.approx(
        [sum(v == "correct" for v in of) / 3 for of in zip(*verdicts)]
    )
    assert 0 < found.refused.sum() < 10
    with pytest.raises(ValueError, match="n_samples=3 expected a temperature above 0"):
        OpenAnswer(n_samples=3)


def test_a_margin_is_that_of_the_first_token(model, byte_tokenizer):
    judge = OpenAnswer(max_new_tokens=2, refusal=["no", "?"], separator="")
    [batch] = batches(byte_tokenizer, QUESTIONS, 10)
    found = judge.bound(byte_tokenizer, batch.records)(model, batch.inputs)
    refusing = [byte_tokenizer(text)["input_ids"][1] for text in ("n", "?")]
    for question, margin in zip(QUESTIONS, found.margin.tolist()):
        ids = byte_tokenizer(question.prompt, return_tensors="pt")["input_ids"]
        logits = model(input_ids=ids).logits[0, -1]
        others = logits.clone()
        others[refusing] = -math.inf
        assert margin == pytest.approx((logits[refusing].max() - others.max()).item(), abs=1e-6)


@pytest.fixture
def study_of(model, byte_tokenizer):
    """A study of the open answers of a random model: 16 entities, half of them known."""
    questions = [
        Question(prompt=f"Is {name}", entity=name, answer="a", known=bool(i % 2))
        for i, name in enumerate(f"{a}{b}" for a in "ABCDEFGH" for b in "xyzw")
    ]

    def verdict(text, record):
        return ("correct", "wrong", "refused")[len(text.encode()) % 3]

    sae = make_sae("relu", hook_point="blocks.0.hook_resid_post").double()

    def made(keep=None, judge=None, **how):
        open_answer = judge or OpenAnswer(judge=verdict, max_new_tokens=3)
        return sl.HallucinationStudy(model, byte_tokenizer, sae, questions, open_answer, keep=keep, **how)

    return made


RUN = {"doses": [1.0], "n_controls": 2, "n_resamples": 50}


class Killed(BaseException):
    """As a signal comes: no one catches it."""


@pytest.mark.long
def test_a_killed_study_resumes_with_the_same_result(study_of, tmp_path, monkeypatch):
    calls = []
    answered = OpenAnswer._written

    def counted(self, *args):
        calls.append(1)
        if len(calls) == 11:
            raise Killed
        return answered(self, *args)

    monkeypatch.setattr(OpenAnswer, "_written", counted)
    keep, how = tmp_path / "answers.jsonl", {"batch_size_seqs": 8}
    first = study_of(keep, **how)
    with pytest.raises(Killed):
        first.run(first.select(n=1, n_ablated=2), **RUN)
    n_kept = keep.read_bytes().count(b"\n") - 1
    assert n_kept > 8
    keep.write_bytes(keep.read_bytes() + b'{"key": "torn')
    again = study_of(keep, **how)
    result = again.run(again.select(n=1, n_ablated=2), **RUN)
    assert result.to_dict() == study_of(**how).run(again.select(n=1, n_ablated=2), **RUN).to_dict()
    n_calls = len(calls)
    third = study_of(keep, **how)
    assert third.run(third.select(n=1, n_ablated=2), **RUN).to_dict() == result.to_dict()
    assert len(calls) == n_calls  # nothing was answered again


def test_answers_of_another_study_are_not_taken(study_of, tmp_path):
    keep = tmp_path / "answers.jsonl"
    study_of(keep)
    with pytest.raises(ValueError, match="answers of another study: .*judge expected .*max_new_tokens=3"):
        study_of(keep, OpenAnswer(max_new_tokens=4))
    with pytest.raises(ValueError, match="position expected 'last', got 'all'. Take another --output"):
        study_of(keep, position="all")
    keep.write_text("something\nelse\n")
    with pytest.raises(
        ValueError, match="expected answers that a study kept, got something else: move it away"
    ):
        study_of(keep)


def test_values_are_kept_line_by_line(tmp_path):
    path = tmp_path / "a" / "kept.jsonl"
    kept = Kept(path, {"of": "x"})
    kept.add({"k": [1, None], "l": 2})
    assert path.read_bytes() == (
        b'{"format": 1, "of": "x"}\n{"key": "k", "value": [1, null]}\n{"key": "l", "value": 2}\n'
    )
    again = Kept(path, {"of": "x"})
    assert (again.get("k"), again.get("l"), again.get("m"), len(again)) == ([1, None], 2, None, 2)


def test_chat_prompts_hold_the_entity_where_the_template_puts_it(byte_tokenizer):
    records = [Question(prompt="Is Ada old?", entity="Ada", answer="x"), Question(prompt="Why?", answer="y")]
    [chat] = as_chat(byte_tokenizer, records[:1], template=CHATML, system="Be short.")
    assert chat.prompt == "<|system|>Be short.\n<|user|>Is Ada old?\n<|assistant|>\n"
    assert chat.prompt[slice(*chat.place)] == "Ada" and chat.cluster == "Ada" and chat.answer == "x"
    _, plain = as_chat(byte_tokenizer, records, template=CHATML)
    assert plain.prompt == "<|user|>Why?\n<|assistant|>\n" and plain.place is None and plain.cluster == "Why?"
    with pytest.raises(
        ValueError, match="a chat expected a template, got none, as .* has none: give one as a str"
    ):
        as_chat(byte_tokenizer, records)
    with pytest.raises(ValueError, match="the chat template fails on 'Is Ada old.'"):
        as_chat(byte_tokenizer, records, template="{{ raise_exception('no system') }}")
    with pytest.raises(ValueError, match="expected to write the prompt 'Is Ada old.' once, got ''"):
        as_chat(byte_tokenizer, records, template="{% if false %}{% endif %}")


def judged_by_options(longer):
    """A judge that runs each prompt with two options behind it; `longer` makes the ids of that text."""

    def judge(model, inputs, records):
        scores = []
        for option in (70, 80):
            ids = longer(inputs["input_ids"], option)
            mask = torch.cat([inputs["attention_mask"], torch.ones(len(ids), ids.shape[1])], 1)[
                :, : ids.shape[1]
            ]
            with torch.no_grad():
                scores.append(
                    model(input_ids=ids, attention_mask=mask).logits.double().log_softmax(-1)[:, -2, option]
                )
        margin = scores[1] - scores[0]
        return Answers(margin > 0, margin <= 0, margin)

    return judge


def behind(ids, option):
    return torch.cat([ids, torch.full((len(ids), 1), option)], 1)


def test_a_judge_may_run_longer_texts_and_positions_hold_for_the_prompt(model, byte_tokenizer, study_of):
    """The margin under an edit of the prompt's columns is that of a mask as wide as the text."""
    study = study_of(judge=judged_by_options(behind))
    side = study._side(testing=True)

    def edit(where):
        return sl.clamp(model, study.sae, [1, 2], 3.0, where=where)

    clean, edited = side.outcome(), side.outcome(edit)
    [batch] = side._batches
    wide = torch.nn.functional.pad(batch.entity, (0, 1))
    scores = []
    for option in (70, 80):
        with edit(wide), torch.no_grad():
            logits = model(input_ids=behind(batch.inputs["input_ids"], option)).logits.log_softmax(-1)
        scores.append(logits[:, -2, option])
    torch.testing.assert_close(edited.margin, (scores[1] - scores[0]).double(), atol=1e-12, rtol=0)
    assert (edited.margin - clean.margin).abs().min() > 0 and edited.push == pytest.approx(side.push(edit))
    # with generated=True the option's token is edited as well
    study = study_of(judge=judged_by_options(behind), generated=True)
    with edit(torch.nn.functional.pad(batch.entity, (0, 1), value=True)), torch.no_grad():
        last = model(input_ids=behind(batch.inputs["input_ids"], 70)).logits[:, -1]
    side, seen = study._side(testing=True), []
    handle = model.register_forward_hook(lambda _module, _args, out: seen.append(out.logits[:, -1]))
    with torch.no_grad():
        side.outcome(edit)
    handle.remove()
    torch.testing.assert_close(seen[0], last, atol=1e-12, rtol=0)


@pytest.mark.parametrize("cut", [lambda ids, option: ids[:, 1:], lambda ids, option: ids.repeat(2, 1)])
def test_a_judge_that_runs_other_texts_is_told_what_it_may_run(study_of, cut):
    def judge(model, inputs, records):
        model(input_ids=cut(inputs["input_ids"], 0))
        return Answers(torch.zeros(len(records)), torch.zeros(len(records)))

    with pytest.raises(
        ValueError, match="or longer texts that begin with them, row by row, got a first pass of"
    ):
        study_of(judge=judge)._side(testing=True).outcome()


def test_labels_by_a_share_of_samples(study_of):
    """Of 4 samples to each question: known from half of them right, unknown with none, others left out."""

    def verdict(text, record):
        return "correct" if len(text.encode()) % 3 == 0 else "wrong"

    judge = OpenAnswer(judge=verdict, max_new_tokens=3, n_samples=4, temperature=2.0)
    study = study_of(judge=judge)
    study.records = tuple(Question(prompt=of.prompt, entity=of.entity, answer="a") for of in study.records)
    labels = study.label(by="share", judge=judge)
    shares = (
        study._side_of(study.records, [False] * len(study.records), judge=judge).outcome().correct.tolist()
    )
    assert labels == [True if s >= 0.5 else False if s == 0 else None for s in shares]
    assert {True, False, None} == set(labels)
    assert study.label(by="share", min_share=0.25) == [s > 0 for s in shares]
    with pytest.raises(ValueError, match="by='answers' or 'share' and 0 < min_share <= 1, got 'shares'"):
        study.label(by="shares")


def test_a_judge_of_text_reads_what_was_written(model, byte_tokenizer):
    texts = written(OpenAnswer(max_new_tokens=4), model, byte_tokenizer, 10)
    right = [
        Question(prompt=q.prompt, answer=text) if text.strip() else q for q, text in zip(QUESTIONS, texts)
    ]
    [batch] = batches(byte_tokenizer, right, 10)
    judge = OpenAnswer(
        judge=Judge(match=lambda given, gold: given in [g.strip() for g in gold]), max_new_tokens=4
    )
    found = judge.bound(byte_tokenizer, batch.records)(model, batch.inputs)
    assert found.correct.tolist() == [float(bool(text.strip())) for text in texts]
    assert list(found.texts) == texts
