"""The monitor: scores of written tokens and of entities, by a second pass over what was written."""

import math

import pytest
import torch

from saelens_lite.analyze.study.monitor import Monitor, fit_alarm
from saelens_lite.lm.forward_state import position_ids_from
from saelens_lite.lm.hooks import capture
from tests.analyze.conftest import HOOK_POINT, make_sae

LATENTS = list(range(0, 48, 2))
PROMPTS = ["a", "what is this", "he said so, and"]
PROBE = torch.linspace(-1, 1, 32)


@pytest.fixture
def written(gpt2, byte_tokenizer):
    """The model in float64, which never ends an answer, and its prompts."""
    model = gpt2.double()
    model.generation_config.eos_token_id = None
    return model, byte_tokenizer(PROMPTS, padding=True, return_tensors="pt")


def read_again(model, sae, inputs, sequences, probe=None):
    """float64[answers n_new]: the score at the token before each written one, all in one pass."""
    width = inputs["input_ids"].shape[1]
    each = len(sequences) // len(inputs["input_ids"])
    mask = inputs["attention_mask"].repeat_interleave(each, dim=0)
    mask = torch.cat([mask, torch.ones(len(mask), sequences.shape[1] - width, dtype=mask.dtype)], dim=1)
    with torch.no_grad(), capture(model, [HOOK_POINT]) as found:
        model(sequences, attention_mask=mask, position_ids=position_ids_from(mask))
        acts = found[HOOK_POINT]
        if probe is not None:
            return (acts @ probe.double())[:, width - 1 : -1]
        dense = sae.encode(acts.reshape(-1, 32)).to_dense()
        return dense[:, LATENTS].sum(1).view(acts.shape[:2])[:, width - 1 : -1]


DECODINGS = {
    "greedy": {},
    "without a cache": {"use_cache": False},
    "sampled, two of each": {"do_sample": True, "num_return_sequences": 2},
    "beams": {"num_beams": 3, "return_dict_in_generate": True},
    "two of four beams": {"num_beams": 4, "num_return_sequences": 2, "return_dict_in_generate": True},
}


@pytest.mark.parametrize("how", DECODINGS.values(), ids=DECODINGS)
@pytest.mark.parametrize("kind", ["topk", "relu"])
def test_scores_of_written_tokens_are_those_of_a_second_pass(written, kind, how):
    model, inputs = written
    sae = make_sae(kind).double()
    monitor = Monitor(model, sae, LATENTS)
    torch.manual_seed(1)
    with monitor.reading():
        out = model.generate(**inputs, max_new_tokens=6, **how)
    sequences = getattr(out, "sequences", out)
    again = read_again(model, sae, inputs, sequences)
    assert again.shape[1] == 6 and len(again) == len(sequences)
    torch.testing.assert_close(monitor.tokens(out).double(), again, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(monitor.answers(out).double(), again.amax(1), atol=1e-5, rtol=1e-5)
    assert float(again.max()) > 0 and len(again.unique()) > 3


def test_a_probe_is_read_along_its_direction(written):
    model, inputs = written
    monitor = Monitor(model, None, PROBE, hook_point=HOOK_POINT)
    with monitor.reading():
        out = model.generate(**inputs, max_new_tokens=3, do_sample=False)
    again = read_again(model, None, inputs, out, PROBE)
    torch.testing.assert_close(monitor.tokens(out).double(), again, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("how", [{}, {"num_beams": 3}, {"use_cache": False}], ids=str)
def test_tokens_of_an_entity_are_read_in_the_prompt(written, how):
    model, inputs = written
    where = torch.zeros_like(inputs["attention_mask"], dtype=torch.bool)
    where[:, -3:-1] = True
    where[0] = False
    where[0, -1] = True
    monitor = Monitor(model, None, PROBE, hook_point=HOOK_POINT)
    with monitor.reading(where):
        out = model.generate(**inputs, max_new_tokens=3, **how)
    with torch.no_grad(), capture(model, [HOOK_POINT]) as found:
        positions = position_ids_from(inputs["attention_mask"])
        model(**inputs, position_ids=positions)
        read = found[HOOK_POINT] @ PROBE.double()
    wanted = torch.stack([read[i][where[i]].max() for i in range(3)])
    torch.testing.assert_close(monitor.answers(out).double(), wanted, atol=1e-5, rtol=1e-5)


def test_what_is_behind_an_answers_end_has_no_score(written):
    model, inputs = written
    monitor = Monitor(model, None, PROBE, hook_point=HOOK_POINT)
    with monitor.reading():
        out = model.generate(**inputs, max_new_tokens=5, do_sample=False)
    plain = monitor.tokens(out)
    end = int(out[1, inputs["input_ids"].shape[1] + 1])  # the second token of the second answer
    ended = monitor.tokens(out, eos_token_id=end)
    for row, new in enumerate(out[:, -5:].tolist()):
        n = new.index(end) + 1 if end in new else 5
        assert torch.equal(ended[row, :n], plain[row, :n]) and ended[row, n:].isnan().all()
    assert monitor.answers(out, end)[1] == plain[1, : out[1, -5:].tolist().index(end) + 1].max()


def test_an_alarm_ends_an_answer(written):
    model, inputs = written
    model.generation_config.eos_token_id = 2  # or transformers writes on in rows that have ended
    monitor = Monitor(model, None, PROBE, hook_point=HOOK_POINT)
    with monitor.reading():
        out = model.generate(**inputs, max_new_tokens=8, do_sample=False)
    scores = monitor.tokens(out)
    monitor.threshold = float(scores.flatten().sort().values[-4])
    with monitor.reading():
        stopped = model.generate(
            **inputs, max_new_tokens=8, do_sample=False, stopping_criteria=[monitor], pad_token_id=0
        )
    width = inputs["input_ids"].shape[1]
    for row in range(3):
        alarms = (scores[row] > monitor.threshold).nonzero().flatten().tolist()
        n = alarms[0] + 1 if alarms else 8  # the token that was predicted there is the last
        assert stopped[row, width : width + n].tolist() == out[row, width : width + n].tolist()
        assert (stopped[row, width + n :] == 0).all()
    assert (scores > monitor.threshold).any()


def test_nothing_changes_and_nothing_stays(written):
    model, inputs = written
    plain = model.generate(
        **inputs, max_new_tokens=4, do_sample=False, output_logits=True, return_dict_in_generate=True
    )
    monitor = Monitor(model, make_sae().double(), LATENTS)
    with monitor.reading():
        read = model.generate(
            **inputs, max_new_tokens=4, do_sample=False, output_logits=True, return_dict_in_generate=True
        )
    assert torch.equal(torch.stack(plain.logits), torch.stack(read.logits))
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_what_cannot_be_read_is_refused(written):
    model, inputs = written
    monitor = Monitor(model, make_sae().double(), LATENTS)
    with pytest.raises(ValueError, match="expected a generate call inside reading"):
        monitor.tokens(torch.zeros(3, 20, dtype=torch.int64))
    with monitor.reading():
        beams = model.generate(**inputs, max_new_tokens=3, num_beams=2)
    with pytest.raises(ValueError, match="6 rows were read and 3 answers returned, as with beams"):
        monitor.tokens(beams)
    with monitor.reading(), pytest.raises(ValueError, match="with beams, compare monitor.answers"):
        model.generate(**inputs, max_new_tokens=3, num_beams=2, stopping_criteria=[monitor])
    where = torch.zeros(3, 4, dtype=torch.bool)
    with (
        monitor.reading(where),
        pytest.raises(ValueError, match=r"where expected the prompt's shape \[3, 16\]"),
    ):
        model.generate(**inputs, max_new_tokens=3)
    where = torch.zeros(3, 16, dtype=torch.bool)
    with monitor.reading(where), pytest.raises(ValueError, match="at least one token of each prompt"):
        model.generate(**inputs, max_new_tokens=3)
    with pytest.raises(ValueError, match="a probe expected 32 finite weights"):
        Monitor(model, None, torch.ones(31), hook_point=HOOK_POINT)
    with pytest.raises(ValueError, match="expected the probe's hook_point="):
        Monitor(model, None, PROBE)
    with pytest.raises(ValueError, match="a monitor of latents expected their SAE"):
        Monitor(model, None, [1], hook_point=HOOK_POINT)
    with pytest.raises(ValueError, match="at least one latent, got none"):
        Monitor(model, make_sae().double(), torch.zeros(0, dtype=torch.int64))


def test_an_alarm_keeps_its_rate_and_its_numbers_are_those_of_the_testing_side():
    from saelens_lite.analyze.stats.calibration import brier_score, conformal_threshold
    from saelens_lite.analyze.stats.document_split import Split
    from saelens_lite.analyze.stats.ranks import auroc

    generator = torch.Generator().manual_seed(0)
    wrong = torch.rand(900, generator=generator) < 0.4
    scores = torch.randn(900, generator=generator, dtype=torch.float64) + 1.5 * wrong
    names = [f"entity {i}" for i in range(900)]
    alarm = fit_alarm(scores, wrong, names, alpha=0.1)
    tests = Split().tests(names)
    assert alarm.threshold == conformal_threshold(scores[~tests & ~wrong], 0.1)
    right, odd = scores[tests & ~wrong], scores[tests & wrong]
    assert alarm.false_alarms == pytest.approx(float((right > alarm.threshold).double().mean()))
    assert alarm.false_alarms == pytest.approx(0.1, abs=0.04) and alarm.found > 0.5
    assert alarm.auroc.estimate.item() == pytest.approx(auroc(right, odd))
    p = alarm.probability(scores)
    assert alarm.brier == pytest.approx(brier_score(p[tests], wrong[tests]))
    # the truth is a logistic curve of slope 1.5 with log odds 0 at score 0.75 + ln(0.6 / 0.4) / 1.5
    assert alarm.weight == pytest.approx(1.5, abs=0.35)
    assert -alarm.bias / alarm.weight == pytest.approx(0.75 + math.log(1.5) / 1.5, abs=0.25)
    assert alarm.calibration_error < 0.07
    assert "alarm above" in str(alarm) and "Brier" in str(alarm)
    with pytest.raises(ValueError, match="right and wrong answers on either side"):
        fit_alarm(scores, torch.zeros(900), names)
    with pytest.raises(ValueError, match="a finite score, a label and a document"):
        fit_alarm(scores, wrong[:5], names)


def test_few_right_answers_promise_nothing():
    generator = torch.Generator().manual_seed(0)
    wrong = torch.arange(60) % 2 == 0
    alarm = fit_alarm(torch.randn(60, generator=generator), wrong, alpha=0.01)
    assert alarm.threshold == math.inf and alarm.false_alarms == alarm.found == 0
