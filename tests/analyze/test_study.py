"""A model in which everything is known by hand: one direction says that an entity is known, another that it is not.

Its blocks do nothing, so the stream at the entity, which is the last token, is the entity's embedding

    known     k + a_j          unknown   u + strength · a_j,   strength 3 for every third, else 1

with orthogonal k, u, a_0 … a_3, and the head reads

    logit of answer j   x · a_j          logit of "?" (refusal)   2 x · u − 2 x · k

A known entity gets −2 for refusal and 1 for its answer; an unknown one 2 against 1, or 2 against 3: a hallucination.
"""

import pytest
import torch

from saelens_lite.analyze.answers import NextToken
from saelens_lite.analyze.records import Record
from saelens_lite.analyze.split import Split
from saelens_lite.analyze.study import HallucinationStudy

from .conftest import make_sae

LETTERS = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"
KNOWS, UNKNOWS, N_CONTROLS = 5, 9, 12
JUDGE = NextToken(["?"], separator="")
TESTS = dict(zip(LETTERS, Split().tests(list(LETTERS)).tolist()))


def is_known(i):
    return i % 2 == 0


def answer(i):
    return i // 2 % 4


def strength(i):
    return 3.0 if not is_known(i) and i // 2 % 3 == 0 else 1.0


RECORDS = [
    Record(prompt=letter, entity=letter, answer=str(answer(i)) if is_known(i) else (), known=is_known(i))
    for i, letter in enumerate(LETTERS)
]
UNKNOWN_TESTED = [i for i, letter in enumerate(LETTERS) if TESTS[letter] and not is_known(i)]
HALLUCINATED = sum(strength(i) == 3 for i in UNKNOWN_TESTED) / len(UNKNOWN_TESTED)


@pytest.fixture
def world(gpt2, byte_tokenizer):
    """The model, an SAE whose latents 5 and 9 are k and u, and a baseline whose latents read them and write elsewhere."""
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(32, 32, generator=generator, dtype=torch.float64)
    basis = torch.linalg.qr(torch.cat([torch.ones(32, 1, dtype=torch.float64), noise[:, 1:]], 1)).Q.T[1:].float()
    k, u, answers, rest = basis[0], basis[1], basis[2:6], basis[6:]  # all of mean zero, as the final norm removes the mean
    with torch.no_grad():
        for parameter in gpt2.transformer.h.parameters():
            parameter.zero_()
        gpt2.transformer.wpe.weight.zero_()
        gpt2.lm_head.weight = torch.nn.Parameter(torch.zeros(259, 32))

        def token(text):
            return byte_tokenizer(text)["input_ids"][-1]

        for i, letter in enumerate(LETTERS):
            gpt2.transformer.wte.weight[token(letter)] = (k if is_known(i) else u) + strength(i) * answers[answer(i)]
        for j in range(4):
            gpt2.lm_head.weight[token(str(j))] = answers[j]
        gpt2.lm_head.weight[token("?")] = 2 * u - 2 * k
    saes = []
    for writes in (basis[:2], rest[:2]):
        sae = make_sae("relu")
        with torch.no_grad():
            sae.b_enc.fill_(-0.1)  # above rounding, so that k and u are 0.9 where they are
            sae.b_dec.zero_()
            reads = rest[torch.arange(48) % len(rest)] + 0.3 * answers[torch.arange(48) % 4]  # of answers, as often for both
            sae.W_enc.copy_(reads.T)
            sae.W_dec.copy_(rest[torch.arange(48) % len(rest)])
            sae.W_enc[:, [KNOWS, UNKNOWS]] = basis[:2].T
            sae.W_dec[[KNOWS, UNKNOWS]] = writes
        saes.append(sae)
    return gpt2, byte_tokenizer, *saes


@pytest.fixture
def study(world):
    model, tokenizer, sae, baseline = world
    return HallucinationStudy(model, tokenizer, sae, RECORDS, JUDGE, baseline=baseline, batch_size_seqs=20)


@pytest.fixture
def result(study):
    return study.run(study.select(n=1, n_ablated=1), doses=(0.25, 1.0, 2.0), n_controls=N_CONTROLS, n_resamples=200)


def rate(row, measure):
    return row.measures[measure].estimate.item()


def test_the_planted_latents_are_chosen(study):
    chosen = study.select(n=1)
    assert chosen.known.latents[0] == KNOWS and chosen.unknown.latents[0] == UNKNOWS
    assert chosen.known.statistic[0] == chosen.unknown.statistic[0] == 1
    assert chosen.known.n_items == sum(not tests for tests in TESTS.values())


@pytest.mark.parametrize("by", ["welch_t", "causal"])
def test_other_statistics_choose_them_too(study, by):
    chosen = study.select(n=1, by=by)
    assert (chosen.known.latents[0], chosen.unknown.latents[0]) == (KNOWS, UNKNOWS)
    if by == "causal":
        assert chosen.known.statistic[0] > 0 and chosen.unknown.statistic[0] > 0


def test_every_rate_is_the_one_worked_out_by_hand(result):
    clean = result.row("no edit", "")
    assert rate(clean, "hallucination") == pytest.approx(HALLUCINATED) and 0 < HALLUCINATED < 1
    assert (rate(clean, "refusal"), rate(clean, "accuracy"), rate(clean, "wrong")) == (0, 1, 0)
    # k at 0.9 d on unknown entities: refusal 2 − 1.8 d against 1, so that 1/4 leaves what was and 1 answers all
    for dose, expected in ((0.25, HALLUCINATED), (1.0, 1.0), (2.0, 1.0)):
        assert rate(result.row("clamp known", dose=dose), "hallucination") == pytest.approx(expected)
    # u at 0.9 d on known ones: refusal −2 + 1.8 d against 1
    for dose, expected in ((0.25, 0.0), (1.0, 0.0), (2.0, 1.0)):
        row = result.row("clamp unknown", dose=dose)
        assert rate(row, "refusal") == expected and rate(row, "accuracy") == 1 - expected
    # without its u an unknown entity has refusal 0.2; without its k a known one has −0.2, and 1 for its answer
    assert rate(result.row("ablate few unknown"), "hallucination") == 1
    assert rate(result.row("ablate few known"), "refusal") == 0
    # the SAE reconstructs k and u but no answers: refusal 1.8 against 0, or −1.8 against 0
    assert rate(result.row("splice"), "hallucination") == rate(result.row("splice"), "refusal") == 0


def test_controls_and_baseline_do_nothing_and_the_rank_says_so(result):
    for row in (result.row("clamp known", dose=1.0), result.row("clamp unknown", dose=2.0)):
        assert row.p == pytest.approx(1 / (N_CONTROLS + 1)) and row.p_adjusted >= row.p
        assert len(row.controls) == N_CONTROLS
        torch.testing.assert_close(torch.tensor(row.control_push), torch.tensor(row.push), atol=1e-3, rtol=0)
    no_effect = result.row("clamp known", dose=0.25)
    assert no_effect.p == 1 and no_effect.less_baseline.estimate == 0
    assert result.row("clamp known", dose=1.0).less_baseline.estimate == pytest.approx(1 - HALLUCINATED)
    assert rate(result.row("clamp known", "baseline", 1.0), "hallucination") == pytest.approx(HALLUCINATED)
