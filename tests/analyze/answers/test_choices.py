"""Multiple choice: every number by an independent loop, the file, the letters, the question hidden."""

import gzip
import json

import pytest
import torch

from saelens_lite.analyze.answers.choices import PRESETS, Choice, multiple_choice, read_choices
from saelens_lite.analyze.answers.continuations import continuations

CHOICES = [
    Choice(question="What does len return?", options=("a number", "a list of names"), right=(True, False)),
    Choice(
        question="What is None?",
        options=("an object", "a value that stands for nothing", "a module", "a keyword argument"),
        right=(True, True, False, False),
    ),
    Choice(question="Is it so?", options=("No", "Yes", "Maybe", "Never"), right=(False, True, False, False)),
]


def by_loop(model, tokenizer, prompt: str, option: str) -> torch.Tensor:
    """Σ log p of an option's tokens, one text at a time, written without the code under test."""
    before, ids = tokenizer(prompt).input_ids, tokenizer(f"{prompt} {option}").input_ids
    assert ids[: len(before)] == before, "the prompt's tokens stay as they are"
    with torch.no_grad():
        logits = model(torch.tensor([ids])).logits[0]
    log_p = torch.log_softmax(logits, dim=-1)
    return sum(log_p[i - 1, ids[i]] for i in range(len(before), len(ids)))


def expected(model, tokenizer, choices, template: str) -> tuple[list[torch.Tensor], float, float]:
    """Scores, accuracy and mass."""
    scores, best, mass = [], 0, 0.0
    for choice in choices:
        prompt = template.replace("{question}", choice.question)
        each = [by_loop(model, tokenizer, prompt, option) for option in choice.options]
        right = [float(p) for p, yes in zip(each, choice.right) if yes]
        wrong = [float(p) for p, yes in zip(each, choice.right) if not yes]
        best += max(right) > max(wrong)
        top = max(right + wrong)
        weigh = [sum(torch.exp(torch.tensor(p - top)).item() for p in of) for of in (right, wrong)]
        mass += weigh[0] / sum(weigh)
        scores.append(torch.stack(each))
    return scores, best / len(choices), mass / len(choices)


@pytest.fixture
def embedded_double(embedded):
    import copy

    model, tokenizer = embedded
    return copy.deepcopy(model).double(), tokenizer


@pytest.mark.long
@pytest.mark.parametrize("preset, choices", [("null", CHOICES), ("qa", CHOICES[::2])])
def test_scores_are_those_of_an_independent_loop(embedded_double, preset, choices):
    model, tokenizer = embedded_double
    found = multiple_choice(model, tokenizer, choices, preset=preset, batch_size_seqs=3)
    scores, accuracy, mass = expected(model, tokenizer, choices, PRESETS[preset])
    for got, wanted in zip(found.scores, scores, strict=True):
        torch.testing.assert_close(got, wanted, atol=1e-6, rtol=0)
    assert found.accuracy.estimate.item() == pytest.approx(accuracy)
    assert found.mass.estimate.item() == pytest.approx(mass, abs=1e-6)
    hidden = "".join(PRESETS[preset].rsplit(" {question}", 1))
    asked = [Choice(question="x", options=one.options, right=one.right) for one in choices]
    _, accuracy, mass = expected(model, tokenizer, asked, hidden)
    assert found.accuracy_hidden.estimate.item() == pytest.approx(accuracy)
    assert found.mass_hidden.estimate.item() == pytest.approx(mass, abs=1e-6)
    assert found.mass_hidden.estimate.item() != pytest.approx(found.mass.estimate.item(), abs=1e-4)
    table = str(found).splitlines()
    assert table[1].startswith("question asked") and table[2].startswith("question hidden")
    assert table[3] == f"{len(choices)} questions, preset '{preset}', full answers"


@pytest.mark.long
def test_batches_and_precision_change_little(embedded, embedded_double):
    model, tokenizer = embedded
    exact = multiple_choice(embedded_double[0], tokenizer, CHOICES, preset="null", batch_size_seqs=1)
    for size in (1, 4, 100):
        found = multiple_choice(model, tokenizer, CHOICES, preset="null", batch_size_seqs=size)
        for got, wanted in zip(found.scores, exact.scores, strict=True):
            torch.testing.assert_close(got.double(), wanted, atol=1e-4, rtol=0)


def test_letters_stand_in_an_order_that_the_question_draws(embedded_double):
    """With one right option, first in the file, a model that always says A would otherwise be always
    right."""
    model, tokenizer = embedded_double
    many = [
        Choice(question=f"Question {i}?", options=("right", "wrong", "other"), right=(True, False, False))
        for i in range(60)
    ]
    from saelens_lite.analyze.answers.choices import _by_letter

    letters = [_by_letter(choice, 0)[0][0] for choice in many]
    assert all(10 < letters.count(letter) < 30 for letter in "ABC")
    assert [_by_letter(choice, 1)[0][0] for choice in many] != letters
    found = multiple_choice(model, tokenizer, CHOICES, answers="letters")
    given, shown = _by_letter(CHOICES[2], 0)
    assert sorted(shown.splitlines()) == sorted(
        f"{letter}. {option}" for letter, option in zip(given, CHOICES[2].options)
    )
    prompt = f"Question: Is it so?\n{shown}\nAnswer:"
    wanted = torch.stack([by_loop(model, tokenizer, prompt, letter) for letter in given])
    torch.testing.assert_close(found.scores[2], wanted, atol=1e-6, rtol=0)
    assert found.mass is None and found.to_dict()["mass"] is None and "n/a" in str(found)


def test_a_tie_is_not_right():
    from saelens_lite.analyze.answers.choices import _mass, _picked

    scores, right = torch.tensor([-1.0, -1.0, -3.0]), torch.tensor([True, False, False])
    assert not _picked(scores, right)
    p = [2.718281828**-1, 2.718281828**-1, 2.718281828**-3]
    assert float(_mass(scores, right)) == pytest.approx(p[0] / sum(p))


def test_entropy_and_log_p_are_those_of_each_token(embedded_double):
    model, tokenizer = embedded_double
    prompt, text = "def f(self, x):\n    return", " self.x + 1"
    (found,) = continuations(model, tokenizer, [prompt], [text])
    ids = tokenizer(prompt + text).input_ids
    n = len(ids) - len(tokenizer(prompt).input_ids)
    with torch.no_grad():
        p = model(torch.tensor([ids])).logits[0].softmax(-1)[-n - 1 : -1]
    assert found.ids.tolist() == ids[-n:]
    torch.testing.assert_close(found.log_p, p[torch.arange(n), ids[-n:]].log())
    torch.testing.assert_close(found.entropy, torch.special.entr(p).sum(-1))


@pytest.mark.parametrize(
    "prompt, text, message",
    [
        ("a", "", "expected a text of at least one token behind at least one, got '' behind 'a'"),
        ("a" * 5000, " b", "expected prompt and text of at most .* tokens, the model's context, got"),
    ],
)
def test_a_text_without_tokens_or_room_is_refused(embedded, prompt, text, message):
    model, tokenizer = embedded
    with pytest.raises(ValueError, match=message):
        continuations(model, tokenizer, [prompt], [text])


def written(path, value):
    path.write_bytes(gzip.compress(json.dumps(value).encode()))
    return path


ROW = {"question": "Why?", "mc1_targets": {"so": 1, "no": 0}, "mc2_targets": {"so": 1, "thus": 1, "no": 0}}


def test_a_file_of_truthfulqa_is_read(tmp_path):
    path = written(tmp_path / "mc_task.json.gz", [ROW])
    assert read_choices(path, "mc2") == [
        Choice(question="Why?", options=("so", "thus", "no"), right=(True, True, False))
    ]
    assert read_choices(path)[0].options == ("so", "no")


def test_an_option_without_text_is_left_out_and_said(tmp_path, caplog):
    path = written(tmp_path / "mc_task.json.gz", [ROW | {"mc1_targets": {"so": 1, "": 0, "no": 0}}])
    assert read_choices(path)[0].options == ("so", "no")
    assert "question 0, mc1_targets: an option without text is left out" in caplog.text


@pytest.mark.parametrize(
    "value, target, message",
    [
        ([], "mc1", "expected a list of questions with options: it is empty"),
        ([{"q": 1}], "mc1", "question is missing"),
        ([ROW], "mc3", "question 0 expected mc3_targets, got question, mc1_targets, mc2_targets"),
        ([ROW | {"mc1_targets": {"so": "1"}}], "mc1", "question 0, mc1_targets: so expected int"),
        ([ROW | {"mc1_targets": {"so": 1}}], "mc1", "question 0, mc1_targets: a choice expected"),
    ],
)
def test_a_file_of_another_form_is_refused_by_question(tmp_path, value, target, message):
    with pytest.raises(ValueError, match=message):
        read_choices(written(tmp_path / "mc_task.json.gz", value), target)


@pytest.mark.parametrize(
    "change, message",
    [
        ({"preset": "nul"}, "one of qa, null, letters, or a prompt with {question} once, got 'nul'.*'null'"),
        ({"answers": "letters", "preset": "null"}, "a prompt with {question} and {options} once, got 'null'"),
        ({"answers": "letter"}, "expected choices, and answers 'full' or 'letters', got 3 and 'letter'"),
        ({"choices": []}, "expected choices, and answers"),
    ],
)
def test_what_cannot_be_scored_is_refused(embedded, change, message):
    model, tokenizer = embedded
    with pytest.raises(ValueError, match=message):
        multiple_choice(model, tokenizer, **({"choices": CHOICES} | change))


def test_options_must_differ_and_some_be_wrong():
    with pytest.raises(ValueError, match="expected right and wrong options"):
        Choice(question="?", options=("a", "b"), right=(True, True))
    with pytest.raises(ValueError, match="options that differ and have text"):
        Choice(question="?", options=("a", "a"), right=(True, False))


@pytest.mark.slow
@pytest.mark.parametrize("target, preset", [("mc0", "qa"), ("mc1", "null"), ("mc2", "null")])
def test_truthfulqa_of_a_real_model_is_that_of_an_independent_loop(shared_data, target, preset):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = shared_data / "models/stories3m-llama"
    model = AutoModelForCausalLM.from_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    choices = read_choices(shared_data / "corpora/truthfulqa/mc_task.json.gz", target)[:50]
    single = multiple_choice(model, tokenizer, choices, preset=preset, batch_size_seqs=32)
    model = model.double()
    scores, accuracy, mass = expected(model, tokenizer, choices, PRESETS[preset])
    double = multiple_choice(model, tokenizer, choices, preset=preset, batch_size_seqs=32)
    for got, rough, wanted in zip(double.scores, single.scores, scores, strict=True):
        torch.testing.assert_close(got, wanted, atol=1e-6, rtol=0)
        torch.testing.assert_close(rough.double(), wanted, atol=1e-4, rtol=1e-5)
    assert double.accuracy.estimate.item() == single.accuracy.estimate.item() == pytest.approx(accuracy)
    assert double.mass.estimate.item() == pytest.approx(mass, abs=1e-6)
    assert single.mass.estimate.item() == pytest.approx(mass, abs=1e-4)


@pytest.mark.parametrize(
    "template", ["$A", "$A <|eos|>", "<|bos|> $A <|eos|>"], ids=["no BOS", "EOS", "both"]
)
def test_a_text_is_the_same_behind_any_special_tokens(gpt2, byte_tokenizer, template):
    """A tokenizer that puts no BOS before a text, or an EOS behind it, which is no part of an answer."""
    import copy

    from tokenizers import processors

    tokenizer = copy.deepcopy(byte_tokenizer)
    special = [("<|bos|>", 1), ("<|eos|>", 2)]
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single=template, special_tokens=special
    )
    model = gpt2.double()
    given = [("ab", "c"), ("a longer prompt", " é")]
    found = continuations(model, tokenizer, *zip(*given), batch_size_seqs=2)
    for one, (prompt, text) in zip(found, given):
        bos = [1] if "bos" in template else []
        before, after = (byte_tokenizer(part, add_special_tokens=False).input_ids for part in (prompt, text))
        with torch.no_grad():
            log_p = model(torch.tensor([bos + before + after])).logits[0].log_softmax(-1)
        wanted = log_p[len(bos + before) - 1 : -1][torch.arange(len(after)), after]
        assert one.ids.tolist() == after
        torch.testing.assert_close(one.log_p, wanted)
