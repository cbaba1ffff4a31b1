"""A model in which everything is known by hand: one direction says that an entity is known, another that it
is not.

Its blocks do nothing, so the stream at the entity, which is the last token, is the entity's embedding

    known     k + a_j          unknown   u + strength · a_j,   strength 3 for every third, else 1

with orthogonal k, u, a_0 … a_3, and the head reads

    logit of answer j   x · a_j          logit of "?" (refusal)   2 x · u − 2 x · k

A known entity gets −2 for refusal and 1 for its answer; an unknown one 2 against 1, or 2 against 3: a
hallucination.
"""

import copy
import json
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel

from saelens_lite.analyze.edits.controls import matched_latents
from saelens_lite.analyze.edits.latents import ablate, clamp
from saelens_lite.analyze.edits.neutral_text import NeutralText
from saelens_lite.analyze.stats.document_split import Split
from saelens_lite.analyze.study.answers import Answers, NextToken
from saelens_lite.analyze.study.half import Outcome
from saelens_lite.analyze.study.planned_edits import Planned, as_far
from saelens_lite.analyze.study.questions import Question
from saelens_lite.analyze.study.result import assembled
from saelens_lite.analyze.study.study import HallucinationStudy
from saelens_lite.lm.decoder import Decoder
from saelens_lite.lm.hooks import run_to

from ..conftest import make_sae

LETTERS = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"
KNOWS, UNKNOWS, N_CONTROLS = 5, 9, 6
JUDGE = NextToken(["?"], separator="")
TESTS = dict(zip(LETTERS, Split().tests(list(LETTERS)).tolist()))


def is_known(i):
    return i % 2 == 0


def answer(i):
    return i // 2 % 4


def strength(i):
    return 3.0 if not is_known(i) and i // 2 % 3 == 0 else 1.0


RECORDS = [
    Question(prompt=letter, entity=letter, answer=str(answer(i)) if is_known(i) else (), known=is_known(i))
    for i, letter in enumerate(LETTERS)
]
UNKNOWN_TESTED = [i for i, letter in enumerate(LETTERS) if TESTS[letter] and not is_known(i)]
HALLUCINATED = sum(strength(i) == 3 for i in UNKNOWN_TESTED) / len(UNKNOWN_TESTED)


@pytest.fixture(scope="module")
def world(byte_tokenizer):
    """The model, an SAE whose latents 5 and 9 are k and u, and a baseline whose latents read them and write
    elsewhere."""
    sizes = {"vocab_size": 259, "n_positions": 8, "n_embd": 32, "n_layer": 2, "n_head": 2}
    gpt2 = GPT2LMHeadModel(GPT2Config(**sizes, bos_token_id=1, eos_token_id=2, pad_token_id=0)).eval()
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(32, 32, generator=generator, dtype=torch.float64)
    basis = (
        torch.linalg.qr(torch.cat([torch.ones(32, 1, dtype=torch.float64), noise[:, 1:]], 1)).Q.T[1:].float()
    )
    k, u, answers, rest = (
        basis[0],
        basis[1],
        basis[2:6],
        basis[6:],
    )  # all of mean zero, as the final norm removes the mean
    with torch.no_grad():
        for parameter in gpt2.transformer.h.parameters():
            parameter.zero_()
        gpt2.transformer.wpe.weight.zero_()
        gpt2.lm_head.weight = torch.nn.Parameter(torch.zeros(259, 32))

        def token(text):
            return byte_tokenizer(text)["input_ids"][-1]

        for i, letter in enumerate(LETTERS):
            gpt2.transformer.wte.weight[token(letter)] = (k if is_known(i) else u) + strength(i) * answers[
                answer(i)
            ]
        for j in range(4):
            gpt2.lm_head.weight[token(str(j))] = answers[j]
        gpt2.lm_head.weight[token("?")] = 2 * u - 2 * k
    saes = []
    for writes in (basis[:2], rest[:2]):
        sae = make_sae("relu")
        with torch.no_grad():
            sae.b_enc.fill_(-0.1)  # above rounding, so that k and u are 0.9 where they are
            sae.b_dec.zero_()
            reads = (
                rest[torch.arange(48) % len(rest)] + 0.3 * answers[torch.arange(48) % 4]
            )  # of answers, as often for both
            sae.W_enc.copy_(reads.T)
            sae.W_dec.copy_(rest[torch.arange(48) % len(rest)])
            sae.W_enc[:, [KNOWS, UNKNOWS]] = basis[:2].T
            sae.W_dec[[KNOWS, UNKNOWS]] = writes
        saes.append(sae)
    return gpt2, byte_tokenizer, *saes


@pytest.fixture(scope="module")
def study(world):
    model, tokenizer, sae, baseline = world
    return HallucinationStudy(model, tokenizer, sae, RECORDS, JUDGE, baseline=baseline, batch_size_seqs=20)


@pytest.fixture(scope="module")
def result(study):
    return study.run(
        study.select(n=1, n_ablated=1), doses=(0.25, 1.0, 2.0), n_controls=N_CONTROLS, n_resamples=200
    )


def rate(row, measure):
    return row.measures[measure].estimate.item()


def test_the_planted_latents_are_chosen(study):
    chosen = study.select(n=1)
    assert chosen.known.latents[0] == KNOWS and chosen.unknown.latents[0] == UNKNOWS
    assert chosen.known.statistic[0] == chosen.unknown.statistic[0] == 1
    assert chosen.known.n_items == sum(not tests for tests in TESTS.values())


@pytest.mark.long
@pytest.mark.parametrize("by", ["welch_t", "causal"])
def test_other_statistics_choose_them_too(study, by):
    chosen = study.select(n=1, by=by)
    assert (chosen.known.latents[0], chosen.unknown.latents[0]) == (KNOWS, UNKNOWS)
    if by == "causal":
        assert chosen.known.statistic[0] > 0 and chosen.unknown.statistic[0] > 0


@pytest.mark.property_check(12)
def test_every_rate_is_the_one_worked_out_by_hand(result):
    clean = result.row("no edit", "")
    assert rate(clean, "hallucination") == pytest.approx(HALLUCINATED) and 0 < HALLUCINATED < 1
    assert (rate(clean, "refusal"), rate(clean, "accuracy"), rate(clean, "wrong")) == (0, 1, 0)
    # k at 0.9 d on unknown entities: refusal 2 − 1.8 d against 1, so that 1/4 leaves what was and 1 answers
    # all
    for dose, expected in ((0.25, HALLUCINATED), (1.0, 1.0), (2.0, 1.0)):
        assert rate(result.row("clamp known", dose=dose), "hallucination") == pytest.approx(expected)
    # u at 0.9 d on known ones: refusal −2 + 1.8 d against 1
    for dose, expected in ((0.25, 0.0), (1.0, 0.0), (2.0, 1.0)):
        row = result.row("clamp unknown", dose=dose)
        assert rate(row, "refusal") == expected and rate(row, "accuracy") == 1 - expected
    # without its u an unknown entity has refusal 0.2; without its k a known one has −0.2, and 1 for its
    # answer
    assert rate(result.row("ablate few unknown"), "hallucination") == 1
    assert rate(result.row("ablate few known"), "refusal") == 0
    # the SAE reconstructs k and u but no answers: refusal 1.8 against 0, or −1.8 against 0
    assert rate(result.row("splice"), "hallucination") == rate(result.row("splice"), "refusal") == 0


@pytest.mark.property_check(12)
def test_controls_and_baseline_do_nothing_and_the_rank_says_so(result):
    for row in (result.row("clamp known", dose=1.0), result.row("clamp unknown", dose=2.0)):
        assert row.p == pytest.approx(1 / (N_CONTROLS + 1)) and row.p_adjusted >= row.p
        assert len(row.controls) == N_CONTROLS
        torch.testing.assert_close(torch.tensor(row.control_push), torch.tensor(row.push), atol=1e-3, rtol=0)
    no_effect = result.row("clamp known", dose=0.25)
    assert no_effect.p == 1 and no_effect.less_baseline.estimate == 0
    assert result.row("clamp known", dose=1.0).less_baseline.estimate == pytest.approx(1 - HALLUCINATED)
    assert rate(result.row("clamp known", "baseline", 1.0), "hallucination") == pytest.approx(HALLUCINATED)


def test_controls_and_rivals_move_the_stream_as_far(result):
    """What is added to the stream is 0.9 d − z along each direction, of unit norm for the two and for all
    others alike."""
    row = result.row("clamp known", dose=2.0)
    assert row.push == pytest.approx(row.control_push, rel=1e-4) and row.edit.rate_ratio > 1
    rival = result.row("clamp known", "baseline", 2.0)
    assert rival.push == pytest.approx(row.push, rel=0.01)
    assert result.row("DiffMean +", "", 2.0).push == pytest.approx(row.push, rel=1e-4)


@pytest.mark.parametrize(
    "kind, fields", [("relu", {}), ("topk", {"k": 4, "normalize_activations": "layer_norm"})]
)
def test_several_latents_that_point_alike_have_controls_that_go_as_far(world, kind, fields):
    """Three latents along one direction add up; three at random would go √3 times less far."""
    model, tokenizer, _, _ = world
    sae, latents = make_sae(kind, **fields), [1, 2, 3]
    with torch.no_grad():
        sae.W_dec[latents] = sae.W_dec[1].clone()
    side = HallucinationStudy(model, tokenizer, sae, RECORDS, JUDGE)._side(testing=True)
    drawn = matched_latents(sae, latents, torch.linspace(0.1, 0.2, 48), n_draws=6).directions
    along = as_far(sae, torch.tensor(latents), torch.full((3,), 2.0), side.acts, drawn)

    def push(**how):
        return side.push(lambda where: clamp(model, sae, latents, 2.0, where=where, **how))

    assert all(push(directions=draw) < 0.9 * push() for draw in drawn)
    assert [push(directions=draw) for draw in along] == [pytest.approx(push(), rel=1e-3)] * 6


def test_controls_of_latents_that_fire_on_nobody_tested_change_nothing(world):
    """Removed, such latents move nothing, and there is no length to bring controls to: 0 / 0."""
    sae, latents = world[2], torch.tensor([KNOWS])
    acts = torch.zeros(3, 32) - sae.W_enc[:, KNOWS]
    directions = torch.randn(4, 1, 32, generator=torch.Generator().manual_seed(0))
    assert torch.equal(as_far(sae, latents, torch.zeros(1), acts, directions), directions)


def test_detection_is_told_beside_control(result):
    found = {(d.source, d.of): d for d in result.detections}
    assert found["trained", "known"].latent == KNOWS and found["trained", "known"].auroc == 1
    assert found["trained", "unknown"].separation == 1 and found["DiffMean", "known"].auroc == 1


def test_the_table_the_summary_and_the_json_say_the_same(result, tmp_path):
    result.save(tmp_path / "study.json")
    saved = json.loads((tmp_path / "study.json").read_text())
    assert saved["n_known"] + saved["n_unknown"] == sum(TESTS.values()) == saved["n_questions"]
    [row] = [r for r in saved["rows"] if (r["edit"], r["sae"], r["dose"]) == ("clamp known", "trained", 1.0)]
    assert (
        row["hallucination"]["estimate"] == 1
        and row["controls"]["n"] == N_CONTROLS
        and row["latents"] == [KNOWS]
    )
    assert "clamp known (1)" in repr(result) and "splice" in repr(result)
    frame = result.to_frame()
    assert frame["edit"].tolist() == [row.edit.name for row in result.rows]
    assert frame["refusal.low"].tolist() == [row.measures["refusal"].low.item() for row in result.rows]
    text = " ".join(result.summary())
    assert (
        f"decoder, at push {result.row('clamp known', 'baseline', 1.0).push:.2f} beside {row['push']:.2f}: "
        in text
    )
    assert (
        "What training added is the difference, +0." in text
        and ": more." in text
        and "DiffMean +: 100%" in text
    )
    with pytest.raises(KeyError, match="no row 'clamp'"):
        result.row("clamp")


@pytest.mark.long
def test_without_a_baseline_the_summary_asks_for_one(world):
    model, tokenizer, sae, _ = world
    study = HallucinationStudy(model, tokenizer, sae, RECORDS, JUDGE)
    result = study.run(study.select(1, n_ablated=1), doses=[1.0], n_controls=5, n_resamples=50)
    assert "No baseline was given" in " ".join(result.summary())
    assert all(row.less_baseline is None for row in result.rows)


@pytest.mark.long
def test_logits_are_tested_where_rates_cannot_move(study):
    """A quarter of the dose changes no answer, and the margin of all of them."""
    chosen = study.select(n=1, n_ablated=1)
    result = study.run(chosen, doses=[0.25], n_controls=N_CONTROLS, n_resamples=50, score="logits")
    row = result.row("clamp known", dose=0.25)
    assert row.edit.measure == "answer_margin" and row.p == pytest.approx(1 / (N_CONTROLS + 1))
    assert rate(row, "answer_margin") > rate(result.row("no edit", ""), "answer_margin")
    assert rate(row, "hallucination") == pytest.approx(HALLUCINATED)
    assert "answer_margin" in repr(result) and "logit of the best answer" in result.summary()[0]
    with pytest.raises(ValueError, match="expected 'rates' or 'logits', got 'logit'"):
        study.run(chosen, score="logit")


@pytest.mark.long
def test_a_function_may_judge_and_rivals_may_be_tried(world):
    """It sees the model under each edit, generates as it likes, and needs give no margin."""
    model, tokenizer, sae, _ = world
    refusal = tokenizer("?")["input_ids"][-1]

    def judge(model, inputs, records):
        token = model.generate(**inputs, max_new_tokens=2, do_sample=False)[:, inputs["input_ids"].shape[1]]
        right = [tokenizer(record.answer)["input_ids"][-1] if record.answer else -1 for record in records]
        return Answers(token == refusal, token == torch.tensor(right))

    study = HallucinationStudy(model, tokenizer, sae, RECORDS, judge)
    chosen = study.select(n=1, n_ablated=1)
    rivals = {"nothing": lambda where: ablate(model, sae, KNOWS, where=torch.zeros_like(where))}
    how = {"doses": [2.0], "n_controls": 5, "n_resamples": 50}
    result = study.run(chosen, rivals=rivals, **how)
    by_token = HallucinationStudy(model, tokenizer, sae, RECORDS, JUDGE).run(chosen._replace(sae=sae), **how)
    for name in ("clamp known", "clamp unknown"):
        mine, theirs = result.row(name, dose=2.0), by_token.row(name, dose=2.0)
        assert "answer_margin" not in mine.measures and mine.push == pytest.approx(theirs.push)
        assert rate(mine, "hallucination") == rate(theirs, "hallucination") and rate(mine, "refusal") == rate(
            theirs, "refusal"
        )
    assert rate(result.row("nothing", ""), "hallucination") == pytest.approx(HALLUCINATED)
    with pytest.raises(ValueError, match="expected a judge that gives margins"):
        study.run(chosen, score="logits", **how)


def test_a_judge_gets_its_inputs_where_the_model_is(world, monkeypatch):
    model, tokenizer, sae, _ = world
    seen = []

    def judge(model, inputs, records):
        seen.extend(value.device.type for value in inputs.values())
        run_to(
            model,
            [sae.config.hook_point],
            input_ids=torch.ones(len(records), inputs["input_ids"].shape[1]).long(),
        )
        return Answers(torch.zeros(len(records)), torch.zeros(len(records)))

    side = HallucinationStudy(model, tokenizer, sae, RECORDS, judge)._side(testing=True)

    class Elsewhere(Decoder):
        device = torch.device("meta")

    side._decoder = Elsewhere(model)
    side.outcome()
    assert seen == ["meta", "meta"]


def test_a_model_in_training_mode_is_studied_without_its_dropout(world, result):
    model, tokenizer, sae, _ = world
    model = copy.deepcopy(model).train()
    study = HallucinationStudy(model, tokenizer, sae, RECORDS, JUDGE)
    again = study.run(study.select(n=1, n_ablated=1), doses=(2.0,), n_controls=2, n_resamples=50)
    for name in ("clamp known", "clamp unknown"):
        row = again.row(name, dose=2.0)
        assert row.push == result.row(name, dose=2.0).push
        assert rate(row, "answer_margin") == rate(result.row(name, dose=2.0), "answer_margin")
    assert all(module.training for module in model.modules())


def test_the_model_itself_says_who_is_known(world):
    """Each entity has three questions here; the model, which answers one thing, is right in as many as ask
    for it."""
    model, tokenizer, sae, _ = world
    right = {letter: i % 3 for i, letter in enumerate(LETTERS) if is_known(i)}  # 0, 1 or 2 of its three
    records = [
        Question(
            prompt=letter,
            entity=letter,
            relation=str(q),
            answer=str(answer(i)) if q < right.get(letter, 0) else "x",
        )
        for i, letter in enumerate(LETTERS)
        for q in range(3)
    ]
    labels = HallucinationStudy(model, tokenizer, sae, records, JUDGE).label()
    expected = [{0: False, 1: None, 2: True}[right.get(letter, 0)] for letter in LETTERS for _ in range(3)]
    assert labels == expected


def test_of_several_types_the_smallest_separation_counts(world):
    """Latent 5 fires on all known entities, latent 0 only on those whose answer is 0 or 2, which are of type
    "a"."""
    model, tokenizer, trained, _ = world
    sae = copy.deepcopy(trained)
    with torch.no_grad():
        k = sae.W_enc[:, KNOWS].clone()
        answers = [model.transformer.wte.weight[tokenizer(LETTERS[i])["input_ids"][-1]] - k for i in (0, 4)]
        sae.W_enc[:, 0], sae.b_enc[0] = k + sum(answers), -1.5

    def separation(records):
        study = HallucinationStudy(model, tokenizer, sae, records, JUDGE)
        return study._statistic(sae, study._side(testing=False), True, "separation")

    assert separation(RECORDS)[0] > 0.2 and separation(RECORDS)[KNOWS] == 1
    by_type = separation([replace(record, type="ab"[i // 2 % 2]) for i, record in enumerate(RECORDS)])
    assert by_type[0] == 0 and by_type[KNOWS] == 1
    with pytest.raises(
        ValueError, match="expected unknown entities of type 'known' on the selecting side too, got none"
    ):
        separation([replace(record, type="known" if record.known else "unknown") for record in RECORDS])


def test_base_rates_leave_latents_out(study):
    rates = torch.zeros(48)
    rates[KNOWS] = 0.5
    assert KNOWS not in study.select(n=1, base_rates=rates).known.latents
    with pytest.raises(
        ValueError, match="n=40 latents of known entities were asked for, .* base rate of at most 0.02"
    ):
        study.select(n=40, base_rates=rates)


def test_selection_on_the_testing_side_latents_of_another_sae_and_empty_choices_are_refused(study, world):
    chosen = study.select(n=1)
    elsewhere = replace(chosen.known, split=Split(seed=7))
    with pytest.raises(ValueError, match="expected documents that did not choose the latents"):
        study.run(chosen._replace(known=elsewhere))
    for wrong in ({"doses": []}, {"doses": [1, 1]}, {"doses": [0.0]}, {"n_controls": 0}):
        with pytest.raises(ValueError, match="run expected doses above 0, each once, and at least 1 control"):
            study.run(chosen, **wrong)
    with pytest.raises(ValueError, match="at least 1 latent to choose, got n=0"):
        study.select(n=0)
    with pytest.raises(ValueError, match="got those of another SAE"):
        study.run(chosen._replace(sae=make_sae("relu")))
    with pytest.raises(ValueError, match="got another SAE"):
        study.select(sae=make_sae("relu"))


def test_bad_input_is_named(world, monkeypatch):
    model, tokenizer, sae, _ = world

    def begun(records=RECORDS, judge=JUDGE, sae=sae, **how):
        return HallucinationStudy(model, tokenizer, sae, records, judge, **how)

    with pytest.raises(ValueError, match="a study expected records, got none"):
        begun([])
    with pytest.raises(
        ValueError, match="at least 2 unknown entities on the selecting side of the split, got 0"
    ):
        begun([record for record in RECORDS if record.known]).label()
    with pytest.raises(ValueError, match="at least 2 known entities"):
        begun([replace(record, group="all") for record in RECORDS]).label()
    with pytest.raises(ValueError, match="expected all to have known, or none, got 1 of 52 without"):
        begun([replace(RECORDS[0], known=None), *RECORDS[1:]]).label()
    with pytest.raises(ValueError, match="labelled by what the model answers"):
        begun([replace(record, known=None, answer="x") for record in RECORDS]).label()
    with pytest.raises(
        ValueError, match="does not fit .*: expected one of d_model=32, got one of d_model=16"
    ):
        begun(sae=make_sae("relu", d_model=16))
    with pytest.raises(
        ValueError, match="does not fit transformer.h.0 .*: expected one of d_model=32, got one of d_model=16"
    ):
        begun(sae=make_sae("relu", d_model=16), hook_point="transformer.h.0")
    elsewhere = make_sae("relu", hook_point="blocks.1.hook_resid_post")
    with pytest.raises(
        ValueError, match="the baseline does not fit blocks.0.* GPT2LMHeadModel at blocks.1.hook_resid_post"
    ):
        begun(baseline=elsewhere)
    begun(baseline=elsewhere, hook_point="blocks.0.hook_resid_post")
    with pytest.raises(ValueError, match="the SAE does not say where"):
        begun(sae=make_sae("relu", hook_point=""))
    monkeypatch.setattr(model.config, "_name_or_path", "someone/gpt2-tiny")
    with pytest.raises(ValueError, match="gpt2-tiny, got one .* trained on pythia-70m"):
        begun(baseline=make_sae("relu", model_name="pythia-70m"))
    with pytest.raises(ValueError, match="position expected one of 'last', 'all', .*, got 'first'"):
        begun(position="first")
    with pytest.raises(ValueError, match="begins like a refusal"):
        begun(judge=NextToken(["0"], separator=""))
    with pytest.raises(ValueError, match="expected tokens that refuse, and others as options"):
        begun(judge=NextToken(["?"], options=["?"]))
    with pytest.raises(ValueError, match="judge expected to give 52 answers"):
        begun(
            [replace(r, known=None) for r in RECORDS], lambda *_: Answers(torch.zeros(1), torch.zeros(1))
        ).label()


@pytest.mark.long
def test_side_effects_on_neutral_text_stand_beside(study, byte_tokenizer):
    ids = torch.tensor([byte_tokenizer(text)["input_ids"] for text in ("abcdef", "ghijkl")])
    result = study.run(
        study.select(n=1, n_ablated=1),
        doses=[2.0],
        n_controls=5,
        n_resamples=50,
        neutral=NeutralText(input_ids=ids),
    )
    row = result.row("clamp known", dose=2.0)
    assert row.edit.side_effects.kl.estimate > 0 and row.edit.side_effects.push > 0
    assert "ΔCE" in repr(result) and any("delta_ce" in cells for cells in result.to_dict()["rows"])


def test_intervals_draw_the_entities_that_were_asked_about():
    """As many questions about known entities as about unknown ones, of 2 and of 3 entities."""
    known = torch.tensor([True] * 4 + [False] * 3 + [True] + [False] * 2)
    side = SimpleNamespace(known=known, clusters=list("aaaacccbde"), hook_point="")
    outcome = Outcome(refused=torch.zeros(10), correct=torch.zeros(10), margin=None, push=0.0)
    bootstrap = {"n_resamples": 50, "confidence": 0.95, "seed": 0}
    [row] = assembled([(Planned("no edit"), outcome)], side, [], bootstrap, "rates").rows
    assert {name: of.n_clusters for name, of in row.measures.items()} == {
        "hallucination": 3, "refusal": 2, "accuracy": 2, "wrong": 2
    }  # fmt: skip
