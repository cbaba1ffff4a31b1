"""Edits at several hook points of one model, and conditions that are read at an earlier one than they act
at."""

from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import replace

import pytest
import torch
from torch import nn

from saelens_lite.analyze.edits.directions import ablate_direction, steer_direction
from saelens_lite.analyze.edits.doses import dose_response
from saelens_lite.analyze.edits.latents import ablate, clamp, replace_with_reconstruction, scale, steer
from saelens_lite.analyze.edits.neutral_text import NeutralText
from saelens_lite.analyze.edits.stream_edit import Fires
from saelens_lite.errors import HookError
from saelens_lite.lm.forward_state import position_ids_from
from saelens_lite.lm.hooks import capture, hook_points
from saelens_lite.sae.autoencoder import SparseAutoencoder
from saelens_lite.sae.config import SAEConfig

from .test_latents import (
    LATENTS,
    MODELS,
    POINT,
    TEXTS,
    WIDTH,
    generated,
    model_of,
    n_hooks,
    padded,
    sae_of,
    shared_model,
    stream,
    teacher_forced,
)

EARLY = "blocks.0.hook_resid_post"
POINTS = [EARLY, "blocks.1.hook_mlp_out", POINT]
IDS = torch.tensor([TEXTS[0]])


@pytest.fixture(autouse=True)
def _no_gradients():
    with torch.no_grad():
        yield


def early_sae():
    """Another SAE than sae_of(), which says that it was trained after block 0."""
    sae = sae_of("topk")
    sae.config = replace(sae.config, hook_point=EARLY)
    return sae


def several_places(model, **place):
    return clamp(model, sae_of(), LATENTS, [2.0, 0.0, 1.5], hook_point=POINTS, **place)


@contextmanager
def two_saes(model, **place):
    with steer(model, early_sae(), [1, 2], 1.5, **place), ablate(model, sae_of(), LATENTS, **place):
        yield


def after_an_earlier_latent(model, **place):
    return steer(model, sae_of(), LATENTS, 2.0, when=Fires(8, 0.2, sae=early_sae()), **place)


def direction_everywhere(model, **place):
    return ablate_direction(model, sae_of().W_dec[3], hook_point=hook_points(model), **place)


EDITS = [several_places, two_saes, after_an_earlier_latent, direction_everywhere]


# What they do -------------------------------------------------------------------------------------


@pytest.mark.property_check(3)
@pytest.mark.parametrize("name", MODELS)
def test_what_changes_nothing_at_several_places_changes_no_bit(name):
    model, sae = model_of(name), sae_of()
    sae.W_enc[:, 11] = 0.0
    sae.b_enc[11] = -100.0  # latent 11 never fires
    ids, mask = padded(TEXTS, "right")
    clean = model(ids, attention_mask=mask).logits
    for context in (
        scale(model, sae, LATENTS, 1.0, hook_point=POINTS),
        ablate(model, sae, 11, hook_point=POINTS),
        steer(model, sae, LATENTS, 0.0, unit="resid_norm", hook_point=POINTS),
        steer(model, sae, LATENTS, 2.0, when=Fires(11, sae=sae, hook_point=EARLY)),
        steer_direction(model, sae.W_dec[3], 0.0, hook_point=hook_points(model)),
        replace_with_reconstruction(model, sae, where=torch.zeros(3, 6, dtype=torch.bool), hook_point=POINTS),
    ):
        with (
            context,
            scale(model, early_sae(), [4, 5], 1.0),
            ablate(model, sae, 11, hook_point="blocks.2.hook_attn_out"),
        ):
            assert torch.equal(model(ids, attention_mask=mask).logits, clean)
    with steer(model, sae, LATENTS, 2.0, when=Fires(3, sae=sae, hook_point=EARLY)):
        assert not torch.equal(model(ids, attention_mask=mask).logits, clean)


@pytest.mark.property_check(6)
@pytest.mark.parametrize("name", MODELS)
def test_ablate_is_clamp_to_zero_is_scale_by_zero_at_several_places(name):
    model, sae = model_of(name), sae_of()
    with ablate(model, sae, LATENTS, hook_point=POINTS):
        ablated = model(IDS).logits
    with clamp(model, sae, LATENTS, 0.0, hook_point=POINTS):
        assert torch.equal(model(IDS).logits, ablated)
    with scale(model, sae, LATENTS, 0.0, hook_point=POINTS):
        assert torch.equal(model(IDS).logits, ablated)
    with ablate(model, sae, LATENTS, hook_point=POINTS[:2]):
        assert not torch.equal(model(IDS).logits, ablated)


@pytest.mark.property_check(3)
@pytest.mark.parametrize("name", MODELS)
def test_several_places_are_the_nested_contexts_of_each(name):
    model, sae = model_of(name), sae_of()
    with several_places(model):
        together = model(IDS).logits
    with ExitStack() as stack:
        for point in POINTS:
            stack.enter_context(clamp(model, sae, LATENTS, [2.0, 0.0, 1.5], hook_point=point))
        assert torch.equal(model(IDS).logits, together)


def test_a_direction_taken_out_everywhere_is_nowhere():
    """Residual stream and what blocks add: after ablation at all hook points nothing lies along the
    direction."""
    model, sae = model_of("llama"), sae_of()
    direction = nn.functional.normalize(sae.W_dec[3], dim=0)
    points = hook_points(model)
    with capture(model, points) as clean:
        model(IDS)
    assert all((clean[point] @ direction).abs().max() > 0.01 for point in points)
    with ablate_direction(model, direction, skip_ids=(), hook_point=points), capture(model, points) as found:
        model(IDS)
    assert all((found[point] @ direction).abs().max() < 1e-5 for point in points)


# Conditions ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", MODELS)
def test_a_latent_at_an_earlier_hook_point_says_where(name):
    model, sae, early = model_of(name), sae_of(), early_sae()
    with capture(model, [EARLY]) as found:
        acts = stream(model, IDS)
    fires = early.encode_dense(found[EARLY])[0] > 0.2
    latent = int(((fires.sum(0) > 0) & (fires.sum(0) < len(fires))).nonzero()[0])
    for edit in (
        steer(model, sae, LATENTS, 2.0, when=Fires(latent, 0.2, sae=early), skip_ids=()),
        steer_direction(
            model, sae.W_dec[3], 1.0, hook_point=POINT, when=Fires(latent, 0.2, early), skip_ids=()
        ),
    ):
        assert torch.equal((stream(model, IDS, edit) != acts).any(-1)[0], fires[:, latent])


def test_a_module_path_is_a_place_too():
    model, sae, early = model_of("llama"), sae_of(), early_sae()
    edited = [
        stream(model, IDS, steer(model, sae, LATENTS, 2.0, hook_point=at, when=Fires(8, 0.2, early, place)))
        for at, place in ((POINT, EARLY), (POINT, "model.layers.0"), ("model.layers.1", EARLY))
    ]
    assert torch.equal(edited[0], edited[1]) and torch.equal(edited[0], edited[2])
    assert not torch.equal(edited[0], stream(model, IDS))


def test_the_same_sae_can_be_asked_elsewhere():
    model, sae = model_of("llama"), sae_of()
    with capture(model, [EARLY]) as found:
        acts = stream(model, IDS)
    fires = sae.encode_dense(found[EARLY])[0, :, 5] > 0.1
    here = sae.encode_dense(acts)[0, :, 5] > 0.1
    assert fires.any() and not torch.equal(fires, here)
    edit = steer(model, sae, LATENTS, 2.0, when=Fires(5, 0.1, hook_point=EARLY), skip_ids=())
    assert torch.equal((stream(model, IDS, edit) != acts).any(-1)[0], fires)


def test_a_condition_sees_what_contexts_entered_before_left():
    model, sae, early = model_of("llama"), sae_of(), early_sae()

    def after():
        return steer(model, sae, LATENTS, 2.0, when=Fires(8, 0.2, sae=early), skip_ids=())

    def before():
        return steer(model, early, [1, 2], 3.0, skip_ids=())

    fires, clean = [], []
    for context in (nullcontext(), before()):
        with context, capture(model, [EARLY]) as found:
            clean.append(stream(model, IDS))
        fires.append(early.encode_dense(found[EARLY])[0, :, 8] > 0.2)
    assert fires[0].any() and not torch.equal(fires[0], fires[1])
    with before():
        assert torch.equal((stream(model, IDS, after()) != clean[1]).any(-1)[0], fires[1])
    with after():  # entered first, it reads what it finds
        assert torch.equal((stream(model, IDS, before()) != clean[1]).any(-1)[0], fires[0])


@pytest.mark.parametrize(
    "place", ["blocks.2.hook_resid_pre", "blocks.1.hook_resid_post", "blocks.2.hook_attn_out"]
)
def test_a_later_hook_point_is_refused_on_entering(place):
    model, sae = model_of("llama"), sae_of()
    when = Fires(3, sae=sae, hook_point=place)
    with pytest.raises(ValueError, match=f"reaches before blocks.1.hook_mlp_out, got {place}"):
        with steer(model, sae, LATENTS, 2.0, hook_point="blocks.1.hook_mlp_out", when=when):
            pass
    assert n_hooks(model) == 0


def test_where_only_the_forward_can_tell_it_refuses_a_later_module():
    model, sae = model_of("llama"), sae_of()
    with pytest.raises(HookError, match="reaches before blocks.1.hook_resid_post, got model.layers.2"):
        with steer(model, sae, LATENTS, 2.0, when=Fires(3, hook_point="model.layers.2")):
            model(IDS)
    assert n_hooks(model) == 0


def test_what_an_earlier_pass_read_is_not_taken_for_this_ones():
    model, sae = model_of("llama"), sae_of()
    with steer(model, sae, LATENTS, 2.0, when=Fires(3, hook_point=EARLY)):
        model(IDS, use_cache=False)
        model.model.layers = model.model.layers[1:]  # a pass that leaves out the block
        with pytest.raises(HookError, match="reaches before"):
            model(IDS, use_cache=False)


def test_bad_places_are_named():
    model, sae = model_of("llama"), sae_of()
    other = SparseAutoencoder(SAEConfig(d_model=12, d_sae=24, k=2, model_name="gpt2", hook_point=EARLY))
    for context, match in (
        (ablate(model, sae, 3, hook_point=[POINT, POINT]), "each place once"),
        (
            ablate(model, other, 3, hook_point=[EARLY, POINT]),
            "does not fit blocks.0.hook_resid_post of .*: expected one of d_model=16",
        ),
        (
            ablate(model, sae, 3, when=Fires(3, sae=other)),
            "d_model=16, got one of d_model=12, trained on gpt2 at blocks.0",
        ),
        (steer_direction(model, torch.ones(WIDTH), 1.0, hook_point=[]), "pass hook_point="),
        (ablate_direction(model, torch.ones(5), hook_point=POINTS), "d_model=16.*got \\[5\\]"),
        (ablate(model, sae, 3, when=Fires(24, sae=early_sae())), "indices from 0 to 23, got \\[24\\]"),
    ):
        with pytest.raises(ValueError, match=match), context:
            pass
    with (
        pytest.raises(HookError, match="no hook point"),
        ablate(model, sae, 3, hook_point=[POINT, "blocks.9.hook_resid_post"]),
    ):
        pass
    assert n_hooks(model) == 0 and "generate" not in vars(model)


# One result for all ways of running
# -------------------------------------------------------------------------------------


@pytest.mark.long
@pytest.mark.property_check(5)
@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("edit", EDITS)
def test_a_forward_is_the_same_single_left_and_right_padded(edit, name):
    model, spans = shared_model(name), [2, 1, 3]
    for where, prompts in (("all", None), ("generated", spans)):
        alone = []
        for text, prompt in zip(TEXTS, spans):
            with edit(model, where=where, prompt_tokens=prompts and prompt):
                alone.append(model(torch.tensor([text])).logits[0])
        for side in ("left", "right"):
            ids, mask = padded(TEXTS, side)
            positions = {"position_ids": position_ids_from(mask)} if side == "left" else {}
            with edit(model, where=where, prompt_tokens=prompts):
                logits = model(ids, attention_mask=mask, **positions).logits
            for row, expected in enumerate(alone):
                torch.testing.assert_close(logits[row][mask[row].bool()], expected, rtol=1e-4, atol=1e-4)


@pytest.mark.long
@pytest.mark.property_check(5)
@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("edit", EDITS)
def test_generate_is_the_same_cached_uncached_and_single(edit, name):
    model = shared_model(name)
    clean, _ = generated(model, TEXTS, capture(model, []))
    for where in ("all", "prompt", "generated"):
        tokens, logits = generated(model, TEXTS, edit(model, where=where), use_cache=True)
        plain_tokens, plain_logits = generated(model, TEXTS, edit(model, where=where), use_cache=False)
        assert plain_tokens == tokens
        single, _ = generated(model, TEXTS[1:2], edit(model, where=where))
        assert single == tokens[1:2]
        for row, text in enumerate(TEXTS):
            reference = teacher_forced(
                model, text, tokens[row], edit(model, where=where, prompt_tokens=len(text))
            )
            torch.testing.assert_close(logits[row], reference, rtol=1e-4, atol=1e-4)
            torch.testing.assert_close(plain_logits[row], reference, rtol=1e-4, atol=1e-4)
        if where == "generated":
            assert [row[0] for row in tokens] == [row[0] for row in clean]
    assert n_hooks(model) == 0 and "generate" not in vars(model)


@pytest.mark.long
@pytest.mark.property_check(3)
@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("edit", EDITS)
def test_nothing_is_left_after_an_exception(edit, name):
    model = model_of(name)
    clean = model(IDS).logits
    with pytest.raises(KeyError), edit(model), edit(model):
        raise KeyError
    with pytest.raises(IndexError), edit(model):
        model(torch.tensor([[1, 999]]))
    assert n_hooks(model) == 0 and "generate" not in vars(model)
    assert torch.equal(model(IDS).logits, clean)


def test_dose_response_over_several_places_and_under_an_earlier_condition():
    model, sae = model_of("llama"), sae_of()
    neutral = NeutralText(input_ids=torch.arange(3, 15).view(2, 6))
    how = {"when": Fires(8, 0.2, sae=early_sae()), "hook_point": ["blocks.1.hook_mlp_out", POINT]}

    def score(model):
        return model(IDS).logits[0, 1:, 7]

    table = dose_response(model, sae, LATENTS, [0.0, 2.0], score, n_resamples=50, neutral=neutral, **how)
    none, some = table.rows
    assert none.effect.estimate == 0 and none.side_effects.push == 0 and some.side_effects.push > 0
    with steer(model, sae, LATENTS, 2.0, **how):
        torch.testing.assert_close(some.score.estimate.float(), score(model).mean())


class TwoStreams(nn.Module):
    """A block whose stream is twice as wide as the model; it adds to the first half."""

    def __init__(self, block):
        super().__init__()
        self.block = block

    def forward(self, stream, *args, **kwargs):
        first, second = stream.chunk(2, dim=-1)
        return torch.cat([self.block(first, *args, **kwargs), second + first], dim=-1)


def test_the_width_of_a_place_is_that_of_what_passes_there(gpt2):
    blocks, final = gpt2.transformer.h, gpt2.transformer.ln_f
    for i in range(2):
        blocks[i] = TwoStreams(blocks[i])
    blocks[0].register_forward_pre_hook(lambda module, args: (torch.cat([args[0]] * 2, dim=-1), *args[1:]))
    final.register_forward_pre_hook(lambda module, args: (args[0].chunk(2, dim=-1)[0] + args[0][..., 32:],))
    vector, point = torch.linspace(-1, 2, 64), "blocks.0.hook_resid_post"
    sae = SparseAutoencoder(SAEConfig(d_model=64, d_sae=8, kind="relu", hook_point=point))
    sae.W_enc.data.normal_(generator=torch.Generator().manual_seed(0))
    sae.W_dec.data[3] = vector
    by_hand = blocks[0].register_forward_hook(lambda module, args, stream: stream + 2 * vector)
    expected = gpt2(IDS).logits
    by_hand.remove()
    clean = gpt2(IDS).logits
    for context in (
        steer_direction(gpt2, vector, 2.0, hook_point=point, skip_ids=()),
        steer(gpt2, sae, [3], 2.0, skip_ids=()),
        steer_direction(gpt2, vector, 2.0, hook_point="transformer.h.0", skip_ids=()),
    ):
        with context:
            torch.testing.assert_close(gpt2(IDS).logits, expected)
    assert not torch.allclose(clean, expected)
    for place, width in ((point, 64), ("blocks.1.hook_resid_pre", 64), ("transformer.h.1.block.mlp", 32)):
        with (
            pytest.raises(ValueError, match=rf"expected float\[d_model={width}\], got \[48\]"),
            steer_direction(gpt2, torch.ones(48), 1.0, hook_point=place),
        ):
            pass
    narrow = SparseAutoencoder(SAEConfig(d_model=32, d_sae=8, k=2))
    with pytest.raises(ValueError, match="expected one of d_model=64, got one of d_model=32"):
        ablate(gpt2, narrow, [1], hook_point=point).__enter__()
