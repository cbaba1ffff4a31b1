"""A latent whose direction is a token's own: its effect, its controls, what it does besides; and what is
refused."""

import json
import math
from functools import partial

import pytest
import torch
from torch import nn

from saelens_lite.analyze.edits.controls import direction_control, matched_latents, random_directions
from saelens_lite.analyze.edits.directions import steer_direction
from saelens_lite.analyze.edits.doses import DoseResponse, DoseRow, dose_response
from saelens_lite.analyze.edits.latents import clamp, scale, steer
from saelens_lite.analyze.edits.neutral_text import NeutralText, SideEffects, repetition, side_effects
from saelens_lite.analyze.stats.bootstrap import cluster_bootstrap
from saelens_lite.analyze.stats.document_split import Split, select_latents
from saelens_lite.lm.losses import kl_divergence, token_losses

from ..conftest import make_sae

POINT = "blocks.1.hook_resid_post"
TOKEN, LATENT = 65, 3
IDS = torch.randint(3, 259, (12, 6), generator=torch.Generator().manual_seed(0))


@pytest.fixture
def planted_latent(gpt2):
    """The small GPT-2 and an SAE at its last block, in which latent 3 writes what the head reads as token
    65."""
    sae = make_sae("relu", hook_point=POINT)
    with torch.no_grad():
        head = gpt2.lm_head.weight - gpt2.lm_head.weight.mean(0)
        sae.W_dec.copy_(nn.functional.normalize(sae.W_dec, dim=-1))
        sae.W_dec[LATENT] = nn.functional.normalize(head[TOKEN], dim=-1)
    return gpt2, sae


def log_prob(model):
    return model(IDS).logits[:, -1].log_softmax(-1)[:, TOKEN]


RATES = torch.linspace(0.01, 0.2, 48)


@pytest.mark.long
def test_the_latent_of_a_token_raises_it_more_than_any_control(planted_latent):
    model, sae = planted_latent
    controls = [matched_latents(sae, LATENT, RATES, n_draws=40), random_directions(sae, LATENT, n_draws=30)]
    table = dose_response(
        model, sae, LATENT, [0.0, 0.5, 1.0], log_prob, unit="resid_norm", controls=controls, n_resamples=200
    )
    zero, half, full = table.rows
    assert zero.effect.estimate == 0 and zero.controls[0].p == 1.0
    assert 0 < half.effect.low < half.effect.estimate < full.effect.low
    assert table.spearman == pytest.approx(1.0)
    assert 0 < table.half_effect_dose < 1
    for row in (half, full):
        assert [control.p for control in row.controls] == [pytest.approx(1 / 41), pytest.approx(1 / 31)]
        assert all(control.p_any_dose >= control.p for control in row.controls)
    with torch.no_grad():
        clean = log_prob(model)
        with steer(model, sae, LATENT, 1.0, unit="resid_norm"):
            by_hand = (log_prob(model) - clean).mean()
        with steer(model, sae, LATENT, 1.0, unit="resid_norm", directions=controls[1].directions[7]):
            of_control = (log_prob(model) - clean).mean()
    torch.testing.assert_close(full.effect.estimate.float(), by_hand, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(full.controls[1].effects[7].float(), of_control, rtol=1e-5, atol=1e-6)
    shown = repr(table)
    assert "random directions 5–95 %" in shown and "not chosen on a split" in shown and "12 clusters" in shown
    assert json.loads(json.dumps(table.to_dict()))["rows"][2]["controls"]["matched latents"]["n"] == 40
    frame = table.to_frame()
    assert frame["dose"].tolist() == [0.0, 0.5, 1.0]
    assert frame["effect.high"].tolist() == [row.effect.high.item() for row in table.rows]
    assert frame["controls.random directions.n"].tolist() == [30, 30, 30]


def test_rivals_are_compared_item_by_item(planted_latent):
    model, sae = planted_latent
    rivals = {
        "itself": lambda dose: steer(model, sae, LATENT, dose),
        "its direction": lambda dose: steer_direction(model, sae.W_dec[LATENT], dose, hook_point=POINT),
    }
    diff_mean = direction_control(
        sae, LATENT, torch.randn(32, generator=torch.Generator().manual_seed(0)), "DiffMean"
    )
    documents = torch.arange(12) // 2
    table = dose_response(
        model,
        sae,
        LATENT,
        [2.0],
        log_prob,
        rivals=rivals,
        controls=[diff_mean],
        documents=documents,
        n_resamples=200,
    )
    (row,) = table.rows
    assert [rival.name for rival in row.rivals] == [
        "DiffMean",
        "itself",
        "its direction",
    ] and not row.controls
    assert row.rivals[1].difference.estimate == row.rivals[1].difference.high == 0.0
    assert abs(row.rivals[2].difference.estimate) < 1e-5
    assert row.rivals[0].difference.low > 0
    assert table.clean.n_clusters == 6
    assert row.rivals[0].effect.estimate == pytest.approx(
        (row.effect.estimate - row.rivals[0].difference.estimate).item()
    )


def test_doses_are_what_the_edit_takes(planted_latent):
    model, sae = planted_latent
    clamped = dose_response(model, sae, LATENT, [3.0], log_prob, edit=clamp, n_resamples=50)
    with torch.no_grad(), clamp(model, sae, LATENT, 3.0):
        expected = log_prob(model).mean()
    torch.testing.assert_close(clamped.rows[0].score.estimate.float(), expected)
    assert (
        dose_response(model, sae, LATENT, [1.0], log_prob, edit=scale, n_resamples=50).rows[0].effect.estimate
        == 0
    )
    only_last = torch.zeros(12, 6, dtype=torch.bool).index_fill(1, torch.tensor([5]), True)
    masked = dose_response(model, sae, LATENT, [3.0], log_prob, where=only_last, n_resamples=50)
    everywhere = dose_response(model, sae, LATENT, [3.0], log_prob, n_resamples=50)
    torch.testing.assert_close(
        masked.rows[0].effect.estimate, everywhere.rows[0].effect.estimate
    )  # the last block's end


# Side effects -----------------------------------------------------------------------------------------------


def test_side_effects_are_what_their_definitions_say(planted_latent):
    model, sae = planted_latent
    mask = torch.ones_like(IDS)
    mask[:4, :2] = 0  # left-padded
    found = side_effects(
        model,
        lambda: steer(model, sae, LATENT, 0.5, unit="resid_norm"),
        NeutralText(input_ids=IDS, attention_mask=mask, batch_size_seqs=5),
        hook_point=POINT,
        n_resamples=100,
    )
    real, rows = mask[:, 1:].bool() & mask[:, :-1].bool(), torch.arange(12)[:, None].expand(12, 5)
    positions = (mask.cumsum(1) - 1).clamp_min(0)
    with torch.no_grad():
        clean, logits = (
            token_losses(model, IDS, mask),
            model(IDS, attention_mask=mask, position_ids=positions).logits,
        )
        with steer(model, sae, LATENT, 0.5, unit="resid_norm"):
            delta = token_losses(model, IDS, mask) - clean
            kl = kl_divergence(logits, model(IDS, attention_mask=mask, position_ids=positions).logits)[:, :-1]
    expected = cluster_bootstrap(delta[real], rows[real], n_resamples=100)
    torch.testing.assert_close(found.delta_ce.estimate, expected.estimate, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(found.delta_ce.low, expected.low, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(found.kl.estimate.float(), kl[real].mean(), rtol=1e-4, atol=1e-6)
    assert found.push == pytest.approx(0.5, rel=1e-4) and found.repetition is None


def test_side_effects_of_a_model_with_a_padded_vocabulary(planted_latent):
    """Three more logits of −∞ are no tokens: the same losses, and a KL that is a number."""
    model, sae = planted_latent
    latent_pushed = partial(steer, model, sae, LATENT, 0.5, unit="resid_norm")
    plain = side_effects(model, latent_pushed, NeutralText(input_ids=IDS), hook_point=POINT, n_resamples=20)
    handle = model.lm_head.register_forward_hook(
        lambda module, args, logits: torch.nn.functional.pad(logits, (0, 3), value=-torch.inf)
    )
    padded = side_effects(model, latent_pushed, NeutralText(input_ids=IDS), hook_point=POINT, n_resamples=20)
    handle.remove()
    torch.testing.assert_close(padded.kl.estimate, plain.kl.estimate, rtol=1e-5, atol=0.0)
    torch.testing.assert_close(padded.delta_ce.estimate, plain.delta_ce.estimate, rtol=1e-5, atol=1e-7)
    assert plain.kl.estimate > 0.001


def test_repetition_by_hand():
    """1 2 3 4 1 2 3 4 1: of its 4-grams 1234, 2341, 3412, 4123, 1234, 2341 two came before; 5 of 10 pairs
    differ."""
    found = repetition([[1, 2, 3, 4, 1, 2, 3, 4, 1], [5, 6, 7]])
    assert found.repeated == pytest.approx((2 / 6 + 0) / 2)
    assert found.distinct == pytest.approx(6 / 10)
    assert repetition([[], [4]]) == (0.0, 1.0)


def test_a_strong_edit_repeats_itself_and_a_dose_of_zero_does_nothing(planted_latent):
    model, sae = planted_latent
    prompts = torch.tensor([[0, 1, 70, 71], [1, 80, 81, 82]])
    neutral = NeutralText(
        input_ids=IDS,
        prompts=prompts,
        prompts_mask=(prompts != 0).long(),
        max_new_tokens=12,
        batch_size_seqs=12,
    )
    table = dose_response(
        model, sae, LATENT, [0.0, 50.0], log_prob, neutral=neutral, where="prompt", n_resamples=50
    )
    none, strong = (row.side_effects for row in table.rows)
    assert none.delta_ce.high == 0 and abs(none.kl.high) < 1e-6 and none.push == 0
    assert strong.kl.low > 0.01 and strong.push > 100  # the head's random weights are small, as is the stream
    assert strong.repetition.repeated > 0.8 and strong.repetition.distinct < 0.2  # AAAA…
    assert "repeated" in repr(table) and table.to_dict()["rows"][1]["repeated"] > 0.8


# The table --------------------------------------------------------------------------------------------------


def response(doses, effects, costs=None) -> DoseResponse:
    rows = []
    for dose, effect in zip(doses, effects):
        interval = cluster_bootstrap(torch.full((3,), float(effect)), n_resamples=10)
        side = None
        if costs is not None:
            cost = cluster_bootstrap(torch.full((3,), float(costs[len(rows)])), n_resamples=10)
            side = SideEffects(cost, cost, 0.0, None)
        rows.append(DoseRow(dose, interval, interval, side, (), ()))
    return DoseResponse((LATENT,), rows[0].score, tuple(rows), False)


def test_the_frontier_and_effects_at_equal_cost_by_hand():
    """Dose 4 costs more than dose 2 and does less; dose −1 costs as much as dose 1 and lowers the score."""
    of = response([-1, 1, 2, 4], [-1, 2, 5, 4], [0.1, 0.1, 0.3, 0.9])
    assert of.frontier == [(1, pytest.approx(0.1), 2), (2, pytest.approx(0.3), 5)]
    assert of.effect_at(0.05) == pytest.approx(1)  # half of the way from nothing to dose 1
    assert of.effect_at(0.2) == pytest.approx(3.5)
    assert of.effect_at(0.6) == pytest.approx(4.5)
    assert math.isnan(of.effect_at(1.0))
    lowers = response([-1, 1, -2], [-1, 0.5, -3], [0.1, 0.1, 0.2])
    assert lowers.frontier == [(-1, pytest.approx(0.1), -1), (-2, pytest.approx(0.2), -3)]
    assert lowers.effect_at(0.15) == pytest.approx(-2)
    with pytest.raises(ValueError, match="ΔCE above 0 nats, got 0"):
        of.effect_at(0)
    with pytest.raises(ValueError, match=r"give dose_response\(neutral=…\)"):
        response([0, 1], [0, 1]).frontier  # noqa: B018


def test_the_picture_of_costs_has_a_point_a_dose_and_the_frontier():
    ax = response([1, 2, 4], [2, 5, 4], [0.1, 0.3, 0.9]).plot(against="delta_ce")
    points, frontier, _ = ax.lines
    assert points.get_xydata().ravel().tolist() == pytest.approx([0.1, 2, 0.3, 5, 0.9, 4])
    assert frontier.get_xydata().ravel().tolist() == pytest.approx([0.1, 2, 0.3, 5])
    assert [text.get_text() for text in ax.texts] == ["1", "2", "4"]
    with pytest.raises(ValueError, match="against expected dose or delta_ce, got 'cost'"):
        response([0, 1], [0, 1]).plot(against="cost")


def test_half_of_the_effect_by_hand():
    """Effects 0, 1, 3, 4 at 0, 1, 2, 4: half of 4 is reached midway between 1 and 2."""
    assert response([0, 1, 2, 4], [0, 1, 3, 4]).half_effect_dose == 1.5
    assert response([0, -1, -2, -4, 1], [0, -1, -3, -4, 2]).half_effect_dose == -1.5
    assert response([2, 4], [3, 4]).half_effect_dose is None
    assert response([0, 1], [0, 0]).half_effect_dose is None


def test_a_dose_that_has_exactly_half_of_the_effect():
    """2 is half of 4: a dose that reaches it is the answer, the first of two that do, but not where the scan
    begins."""
    assert response([0, 1, 3], [0, 2, 4]).half_effect_dose == 1.0
    assert response([0, 1, 2, 4], [0, 2, 2, 4]).half_effect_dose == 1.0
    assert response([1, 2], [2, 4]).half_effect_dose is None


def test_monotonicity_by_hand():
    assert response([0, 1, 2, 4], [0, 1, 3, 4]).spearman == pytest.approx(1.0)
    assert response([4, 2, 1], [-4, -3, -1]).spearman == pytest.approx(-1.0)
    assert response([1, 2, 3], [1, 3, 2]).spearman == pytest.approx(0.5)
    alone = json.loads(json.dumps(response([1], [1]).to_dict(), allow_nan=False))  # JSON has no nan
    assert alone["spearman"] is None


# The split and refusals
# -----------------------------------------------------------------------------------------------


def test_a_selected_latent_is_tested_on_other_documents_only(planted_latent):
    model, sae = planted_latent
    acts, labels = torch.randn(40, 32, generator=torch.Generator().manual_seed(1)), torch.arange(40) % 2 == 0
    selection = select_latents(sae, acts, labels, torch.arange(40))
    documents = torch.arange(100)[Split().tests(torch.arange(100))][:12]
    table = dose_response(model, sae, selection, [1.0], log_prob, documents=documents, n_resamples=50)
    assert (
        table.selected
        and table.latents == tuple(selection.latents.tolist())
        and "on other documents" in repr(table)
    )
    with pytest.raises(ValueError, match="expected documents=, one an item"):
        dose_response(model, sae, selection, [1.0], log_prob)
    with pytest.raises(ValueError, match="from the selecting side"):
        dose_response(model, sae, selection, [1.0], log_prob, documents=torch.arange(12))


@pytest.mark.parametrize(
    "change, match",
    [
        ({"doses": []}, "at least one dose"),
        ({"score": lambda model: torch.tensor([1.0, torch.nan])}, "finite numbers, got nan"),
        ({"score": lambda model: torch.tensor(1.0)}, r"float\[n_items\], got \[\]"),
        ({"score": lambda model: torch.rand(int(torch.randint(2, 10**6, ())))}, r"float\[n_items=\d+\]"),
        ({"documents": torch.arange(5)}, "each of 12 items, got 5"),
        ({"unit": "max"}, "did you mean 'max_act'"),
        (
            {"latents": [1, 2], "controls": "of latent 3"},
            "directions for 2 latents.*the latents they control",
        ),
        ({"neutral": "one text"}, "n_texts ≥ 2"),
    ],
)
def test_bad_arguments_are_named(planted_latent, change, match):
    model, sae = planted_latent
    arguments = {"latents": LATENT, "doses": [1.0], "score": log_prob, "n_resamples": 20} | change
    with pytest.raises(ValueError, match=match):
        if "controls" in change:
            arguments["controls"] = [random_directions(sae, LATENT, n_draws=2)]
        if "neutral" in change:
            arguments["neutral"] = NeutralText(input_ids=IDS[:1])
        dose_response(model, sae, **arguments)
    assert not any(module._forward_hooks for module in model.modules()) and "generate" not in vars(model)
