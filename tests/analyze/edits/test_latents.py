"""Edits of latents: the arithmetic by hand, then the same result however the text is batched, padded, cached
or cut up."""

import copy
import functools

import pytest
import torch
import transformers
from torch import Tensor, nn

from saelens_lite.analyze.edits.directions import ablate_direction, steer_direction
from saelens_lite.analyze.edits.latents import ablate, clamp, replace_with_reconstruction, scale, steer
from saelens_lite.analyze.edits.stream_edit import Fires
from saelens_lite.analyze.latents.moments import latent_stats
from saelens_lite.errors import HookError
from saelens_lite.hashing import hashed_uniform
from saelens_lite.lm.forward_state import position_ids_from
from saelens_lite.lm.hooks import capture, edit
from saelens_lite.lm.positions import span_mask
from saelens_lite.sae.autoencoder import SparseAutoencoder
from saelens_lite.sae.config import SAEConfig
from saelens_lite.store.reader import ActivationStore

from ..conftest import COMMON, HEADS, shape

WIDTH, LATENTS = 16, [3, 20, 7]
POINT = "blocks.1.hook_resid_post"
SHAPE = shape(WIDTH)
MODELS = {
    "gpt2": (
        "GPT2LMHeadModel",
        "GPT2Config",
        COMMON | {"n_embd": WIDTH, "n_layer": 3, "n_head": 2, "n_positions": 32},
    ),
    "llama": ("LlamaForCausalLM", "LlamaConfig", SHAPE | HEADS),
    "neox": ("GPTNeoXForCausalLM", "GPTNeoXConfig", SHAPE),
    "gemma3": (
        "Gemma3ForCausalLM",
        "Gemma3TextConfig",
        SHAPE | HEADS | {"sliding_window": 4},
    ),  # shorter than the texts
    "qwen3": ("Qwen3ForCausalLM", "Qwen3Config", SHAPE | HEADS),
}
MEAN = torch.linspace(0.1, 2.0, 24)
REFERENCE = torch.linspace(-2, 2, 5 * WIDTH).sin().view(5, WIDTH)  # activations of five other tokens


def splice_mode(model, sae, latents, **place):
    return replace_with_reconstruction(model, sae, **place)


def ablate_directions(model, sae, latents, **place):
    return ablate_direction(model, sae.W_dec[latents], hook_point=POINT, **place)


def steer_along(model, sae, latents, **place):
    return steer_direction(
        model, sae.W_dec[latents].sum(0), 0.4, unit="resid_norm", hook_point=POINT, **place
    )


MODES = {
    "ablate to zero": (ablate, {}),
    "ablate to the mean": (ablate, {"value": "mean", "mean": MEAN}),
    "ablate to other tokens": (ablate, {"value": "resample", "reference": REFERENCE}),
    "clamp": (clamp, {"value": [2.0, 0.0, 1.5]}),
    "clamp from below": (clamp, {"value": 1.0, "bound": "min"}),
    "clamp from above by resid_norm": (clamp, {"value": 0.05, "bound": "max", "unit": "resid_norm"}),
    "scale": (scale, {"factor": 3.0}),
    "steer": (steer, {"strength": [1.0, 2.0, -1.0]}),
    "steer by max_act": (steer, {"strength": 0.5, "unit": "max_act", "max_act": 2 * MEAN}),
    "steer by resid_norm": (steer, {"strength": 0.4, "unit": "resid_norm"}),
    "steer where 5 fires": (steer, {"strength": [1.0, 2.0, -1.0], "when": Fires(5, 0.1)}),
    "splice": (splice_mode, {}),
    "ablate directions": (ablate_directions, {}),
    "steer along a direction": (steer_along, {}),
}
CLASSIC = ("ablate to zero", "clamp", "scale", "steer")  # on every model in `generate`; the others on two
TEXTS = [[1, 5, 9, 33, 7, 12], [1, 8, 4], [1, 21, 21, 30, 6]]
NEW = 4


@pytest.fixture(autouse=True)
def _no_gradients():
    with torch.no_grad():
        yield


@functools.cache
def shared_model(name: str) -> nn.Module:
    """What `model_of` copies; shared by the tests of a process, so leave it as it is."""
    model_class, config_class, arguments = MODELS[name]
    torch.manual_seed(0)
    model = getattr(transformers, model_class)(getattr(transformers, config_class)(**arguments)).eval()
    for parameter in model.parameters():
        if parameter.ndim > 1:
            nn.init.normal_(parameter, std=0.3)
    return model


def model_of(name: str) -> nn.Module:
    return copy.deepcopy(shared_model(name))


def sae_of(kind: str = "relu", normalize: str = "none") -> SparseAutoencoder:
    torch.manual_seed(1)
    k = 6 if kind == "topk" else None
    sae = SparseAutoencoder(
        SAEConfig(d_model=WIDTH, d_sae=24, kind=kind, k=k, normalize_activations=normalize, hook_point=POINT)
    )
    for parameter in sae.parameters():
        nn.init.normal_(parameter, std=0.3)
    if kind == "jumprelu":
        sae.threshold.abs_()
    return sae


def start(mode: str, model: nn.Module, sae: SparseAutoencoder, where="all", latents=LATENTS, **place):
    function, arguments = MODES[mode]
    return function(model, sae, latents, where=where, **arguments, **place)


def padded(texts: list[list[int]], side: str) -> tuple[Tensor, Tensor]:
    width = max(len(text) for text in texts)
    ids, mask = (
        torch.zeros(len(texts), width, dtype=torch.long),
        torch.zeros(len(texts), width, dtype=torch.long),
    )
    for row, text in enumerate(texts):
        place = slice(width - len(text), width) if side == "left" else slice(len(text))
        ids[row, place], mask[row, place] = torch.tensor(text), 1
    return ids, mask


def stream(model: nn.Module, ids: Tensor, context=None) -> Tensor:
    """The stream that the next block receives."""
    if context is None:
        with capture(model, ["blocks.2.hook_resid_pre"]) as found:
            model(ids)
    else:
        with context, capture(model, ["blocks.2.hook_resid_pre"]) as found:
            model(ids)
    return found["blocks.2.hook_resid_pre"]


def n_hooks(model: nn.Module) -> int:
    return sum(len(module._forward_hooks) + len(module._forward_pre_hooks) for module in model.modules())


# What is added ------------------------------------------------------------------------------------


@pytest.mark.parametrize("normalize", ["none", "layer_norm", "constant_norm_rescale"])
@pytest.mark.parametrize("kind", ["relu", "topk", "jumprelu", "gated"])
@pytest.mark.parametrize("mode", MODES)
def test_each_mode_adds_what_its_definition_says(mode, kind, normalize):
    model, sae = shared_model("llama"), sae_of(kind, normalize)
    ids = torch.tensor([TEXTS[0]])
    acts = stream(model, ids)
    z = sae.encode_dense(acts)  # the reference computes every latent
    row_scale = sae.normalize(acts)[1]
    row_scale = torch.ones(1) if row_scale is None else row_scale
    unit = nn.functional.normalize(sae.W_dec, dim=-1)
    new = z.clone()
    if mode == "ablate to zero":
        new[..., LATENTS] = 0.0
    elif mode == "ablate to the mean":
        new[..., LATENTS] = MEAN[LATENTS]
    elif mode == "ablate to other tokens":
        new[..., LATENTS] = sae.encode_dense(REFERENCE)[drawn_tokens(ids)][..., LATENTS]
    elif mode == "clamp":
        new[..., LATENTS] = torch.tensor([2.0, 0.0, 1.5])
    elif mode == "clamp from below":
        new[..., LATENTS] = z[..., LATENTS].clamp(min=1.0)
    elif mode == "clamp from above by resid_norm":
        largest = 0.05 * acts.norm(dim=-1, keepdim=True) / (sae.W_dec[LATENTS].norm(dim=-1) * row_scale)
        new[..., LATENTS] = z[..., LATENTS].minimum(largest)
    elif mode == "scale":
        new[..., LATENTS] = 3.0 * z[..., LATENTS]
    elif mode == "steer":
        new[..., LATENTS] = z[..., LATENTS] + torch.tensor([1.0, 2.0, -1.0])
    elif mode == "steer by max_act":
        new[..., LATENTS] = z[..., LATENTS] + 0.5 * 2 * MEAN[LATENTS]
    elif mode == "steer where 5 fires":
        new[..., LATENTS] = z[..., LATENTS] + torch.tensor([1.0, 2.0, -1.0]) * (z[..., 5:6] > 0.1)
    added = (new - z) @ sae.W_dec * row_scale
    if mode == "steer by resid_norm":
        added = 0.4 * acts.norm(dim=-1, keepdim=True) * unit[LATENTS].sum(0)
    elif mode == "splice":
        added = sae(acts).recons - acts
    elif mode == "ablate directions":
        basis = sae.W_dec[LATENTS].T
        added = -acts @ basis @ torch.linalg.inv(basis.T @ basis) @ basis.T
    elif mode == "steer along a direction":
        added = (
            0.4 * acts.norm(dim=-1, keepdim=True) * nn.functional.normalize(sae.W_dec[LATENTS].sum(0), dim=0)
        )
    edited = stream(model, ids, start(mode, model, sae, skip_ids=()))
    torch.testing.assert_close(edited, acts + added, rtol=1e-4, atol=1e-5)
    assert (edited - acts).abs().max() > 0.01  # it is an edit

    without_bos = stream(model, ids, start(mode, model, sae))
    assert torch.equal(without_bos[:, 0], acts[:, 0])  # by default BOS is left alone
    torch.testing.assert_close(without_bos[:, 1:], edited[:, 1:])
    assert n_hooks(model) == 0


def drawn_tokens(ids: Tensor) -> Tensor:
    """Which of the five tokens each of a text's is given: splitmix64 of 2^32 index + id, and of the seed
    before."""
    keys = torch.arange(ids.shape[1]) * 2**32 + ids
    return torch.from_numpy((hashed_uniform(keys.numpy(), 0) * 5).astype("int64"))


@pytest.mark.property_check(6)
@pytest.mark.parametrize("kind", ["relu", "jumprelu"])
def test_a_clamped_latent_has_its_value_on_encoding_again(kind):
    """With orthonormal directions used on both sides, latent i reads back exactly what was written on
    direction i."""
    model, sae = model_of("llama"), sae_of(kind)
    sae.W_dec.copy_(torch.eye(24)[:, :WIDTH])
    sae.W_enc.copy_(sae.W_dec.T)
    sae.b_dec.zero_(), sae.b_enc.zero_()
    edited = stream(model, torch.tensor([TEXTS[0]]), clamp(model, sae, [3, 7], [2.0, 1.5], skip_ids=()))
    # a pre-activation below zero is not seen by z, so it stays in the error: only firing latents read back
    # exactly
    acts = stream(model, torch.tensor([TEXTS[0]]))
    fires = sae.encode_dense(acts)[..., [3, 7]] > 0
    assert fires.any()
    expected = torch.tensor([2.0, 1.5]).expand_as(fires)[fires]
    torch.testing.assert_close(sae.encode_dense(edited)[..., [3, 7]][fires], expected)


@pytest.mark.property_check(6)
def test_ablate_is_clamp_to_zero_is_scale_by_zero():
    model, sae = model_of("llama"), sae_of()
    ids = torch.tensor([TEXTS[0]])
    with ablate(model, sae, LATENTS):
        ablated = model(ids).logits
    with clamp(model, sae, LATENTS, 0.0):
        assert torch.equal(model(ids).logits, ablated)
    with scale(model, sae, LATENTS, 0.0):
        assert torch.equal(model(ids).logits, ablated)
    assert not torch.equal(model(ids).logits, ablated)


@pytest.mark.long
@pytest.mark.property_check(3)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", ["relu", "topk"])
@pytest.mark.parametrize("name", MODELS)
def test_an_edit_that_changes_nothing_changes_no_bit(name, kind, dtype):
    model, sae = model_of(name).to(dtype), sae_of(kind)
    sae.W_enc[:, 11] = 0.0
    sae.b_enc[11] = -100.0  # latent 11 never fires
    ids, mask = padded(TEXTS, "right")
    clean = model(ids, attention_mask=mask).logits
    contexts = [
        scale(model, sae, LATENTS, 1.0),
        ablate(model, sae, 11),
        clamp(model, sae, 11, 0.0),
        scale(model, sae, 11, 5.0),
        steer(model, sae, LATENTS, 0.0),
        steer(model, sae, LATENTS, 0.0, unit="resid_norm"),
        clamp(model, sae, LATENTS, 0.0, bound="min"),
        clamp(model, sae, 11, 5.0, bound="max"),
        ablate(model, sae, 11, value="resample", reference=REFERENCE),
        steer(model, sae, LATENTS, 2.0, when=Fires(11)),
        steer_direction(model, sae.W_dec[3], 0.0, hook_point=POINT),
        replace_with_reconstruction(model, sae, where=torch.zeros(3, 6, dtype=torch.bool)),
        ablate(model, sae, LATENTS, where=torch.zeros(3, 6, dtype=torch.bool)),
        ablate(model, sae, LATENTS, where="generated", prompt_tokens=6),
        ablate(model, sae, LATENTS, skip_ids=range(40)),
    ]
    for context in contexts:
        with context:
            assert torch.equal(model(ids, attention_mask=mask).logits, clean)
    with ablate(model, sae, LATENTS):
        assert not torch.equal(model(ids, attention_mask=mask).logits, clean)


def test_minus_zero_in_the_stream_keeps_its_sign():
    model, sae = model_of("llama"), sae_of()
    ids = torch.tensor([TEXTS[0]])
    with edit(model, POINT, lambda acts, info: torch.full_like(acts, -0.0)):
        edited = stream(model, ids, scale(model, sae, LATENTS, 1.0))
    assert edited.signbit().all()


@pytest.mark.property_check(3)
def test_nested_edits_act_on_what_the_one_before_left():
    model, sae = model_of("llama"), sae_of()
    ids = torch.tensor([TEXTS[0]])
    once = stream(model, ids, steer(model, sae, 3, 2.0))
    z = sae.encode_dense(once)[..., 7:8]
    with steer(model, sae, 3, 2.0):
        twice = stream(model, ids, ablate(model, sae, 7))
    torch.testing.assert_close(twice[:, 1:], (once - z * sae.W_dec[7])[:, 1:], rtol=1e-4, atol=1e-5)
    with steer(model, sae, 3, 2.0):
        both = stream(model, ids, steer(model, sae, 3, -2.0))
    torch.testing.assert_close(both, stream(model, ids), rtol=1e-4, atol=1e-5)


def test_edits_at_two_hook_points_act_at_both():
    model, sae = model_of("llama"), sae_of()
    ids, first = torch.tensor([TEXTS[0]]), "blocks.0.hook_resid_post"
    with steer(model, sae, 3, 2.0, hook_point=first):
        once = stream(model, ids)
    with ablate(model, sae, LATENTS), steer(model, sae, 3, 2.0, hook_point=first):
        both = stream(model, ids)
    z = sae.encode_dense(once)[..., LATENTS]
    torch.testing.assert_close(both[:, 1:], (once - z @ sae.W_dec[LATENTS])[:, 1:], rtol=1e-4, atol=1e-5)


def test_a_change_along_other_directions_is_as_long_and_at_the_same_tokens():
    model, sae = model_of("llama"), sae_of()
    sae.W_dec.copy_(nn.functional.normalize(sae.W_dec, dim=-1))
    ids, others = torch.tensor([TEXTS[0]]), sae.W_dec[[9]]
    acts = stream(model, ids)
    own = stream(model, ids, ablate(model, sae, 3)) - acts
    along = stream(model, ids, ablate(model, sae, 3, directions=others)) - acts
    assert (own.norm(dim=-1) > 0).any() and not torch.allclose(own, along)
    torch.testing.assert_close(along.norm(dim=-1), own.norm(dim=-1), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(along, (own @ sae.W_dec[3])[..., None] * others[0], rtol=1e-4, atol=1e-5)


def test_a_condition_on_the_latent_of_another_sae():
    model, sae = model_of("llama"), sae_of()
    ids, other = torch.tensor([TEXTS[0]]), sae_of("topk")
    acts = stream(model, ids)
    fires = other.encode_dense(acts)[0, :, 8] > 0.2
    assert 0 < fires.sum() < len(fires)
    context = steer_direction(
        model, sae.W_dec[3], 1.0, hook_point=POINT, when=Fires(8, 0.2, other), skip_ids=()
    )
    assert torch.equal((stream(model, ids, context) != acts).any(-1)[0], fires)


def test_other_tokens_are_drawn_evenly_and_anew_by_the_seed():
    model, sae = model_of("llama"), sae_of()
    sae.W_dec.copy_(torch.eye(24)[:, :WIDTH]), sae.W_enc.copy_(sae.W_dec.T)
    sae.b_dec.zero_(), sae.b_enc.zero_()
    ids, pool = (
        torch.tensor([[1] + list(range(3, 33)) * 1]),
        torch.arange(1.0, 6.0)[:, None] * torch.ones(WIDTH),
    )
    found = []
    for seed in range(20):
        context = ablate(model, sae, 3, value="resample", reference=pool, seed=seed)
        acts, edited = stream(model, ids), stream(model, ids, context)
        found.append(
            (edited - acts + sae.encode_dense(acts)[..., :WIDTH])[0, 1:, 3]
        )  # the value it was set to
    values = torch.stack(found).round()
    torch.testing.assert_close(torch.stack(found), values, rtol=0, atol=1e-4)
    counts = torch.bincount(values.long().flatten(), minlength=6)[1:]
    assert (counts - 120).abs().max() < 4 * (
        600 * 0.2 * 0.8
    ) ** 0.5  # four standard deviations of a fair draw
    assert not torch.equal(values[0], values[1])


# One result for all ways of running
# -----------------------------------------------------------------------------------


@pytest.mark.long
@pytest.mark.property_check(5)
@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("mode", MODES)
def test_a_forward_is_the_same_batched_single_left_and_right_padded(mode, name):
    model, sae = shared_model(name), sae_of()
    spans = [2, 1, 3]
    for where, prompts in (("all", None), ("prompt", spans), ("generated", spans)):
        alone = []
        for text, prompt in zip(TEXTS, spans):
            with start(mode, model, sae, where, prompt_tokens=prompt if prompts else None):
                alone.append(model(torch.tensor([text])).logits[0])
        for side in ("left", "right"):
            ids, mask = padded(TEXTS, side)
            positions = {"position_ids": position_ids_from(mask)} if side == "left" and name != "opt" else {}
            with start(mode, model, sae, where, prompt_tokens=prompts):
                logits = model(ids, attention_mask=mask, **positions).logits
            for row, expected in enumerate(alone):
                torch.testing.assert_close(logits[row][mask[row].bool()], expected, rtol=1e-4, atol=1e-4)
    assert n_hooks(model) == 0


def generated(model, texts, context, **options) -> tuple[list[list[int]], list[Tensor]]:
    """New tokens of each text, and the logits they were chosen by."""
    ids, mask = padded(texts, "left")
    settings = {
        "do_sample": False,
        "max_new_tokens": NEW,
        "min_new_tokens": NEW,
        "output_logits": True,
        **options,
    }
    with context:
        result = model.generate(ids, attention_mask=mask, return_dict_in_generate=True, **settings)
    return result.sequences[:, ids.shape[1] :].tolist(), list(torch.stack(result.logits, dim=1))


def teacher_forced(model, text, new, context) -> Tensor:
    with context:
        return model(torch.tensor([text + new])).logits[0, len(text) - 1 : -1]


@pytest.mark.long
@pytest.mark.property_check(5)
@pytest.mark.parametrize(
    "mode, name", [(m, n) for m in MODES for n in MODELS if m in CLASSIC or n in ("llama", "gemma3")]
)
def test_generate_is_the_same_cached_uncached_batched_and_single(mode, name):
    model, sae = shared_model(name), sae_of("topk" if mode == "clamp" else "relu")
    clean, _ = generated(model, TEXTS, capture(model, []))
    for where in ("all", "prompt", "generated"):
        tokens, logits = generated(model, TEXTS, start(mode, model, sae, where), use_cache=True)
        plain_tokens, plain_logits = generated(model, TEXTS, start(mode, model, sae, where), use_cache=False)
        assert plain_tokens == tokens
        single_tokens, single_logits = generated(model, TEXTS[1:2], start(mode, model, sae, where))
        assert single_tokens == tokens[1:2]
        for row, text in enumerate(TEXTS):
            place = start(mode, model, sae, where, prompt_tokens=len(text))
            reference = teacher_forced(model, text, tokens[row], place)
            torch.testing.assert_close(logits[row], reference, rtol=1e-4, atol=1e-4)
            torch.testing.assert_close(plain_logits[row], reference, rtol=1e-4, atol=1e-4)
            if row == 1:  # that with the most padding
                torch.testing.assert_close(single_logits[0], reference, rtol=1e-4, atol=1e-4)
        if where == "generated":
            assert [row[0] for row in tokens] == [row[0] for row in clean]  # chosen by the untouched prompt
    assert n_hooks(model) == 0 and "generate" not in vars(model)


@pytest.mark.property_check(5)
@pytest.mark.parametrize("use_cache", [True, False])
@pytest.mark.parametrize("name", MODELS)
def test_an_edit_of_the_prompt_touches_no_generated_step(name, use_cache):
    """Whether steps run alone or, without a cache, with all of the text: of each token, the stream before and
    after."""
    model, sae = model_of(name), sae_of()
    before, touched = [], []

    def compare(acts, info):
        columns = info.columns.expand(acts.shape[:2])
        touched.append(torch.stack([columns, (acts != before.pop()).any(-1).long()], -1).flatten(0, 1))
        return acts

    ids, mask = padded(TEXTS, "left")
    with edit(model, POINT, lambda acts, info: before.append(acts) or acts):
        with steer(model, sae, LATENTS, 2.0, where="prompt"), edit(model, POINT, compare):
            model.generate(
                ids, attention_mask=mask, max_new_tokens=NEW, min_new_tokens=NEW, use_cache=use_cache
            )
    columns, changed = torch.cat(touched).unbind(-1)
    assert changed[columns < ids.shape[1]].any()
    assert (columns >= ids.shape[1]).any() and not changed[columns >= ids.shape[1]].any()


@pytest.mark.parametrize("where", ["all", "prompt", "generated"])
def test_a_prefill_in_chunks_is_still_the_prompt(where):
    model, sae = model_of("llama"), sae_of()
    whole = generated(model, TEXTS[:1], steer(model, sae, LATENTS, 2.0, where=where))
    lengths = []
    with edit(model, POINT, lambda acts, info: lengths.append(acts.shape[1]) or acts):
        chunks = generated(
            model, TEXTS[:1], steer(model, sae, LATENTS, 2.0, where=where), prefill_chunk_size=1
        )
    assert lengths == [1] * (len(TEXTS[0]) + NEW - 1)  # no pass tells by its length what it holds
    assert chunks[0] == whole[0]
    torch.testing.assert_close(chunks[1][0], whole[1][0], rtol=1e-4, atol=1e-4)


@pytest.mark.property_check(5)
@pytest.mark.parametrize("where", ["prompt", "generated"])
def test_a_prompt_of_one_token_is_a_prompt(where):
    model, sae = model_of("llama"), sae_of()
    with steer(model, sae, LATENTS, 2.0, where=where):
        tokens = model.generate(torch.tensor([[9]]), max_new_tokens=NEW, min_new_tokens=NEW, do_sample=False)[
            0, 1:
        ].tolist()
    logits = teacher_forced(model, [9], tokens, steer(model, sae, LATENTS, 2.0, where=where, prompt_tokens=1))
    assert logits.index_fill(1, torch.tensor([2]), -torch.inf).argmax(-1).tolist() == tokens


def test_beams_follow_their_example():
    model, sae = model_of("llama"), sae_of()
    mask = torch.tensor(
        [[False, True, False, False, False, True], [False] * 4 + [True] * 2, [False] * 3 + [True] * 3]
    )
    ids, attended = padded(TEXTS, "left")
    with steer(model, sae, LATENTS, 3.0, where=mask):
        result = model.generate(
            ids,
            attention_mask=attended,
            num_beams=3,
            do_sample=False,
            max_new_tokens=NEW,
            min_new_tokens=NEW,
            length_penalty=0.0,
            output_scores=True,
            return_dict_in_generate=True,
        )
    for row, text in enumerate(TEXTS):
        new = result.sequences[row, 6:].tolist()
        own = mask[row : row + 1, 6 - len(text) :]
        logits = teacher_forced(model, text, new, steer(model, sae, LATENTS, 3.0, where=own))
        # the score of a beam is the log-probability of its tokens; EOS is forbidden by min_new_tokens, after
        # the softmax
        score = logits.log_softmax(-1).gather(1, torch.tensor(new)[:, None]).sum()
        torch.testing.assert_close(result.sequences_scores[row], score, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("draft", [{"prompt_lookup_num_tokens": 3}, {"assistant_early_exit": 1}])
def test_drafted_tokens_count_as_generated(draft):
    """Several tokens a pass, some taken back; with early exit the model drafts for itself, in a call within
    the call."""
    model, sae = model_of("llama"), sae_of()
    ids = torch.tensor([[1, 5, 9, 5, 9, 5, 9]])
    for where in ("prompt", "generated"):
        context = steer(model, sae, LATENTS, 1.0, where=where)
        with context:
            tokens = model.generate(ids, max_new_tokens=NEW, do_sample=False, **draft)
        with steer(model, sae, LATENTS, 1.0, where=where):
            assert torch.equal(model.generate(ids, max_new_tokens=NEW, do_sample=False), tokens)


def test_a_loop_of_ones_own_says_where_its_prompt_ends():
    model, sae = model_of("llama"), sae_of()
    text, new = TEXTS[0], [4, 11, 6]
    for where in ("prompt", "generated"):
        reference = teacher_forced(
            model, text, new, steer(model, sae, LATENTS, 2.0, where=where, prompt_tokens=6)
        )
        with steer(model, sae, LATENTS, 2.0, where=where, prompt_tokens=6):
            out = model(torch.tensor([text[:4]]), use_cache=True)
            out = model(torch.tensor([text[4:]]), past_key_values=out.past_key_values, use_cache=True)
            steps = [out.logits[0, -1]]
            for token in new[:-1]:
                out = model(torch.tensor([[token]]), past_key_values=out.past_key_values, use_cache=True)
                steps.append(out.logits[0, -1])
        torch.testing.assert_close(torch.stack(steps), reference, rtol=1e-4, atol=1e-4)


# Positions ----------------------------------------------------------------------------------------


def test_masks_and_functions_mean_what_they_say_padding_apart():
    model, sae = model_of("llama"), sae_of()
    ids, mask = padded(TEXTS, "left")
    clean = stream_of_batch(model, ids, mask)
    chosen = torch.zeros(3, 6, dtype=torch.bool)
    chosen[:, 0] = True  # BOS of the longest text, padding of the two others
    with steer(model, sae, LATENTS, 1.0, where=chosen):
        edited = stream_of_batch(model, ids, mask)
    assert (edited != clean).any(-1).tolist() == [[True] + [False] * 5, [False] * 6, [False] * 6]
    with steer(
        model, sae, LATENTS, 1.0, where=lambda info: info.token_index == 2
    ):  # the third real token of each
        edited = stream_of_batch(model, ids, mask)
    assert (edited != clean).any(-1).nonzero().tolist() == [[0, 2], [1, 5], [2, 3]]
    with steer(model, sae, LATENTS, 1.0, where=lambda info: info.input_ids == 21):
        edited = stream_of_batch(model, ids, mask)
    assert (edited != clean).any(-1).nonzero().tolist() == [[2, 2], [2, 3]]


def stream_of_batch(model: nn.Module, ids: Tensor, mask: Tensor) -> Tensor:
    with capture(model, ["blocks.2.hook_resid_pre"]) as found:
        model(ids, attention_mask=mask)
    return found["blocks.2.hook_resid_pre"]


def test_the_span_of_an_entity_is_edited_and_nothing_else(byte_tokenizer):
    model, sae = model_of("llama"), sae_of()
    model.resize_token_embeddings(259)
    texts, spans = ["Ann met Bob", "é Bob"], [[(0, 3), (8, 11)], (2, 5)]
    encoded = byte_tokenizer(texts, padding=True, return_tensors="pt", return_offsets_mapping=True)
    where, ids = span_mask(encoded, spans), encoded["input_ids"]
    assert ["".join(byte_tokenizer.decode(row[m])) for row, m in zip(ids, where)] == ["AnnBob", "Bob"]
    last = span_mask(encoded, spans, which="last")
    assert [byte_tokenizer.decode(row[m]) for row, m in zip(ids, last)] == ["nb", "b"]
    clean = stream_of_batch(model, ids, encoded["attention_mask"])
    with steer(model, sae, LATENTS, 1.0, where=where):
        edited = stream_of_batch(model, ids, encoded["attention_mask"])
    assert torch.equal((edited != clean).any(-1), where)
    with pytest.raises(ValueError, match="no token of text 1 in characters 9 to 11"):
        span_mask(encoded, [(0, 3), (9, 11)])
    with pytest.raises(ValueError, match="a span for each of 2 texts, got 1"):
        span_mask(encoded, [(0, 3)])
    with pytest.raises(ValueError, match="return_offsets_mapping=True"):
        span_mask({"input_ids": ids}, spans)


def test_special_tokens_are_left_out_unless_asked_for():
    model, sae = model_of("llama"), sae_of()
    ids = torch.tensor([[1, 5, 2, 9, 0]])  # BOS, EOS and the padding id by their ids
    clean = stream(model, ids)
    moved = (stream(model, ids, steer(model, sae, LATENTS, 1.0)) != clean).any(-1)
    assert moved.tolist() == [[False, True, False, True, False]]
    moved = (stream(model, ids, steer(model, sae, LATENTS, 1.0, skip_ids=())) != clean).any(-1)
    assert moved.all()
    moved = (stream(model, ids, steer(model, sae, LATENTS, 1.0, skip_ids=[9])) != clean).any(-1)
    assert moved.tolist() == [[True, True, True, False, True]]


def test_embeddings_in_place_of_tokens():
    model, sae = model_of("llama"), sae_of()
    ids = torch.tensor([TEXTS[0]])
    embeds = model.get_input_embeddings()(ids)
    with pytest.raises(ValueError, match=r"expected token ids.*skip_ids=\(\)"), ablate(model, sae, LATENTS):
        model(inputs_embeds=embeds)
    with ablate(model, sae, LATENTS, skip_ids=()):
        assert torch.equal(model(inputs_embeds=embeds).logits, model(ids).logits)


# Refusals -----------------------------------------------------------------------------------------


def test_a_right_padded_generate_is_refused_and_leaves_nothing():
    model, sae = model_of("llama"), sae_of()
    ids, mask = padded(TEXTS, "right")
    for inputs in ({"inputs": ids, "attention_mask": mask}, {"inputs": ids}, {"input_ids": ids}):
        with (
            pytest.raises(ValueError, match="row 1 ends in padding.*padding_side='left'"),
            ablate(model, sae, LATENTS),
        ):
            model.generate(**inputs, max_new_tokens=2)
    with pytest.raises(ValueError, match="row 1 ends in padding"), ablate(model, sae, LATENTS):
        model.generate(ids, max_new_tokens=2)
    assert n_hooks(model) == 0 and "generate" not in vars(model)
    with ablate(model, sae, LATENTS):
        model.generate(torch.tensor([[1, 5]]), max_new_tokens=2)


def test_continuous_batching_is_refused_and_works_again_afterwards():
    model, sae = model_of("llama"), sae_of()
    own = model.init_continuous_batching
    with ablate(model, sae, LATENTS):
        with pytest.raises(HookError, match="continuous batching.*left-padded batch"):
            model.generate_batch([TEXTS[0]], max_new_tokens=2)
        packed = {
            "write_index": [],
            "cu_seq_lens_q": torch.tensor([0, 6]),
        }  # as a manager that was made before calls it
        with pytest.raises(HookError, match="continuous batching"):
            model(torch.tensor([TEXTS[0]]), **packed)
        model.generate(torch.tensor([[1, 5]]), max_new_tokens=2)
    assert model.init_continuous_batching == own and not {"generate", "init_continuous_batching"} & set(
        vars(model)
    )


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
def test_a_peft_model_generates_with_the_edit():
    from peft import LoraConfig, get_peft_model

    base, sae = model_of("llama"), sae_of()
    model = get_peft_model(base, LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False)).eval()
    ids = torch.tensor([TEXTS[0]])
    with steer(model, sae, LATENTS, 2.0, where="generated"):
        new = model.generate(input_ids=ids, max_new_tokens=NEW, min_new_tokens=NEW, do_sample=False)[
            0, 6:
        ].tolist()
    with steer(model, sae, LATENTS, 2.0, where="generated", prompt_tokens=6):
        logits = model(input_ids=torch.tensor([TEXTS[0] + new])).logits[0, 5:-1]
    assert logits.index_fill(1, torch.tensor([2]), -torch.inf).argmax(-1).tolist() == new
    right, mask = padded(TEXTS, "right")
    with pytest.raises(ValueError, match="ends in padding"), ablate(model, sae, LATENTS):
        model.generate(input_ids=right, attention_mask=mask, max_new_tokens=2)
    assert "generate" not in vars(base) and "generate" not in vars(model)


@pytest.mark.long
@pytest.mark.property_check(3)
@pytest.mark.parametrize("mode", MODES)
def test_hooks_are_gone_after_an_exception(mode):
    model, sae = model_of("llama"), sae_of()
    clean = model(torch.tensor([TEXTS[0]])).logits
    hooks = n_hooks(model)
    with pytest.raises(KeyError), start(mode, model, sae), start(mode, model, sae, latents=[1, 2, 4]):
        raise KeyError
    with pytest.raises(IndexError), start(mode, model, sae):
        model(torch.tensor([[1, 999]]))
    assert n_hooks(model) == hooks and "generate" not in vars(model)
    assert torch.equal(model(torch.tensor([TEXTS[0]])).logits, clean)


def test_a_forward_that_failed_leaves_no_mask_behind():
    model, sae = model_of("llama"), sae_of()
    ids = torch.tensor([TEXTS[0]])
    with ablate(model, sae, LATENTS):
        expected = model(ids).logits
    with ablate(model, sae, LATENTS):
        with pytest.raises(IndexError):
            model(ids + 999, attention_mask=torch.zeros_like(ids))
        assert torch.equal(model(ids).logits, expected)


def test_the_callers_own_generate_comes_back():
    model, sae = model_of("llama"), sae_of()
    calls = []
    own = model.generate = lambda *args, **kwargs: (
        calls.append(args) or type(model).generate(model, *args, **kwargs)
    )
    with ablate(model, sae, LATENTS), ablate(model, sae, 5):
        model.generate(torch.tensor([[1, 5]]), max_new_tokens=1)
    assert model.generate is own and len(calls) == 1


@pytest.mark.parametrize(
    "call, match",
    [
        (lambda m, s: ablate(m, s, 24), "indices from 0 to 23, got \\[24\\]"),
        (lambda m, s: ablate(m, s, [-1]), "indices from 0 to 23"),
        (lambda m, s: ablate(m, s, 3.7), "latents expected indices, got torch.float32"),
        (lambda m, s: ablate(m, s, torch.ones(24, dtype=torch.bool)), "got torch.bool; of a mask"),
        (lambda m, s: steer(m, s, 3, float("nan")), "strength expected finite numbers, got nan"),
        (
            lambda m, s: steer(m, s, 3, 1.0, where=[[True]]),
            "a bool mask or a function of EditInfo, got a list",
        ),
        (lambda m, s: ablate(m, s, []), "at least one index"),
        (lambda m, s: ablate(m, s, [3, 3]), "each index once"),
        (lambda m, s: ablate(m, s, 3, value="median"), "'zero', 'mean' or 'resample', got 'median'"),
        (lambda m, s: ablate(m, s, 3, value="mean"), "expected mean=.*latent_stats"),
        (lambda m, s: ablate(m, s, 3, mean=MEAN), "belongs to value='mean'"),
        (lambda m, s: ablate(m, s, 3, value="resample"), "expected reference=.*store.acts"),
        (lambda m, s: ablate(m, s, 3, reference=REFERENCE), "belongs to value='resample'"),
        (
            lambda m, s: ablate(m, s, 3, value="resample", reference=REFERENCE[0]),
            "n_tokens d_model=16.*got \\[16\\]",
        ),
        (lambda m, s: ablate(m, s, 3, directions=MEAN), "1 latents, d_model=16.*got \\[24\\]"),
        (lambda m, s: ablate(m, s, 3, when=Fires(24)), "indices from 0 to 23, got \\[24\\]"),
        (lambda m, s: clamp(m, s, 3, 1.0, bound="mim"), "did you mean 'min'"),
        (lambda m, s: clamp(m, s, 3, 1.0, unit="max_act"), "max_act= belongs to unit='max_act'"),
        (
            lambda m, s: steer_direction(m, s.W_dec[3], 1.0),
            "a direction does not say where it belongs: pass hook_point=",
        ),
        (
            lambda m, s: steer_direction(m, s.W_dec[3], 1.0, unit="max_act", hook_point=POINT),
            "unit expected one of",
        ),
        (lambda m, s: steer_direction(m, s.W_dec[:2], 1.0, hook_point=POINT), "d_model=16.*got \\[2, 16\\]"),
        (lambda m, s: ablate_direction(m, MEAN, hook_point=POINT), "d_model=16.*got \\[24\\]"),
        (lambda m, s: ablate_direction(m, torch.zeros(16), hook_point=POINT), "not all zero"),
        (
            lambda m, s: ablate_direction(m, s.W_dec[3], hook_point=POINT, when=Fires(3)),
            "expected Fires\\(latent, sae",
        ),
        (lambda m, s: ablate(m, s, 3, where="prompts"), "did you mean 'prompt'"),
        (lambda m, s: ablate(m, s, 3, where=torch.ones(1, 6)), "expected a bool mask"),
        (lambda m, s: ablate(m, s, 3, where=torch.ones(2, 6).bool()), "expected 1 rows"),
        (
            lambda m, s: ablate(m, s, 3, where=lambda info: torch.ones(3).bool()),
            r"function to return bool\[1, 6\]",
        ),
        (lambda m, s: ablate(m, s, 3, where="generated"), "expected a generate call or prompt_tokens"),
        (lambda m, s: clamp(m, s, [3, 4], [1.0, 2.0, 3.0]), "one number or one for each of 2 latents"),
        (lambda m, s: steer(m, s, 3, 1.0, unit="max"), "did you mean 'max_act'"),
        (lambda m, s: steer(m, s, 3, 1.0, unit="max_act"), "max_act= belongs to unit='max_act'"),
        (lambda m, s: steer(m, s, 3, 1.0, max_act=2.0), "max_act= belongs to unit='max_act'"),
    ],
)
def test_bad_arguments_are_named(call, match):
    model, sae = model_of("llama"), sae_of()
    with pytest.raises(ValueError, match=match), call(model, sae):
        model(torch.tensor([TEXTS[0]]))
    assert n_hooks(model) == 0


def test_an_sae_of_another_model_or_without_a_place():
    model = model_of("llama")
    other = SparseAutoencoder(SAEConfig(d_model=12, d_sae=24, k=2, model_name="gpt2", hook_point=POINT))
    with (
        pytest.raises(ValueError, match="d_model=16, got one of d_model=12, trained on gpt2"),
        ablate(model, other, 3),
    ):
        pass
    nowhere = SparseAutoencoder(SAEConfig(d_model=16, d_sae=24, k=2))
    with pytest.raises(ValueError, match="pass hook_point="), ablate(model, nowhere, 3):
        pass
    with ablate(model, nowhere, 3, hook_point="model.layers.1"):
        model(torch.tensor([TEXTS[0]]))
    with (
        pytest.raises(HookError, match="no hook point"),
        ablate(model, nowhere, 3, hook_point="blocks.9.hook_resid_post"),
    ):
        pass


def test_latent_stats_by_hand(tmp_path):
    """Identity SAE of width 2 over rows (1, 0), (3, −1), (0, 2): means 4/3 and 2/3, maxima 3 and 2; of a
    store as well."""
    sae = SparseAutoencoder(SAEConfig(d_model=2, d_sae=2, kind="relu"))
    sae.W_enc.copy_(torch.eye(2)), sae.W_dec.copy_(torch.eye(2))
    batches = [torch.tensor([[1.0, 0.0], [3.0, -1.0]]), torch.tensor([[0.0, 2.0]])]
    store = ActivationStore.from_arrays(tmp_path / "store", torch.cat(batches))
    for given in (batches, store):
        stats = latent_stats(sae, given)
        torch.testing.assert_close(stats.mean, torch.tensor([4 / 3, 2 / 3]))
        assert stats.max.tolist() == [3.0, 2.0] and stats.n_tokens == 3
        torch.testing.assert_close(stats.rate, torch.tensor([2 / 3, 1 / 3], dtype=torch.float64))
    with pytest.raises(ValueError, match="no tokens"):
        latent_stats(sae, [])


def test_an_sae_of_fewer_bits_does_not_round_the_stream():
    model, ids = model_of("llama"), torch.tensor([TEXTS[0]])
    sae = sae_of().to(torch.bfloat16)
    with capture(model, [POINT]) as clean:
        model(input_ids=ids)
    with steer(model, sae, LATENTS, 1e-4, skip_ids=()), capture(model, [POINT]) as moved:
        model(input_ids=ids)
    wanted = (torch.full((3,), 1e-4, dtype=torch.bfloat16) @ sae.W_dec[LATENTS]).float()
    got = moved[POINT] - clean[POINT]
    torch.testing.assert_close(got, wanted.expand_as(got), rtol=0, atol=2e-6)


def test_generate_with_a_static_cache_is_edited_like_any_other():
    model, ids = model_of("llama"), torch.tensor([TEXTS[0]])
    how = {"max_new_tokens": NEW, "do_sample": False, "eos_token_id": None}
    with steer(model, sae_of(), LATENTS, [3.0, 2.0, 1.0]):
        dynamic = model.generate(ids, **how)
        static = model.generate(ids, cache_implementation="static", **how)
    assert torch.equal(dynamic, static)
    assert not torch.equal(dynamic, model.generate(ids, **how))


@pytest.mark.parametrize("mode, amount", [(steer, 2.0), (clamp, 1.0)])
def test_times_the_largest_activation_of_a_latent_that_never_fired_is_refused(mode, amount):
    largest = MEAN.clone()
    largest[20] = 0
    with (
        pytest.raises(ValueError, match=r"expected latents that fired, got \[20\] with max_act 0"),
        mode(model_of("llama"), sae_of(), LATENTS, amount, unit="max_act", max_act=largest),
    ):
        pass
