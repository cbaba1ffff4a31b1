"""What a run tells beside its table, in the world of test_study.py, where every rate is known by hand.

An unknown entity has logits 2 for refusal and s (1, or 3 for every third) for its answer, a known one −2 and
1, before the final norm, which brings the stream k + a, of length √2, or u + s a, of √(1 + s²), to √32.
"""

import math
from dataclasses import replace

import pytest
import torch

from saelens_lite.analyze.edits.refusal_logit import QUANTILES, constants, refusal_logit
from saelens_lite.analyze.stats.attempts import attempts
from saelens_lite.analyze.stats.bootstrap import westfall_young_p
from saelens_lite.analyze.study.fixed_outcomes import fixed_outcome, mitigating_dose
from saelens_lite.analyze.study.half import Outcome
from saelens_lite.analyze.study.questions import Question
from saelens_lite.analyze.study.study import HallucinationStudy
from saelens_lite.analyze.study.surface import across_types, surface_of

from .test_study import (
    HALLUCINATED,
    JUDGE,
    KNOWS,
    N_CONTROLS,
    RECORDS,
    UNKNOWN_TESTED,
    rate,
    result,  # noqa: F401
    strength,
    study,  # noqa: F401
    world,  # noqa: F401
)


def _margin(s, known=0.0, unknown=1.0):
    """By how much an unknown entity prefers to refuse, with so much of k and u in its stream."""
    return math.sqrt(32) * (2 * unknown - 2 * known - s) / math.sqrt(known**2 + unknown**2 + s**2)


@pytest.mark.long
def test_the_primary_outcome_is_the_mean_over_doses_less_the_baseline(result):  # noqa: F811
    """The rates are H, 1 and 1 at doses 1/4, 1 and 2, and H with the baseline, which does nothing."""
    primary = result.fixed[0]
    expected = 2 / 3 * (1 - HALLUCINATED)
    assert primary.name == "primary" and primary.doses == (0.25, 1.0, 2.0) and primary.against == "baseline"
    assert primary.trained == pytest.approx(expected)
    assert primary.less_baseline.estimate.item() == pytest.approx(expected)
    assert primary.p == pytest.approx(1 / (N_CONTROLS + 1))
    margin = torch.tensor([_margin(strength(i), known=0.9 * d) for d in (0.25, 1, 2) for i in UNKNOWN_TESTED])
    clean = torch.tensor([_margin(strength(i)) for i in UNKNOWN_TESTED])
    assert primary.margin == pytest.approx((clean.mean() - margin.mean()).item(), rel=1e-3)
    assert primary.accuracy == 0
    changes = torch.tensor([2 / 3 * (strength(i) == 1) for i in UNKNOWN_TESTED]).double()
    assert primary.needed[0.1] == -(-((2.801585 * float(changes.std()) / 0.1) ** 2) // 1)
    assert str(primary).startswith(f"primary: hallucination raised by {expected:+.1%} at dose 0.25, 1, 2")


@pytest.mark.long
def test_mitigation_takes_the_dose_that_costs_no_accuracy(result):  # noqa: F811
    """u held at 0.9 d gives an unknown entity a refusal of 0.2 + 1.8 d against 1 or 3, a known one −2 + 1.8
    d.

    Dose 2 refuses all, known ones too; 1 and 1/2 change nothing; below, more is answered. So 1/2 is taken.
    """
    mitigation = result.fixed[1]
    assert mitigation.name == "mitigation" and mitigation.doses == (0.5,)
    assert mitigation.trained == mitigation.accuracy == 0 and mitigation.p == 1
    # u goes from 1 to 0.1 + 0.45, and the margin, in the direction of the outcome, down
    lost = [_margin(strength(i)) - _margin(strength(i), unknown=0.55) for i in UNKNOWN_TESTED]
    assert mitigation.margin == pytest.approx(-sum(lost) / len(lost), rel=1e-3)


def test_what_is_lost_counts_as_gain_in_mitigation():
    """Two known and two unknown entities: clean answers 1 and 1, trained 0 and 1, baseline 1 and 1."""
    known = torch.tensor([True, True, False, False])

    def outcome(*refused):
        refused = torch.tensor([0.0, 0.0, *refused]).double()
        return Outcome(refused, (1 - refused) * known, None, 0.0)

    how = {"n_resamples": 50, "confidence": 0.95, "seed": 0}
    found = fixed_outcome(
        "mitigation", outcome(0, 0), [outcome(1, 0)], [outcome(0, 0)], [[outcome(0, 0), outcome(1, 1)]],
        known, torch.arange(4), [0.5], how,
    )  # fmt: skip
    assert found.trained == found.less_baseline.estimate == 0.5 and found.margin is None
    assert found.p == pytest.approx(2 / 3)  # one of two sets loses more
    lost = outcome(1, 1)._replace(correct=torch.tensor([0.0, 1.0, 0.0, 0.0]).double())
    at = {0.5: outcome(0, 1), 1.0: outcome(0, 1), 2.0: lost}
    assert mitigating_dose(outcome(0, 0), at, known) == 0.5  # of equal ones
    assert mitigating_dose(outcome(0, 0), {2.0: lost}, known) == 2.0


@pytest.mark.long
def test_a_constant_on_the_refusal_logit_draws_the_trade_off(result):  # noqa: F811
    """Clean margins are −12 (known), and 4 and −1.79 (unknown): a constant c refuses those above −c."""
    assert [point.constant for point in result.curve] == [-3.99, 1.79, 12.0]
    for point in result.curve:
        answered = [_margin(strength(i)) + point.constant <= 0 for i in UNKNOWN_TESTED]
        assert point.hallucination == pytest.approx(sum(answered) / len(answered))
        assert point.refusal == (point.constant == 12) == 1 - point.accuracy
    assert constants(torch.tensor([5.0] * 10)) == [-4.99]
    assert len(constants(torch.arange(100.0))) == len(QUANTILES)


def test_the_constant_is_gone_after_an_exception(world):  # noqa: F811
    model, tokenizer, *_ = world
    ids = torch.tensor([tokenizer("abc")["input_ids"]])
    clean = model(input_ids=ids).logits
    with pytest.raises(KeyError), refusal_logit(model, [7, 9], 2.5):
        edited = model(input_ids=ids).logits
        raise KeyError
    assert torch.equal(edited[..., [7, 9]], clean[..., [7, 9]] + 2.5)
    assert torch.equal(edited[..., 10:], clean[..., 10:]) and torch.equal(model(input_ids=ids).logits, clean)


@pytest.mark.long
def test_p_values_are_corrected_by_the_largest_of_each_fake_ranking(result):  # noqa: F811
    tested = [row for row in result.rows if row.controls is not None]
    seen = torch.stack([row.measures[row.edit.measure].estimate for row in tested])
    expected = westfall_young_p(seen, torch.stack([row.controls for row in tested], 1))
    assert [row.p_adjusted for row in tested] == expected.tolist() and len(tested) == 2 * 2 * 4


def test_attempts_by_hand():
    """Four questions, one refused. By margin the surest is wrong, then right, then right: 1/1, 1/2 and
    1/3."""
    refused, correct = torch.tensor([0.0, 1.0, 0.0, 0.0]), torch.tensor([1.0, 0.0, 0.0, 1.0])
    found = attempts(refused.double(), correct.double(), torch.tensor([-1.0, 2.0, -3.0, -2.0]))
    assert found == (0.75, pytest.approx(2 / 3), pytest.approx((1 + 1 / 2 + 1 / 3) / 3))
    assert attempts(refused.double(), correct.double(), None).risk_area is None
    assert attempts(torch.ones(2).double(), torch.zeros(2).double(), None) == (0.0, None, None)


@pytest.mark.long
def test_attempts_and_flips_stand_in_the_result(result):  # noqa: F811
    clean, clamped = result.row("no edit", ""), result.row("clamp known", dose=1.0)
    n, unknown = result.n_questions, len(UNKNOWN_TESTED)
    assert clean.attempts.coverage == pytest.approx((n - unknown + HALLUCINATED * unknown) / n)
    assert clamped.attempts.coverage == 1 and clamped.attempts.accuracy == pytest.approx((n - unknown) / n)
    turned = [of for of in result.flipped if of.edit == "clamp known"]
    assert {(of.known, of.before, of.after) for of in turned} == {(False, "refused", "wrong")}
    assert len(turned) == min(5, round((1 - HALLUCINATED) * unknown))
    saved = result.to_dict()
    assert [of["name"] for of in saved["fixed"]] == ["primary", "mitigation"]
    assert len(saved["refusal_logit"]) == 3


@pytest.mark.long
def test_the_guard_stands_beside_every_latent(result):  # noqa: F811
    """All entities are one letter long: nothing on the surface tells them apart."""
    latent = result.guard[f"latent {KNOWS} (known)"]
    assert latent.auroc == 1 and latent.verdict == "beyond the rivals"
    assert {of.name for of in result.guard.beside} == {"DiffMean", "probe", "margin to refusal"}
    assert f"latent {KNOWS} (known) 1.00: beyond the rivals" in " ".join(result.summary())


@pytest.mark.long
def test_further_modes_and_sizes(world, study):  # noqa: F811
    """Added, 0.9 d k does to unknown entities what the clamp does, whose k is 0."""
    found = study.run(
        study.select(n=1, n_ablated=2), doses=[1.0], n_controls=3, n_resamples=50, modes=["mean", "steer"],
        sizes=[2], instructed=RECORDS,
    )  # fmt: skip
    names = {row.edit.name for row in found.rows if row.edit.sae == "trained"}
    expected = {"steer known", "clamp 2 known", "ablate few known to mean", "ablate many unknown to mean"}
    assert expected <= names
    assert rate(found.row("steer known", dose=1.0), "hallucination") == 1
    steered, clamped = found.row("steer known", dose=1.0), found.row("clamp known", dose=1.0)
    torch.testing.assert_close(
        steered.measures["answer_margin"].estimate, clamped.measures["answer_margin"].estimate
    )
    # of u an unknown entity keeps 0.1 and the mean of 0.9 and 0, half of the selecting entities each or so
    kept = 0.1 + 0.9 * study._side(False).entities.known.logical_not().double().mean().item()
    margins = [_margin(strength(i), unknown=kept) for i in UNKNOWN_TESTED]
    row = found.row("ablate few unknown to mean")
    assert rate(row, "answer_margin") == pytest.approx(-sum(margins) / len(margins), abs=1e-3)
    for row in (steered, found.row("ablate few unknown to mean")):
        assert row.control_push == pytest.approx(row.push, rel=1e-3)
    instructed, clean = found.row("instruction", ""), found.row("no edit", "")
    assert rate(instructed, "hallucination") == rate(clean, "hallucination")
    with pytest.raises(ValueError, match="groups of at most 2 latents, as many as were chosen, got 3"):
        study.run(study.select(n=1, n_ablated=2), sizes=[3], n_controls=3)
    with pytest.raises(ValueError, match="run expected modes of .* and sizes from 1"):
        study.run(modes=["men"])
    with pytest.raises(ValueError, match="instructed expected the study's 52 questions"):
        study.run(study.select(n=1, n_ablated=2), instructed=RECORDS[:3], n_controls=3)


def test_the_surface_of_questions(world):  # noqa: F811
    model, tokenizer, sae, _ = world
    records = [
        Question(prompt="ab c", entity="ab", known=True, relation="r", popularity=2.0, answer="0"),
        Question(prompt="a", entity="a", known=False, relation="s", popularity=1.0),
    ]
    of_two = HallucinationStudy(model, tokenizer, sae, records, JUDGE)
    side = of_two._side_of(records, [True, False], judge=JUDGE)
    rivals, popularity = surface_of([side])
    # tokens are bytes, with BOS at place 0: a, b, space, c and a again, two BOS, seven in all
    a, b = torch.tensor([2 / 7, 1 / 7]).double().log()
    assert rivals == {
        "tokens of the entity": [2.0, 1.0],
        "characters of the entity": [2.0, 1.0],
        "tokens of the prompt": [5.0, 2.0],
        "position": [2.0, 1.0],
        "unigram log frequency": [pytest.approx(((a + b) / 2).item()), pytest.approx(a.item())],
        "relation": ["r", "s"],
    }
    assert popularity == [2.0, 1.0]


def test_a_latent_of_one_type_is_tried_on_the_other(world, study):  # noqa: F811
    """Latent 5 fires on all that is known, of any type."""
    model, tokenizer, sae, _ = world
    records = [replace(record, type="ab"[i // 2 % 2]) for i, record in enumerate(RECORDS)]
    of_types = HallucinationStudy(model, tokenizer, sae, records, JUDGE)
    sides = of_types._side(False), of_types._side(True)
    found = across_types(*sides, sae, "separation", of_types.split)
    assert [(of.type, of.inside, of.outside) for of in found] == [("a", 1.0, 1.0), ("b", 1.0, 1.0)]
    assert across_types(study._side(False), study._side(True), sae, "separation", study.split) == []
