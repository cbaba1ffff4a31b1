"""Which pass an edit runs in: masks of any form, threads, gradients that run a block again, passes that never
come by."""

import copy
import threading
import warnings

import pytest
import torch
import transformers

from saelens_lite.analyze.edits.latents import ablate, scale, steer
from saelens_lite.analyze.edits.stream_edit import Fires
from saelens_lite.errors import HookError
from saelens_lite.lm.hooks import capture, edit

from .test_latents import HEADS, LATENTS, POINT, SHAPE, TEXTS, model_of, sae_of

IDS = torch.tensor([TEXTS[0]])


def moved(model, **inputs):
    """bool[batch seq] that an edit of everything moves: what it is asked for, by an edit that adds 1."""
    with torch.no_grad(), capture(model, [POINT]) as clean:
        model(**inputs, use_cache=False)
    with torch.no_grad(), steer(model, sae_of(), [3], 4.0, skip_ids=()), capture(model, [POINT]) as found:
        model(**inputs, use_cache=False)
    push = 4 * sae_of().W_dec[3].detach()
    return (found[POINT] - clean[POINT] - push).abs().amax(-1) < 1e-4


@pytest.mark.parametrize("kind", [torch.bool, torch.float32, torch.long])
def test_under_a_4d_mask_a_token_is_what_sees_itself(kind):
    seen = torch.block_diag(torch.zeros(2, 2), torch.ones(3, 3), torch.ones(4, 4)).tril().bool()
    mask = seen if kind is not torch.float32 else torch.zeros(9, 9).masked_fill(~seen, -1e9)
    model, ids = model_of("llama"), torch.arange(3, 12)[None]
    if kind is torch.long:  # transformers takes none of these, other models do
        from saelens_lite.lm.forward_state import _Pass, _real_tokens

        given = _Pass(model, 0, 0, {"attention_mask": seen.long()[None, None]})
        assert _real_tokens(given, 1, 9, ids.device).tolist() == [[False] * 2 + [True] * 7]
    else:
        assert moved(model, input_ids=ids, attention_mask=mask[None, None]).tolist() == [
            [False] * 2 + [True] * 7
        ]


@pytest.mark.parametrize("where", ["all", "prompt"])
def test_a_window_shorter_than_the_prompt_hides_no_token_under_a_static_cache(where):
    arguments = SHAPE | HEADS | {"sliding_window": 3}
    torch.manual_seed(0)
    model = transformers.MistralForCausalLM(transformers.MistralConfig(**arguments)).eval()
    ids = torch.tensor([[0, 0, *range(5, 13)], list(range(3, 13))])
    how = {"attention_mask": (ids > 0).long(), "max_new_tokens": 3, "do_sample": False, "eos_token_id": None}
    masks, given = [], {}

    def note(acts, info):
        masks.append((info.attention_mask.tolist(), info.token_index.tolist()))
        return acts

    for cache in (None, "static"):
        masks.clear()
        with edit(model, POINT, note), steer(model, sae_of(), LATENTS, 3.0, where=where):
            given[cache] = (
                model.generate(ids, **how, **({"cache_implementation": cache} if cache else {})),
                [*masks],
            )
    assert given["static"][1] == given[None][1]
    assert given["static"][1][0][0] == (ids > 0).tolist()
    assert [index for _, index in given["static"][1]][1:] == [[[8], [10]], [[9], [11]]]
    assert torch.equal(given["static"][0], given[None][0])


def test_a_mask_that_is_no_tensor_is_refused():
    from saelens_lite.lm.forward_state import _Pass, _real_tokens

    with pytest.raises(HookError, match="to tell text from padding, got object: pass the mask"):
        _real_tokens(_Pass(None, 0, 0, {"attention_mask": object()}), 1, 3, IDS.device)


def test_activations_that_are_not_batch_seq_d_are_refused():
    model = model_of("llama")

    class Turned(torch.nn.Module):
        def forward(self, acts):
            return acts.transpose(0, 1)

    model.model.embed_tokens = torch.nn.Sequential(model.model.embed_tokens, Turned(), Turned())
    with (
        pytest.raises(
            HookError, match=rf"with \[batch seq\] = \[1, {IDS.shape[1]}\], got \[{IDS.shape[1]}, 1, 16\]"
        ),
        edit(model, "model.embed_tokens.1", lambda acts, info: acts),
    ):
        model(input_ids=IDS)


def in_thread(run):
    out = []

    def guarded():
        try:
            out.append(run())
        except Exception as error:
            out.append(error)

    thread = threading.Thread(target=guarded)
    thread.start()
    thread.join()
    return out[0]


@torch.no_grad()
def test_a_thread_has_its_own_edits_and_one_without_is_refused():
    model, sae = model_of("llama"), sae_of()

    def logits(strength=None):
        if strength is None:
            return model(input_ids=IDS).logits
        with steer(model, sae, LATENTS, strength):
            return model(input_ids=IDS).logits

    clean, weak, strong = logits(), logits(1.0), logits(9.0)
    with steer(model, sae, LATENTS, 9.0):
        assert torch.equal(in_thread(lambda: logits(1.0)), weak)
        refused = in_thread(logits)
        assert isinstance(refused, HookError) and "on in another thread" in str(refused)
        assert torch.equal(logits(), strong)
    assert torch.equal(in_thread(logits), clean)


def test_a_copy_of_an_edited_model_is_refused_and_works_afterwards():
    model = model_of("llama")
    with (
        steer(model, sae_of(), LATENTS, 3.0),
        pytest.raises(HookError, match="copy the model before the edit"),
    ):
        copy.deepcopy(model)
    assert torch.equal(copy.deepcopy(model)(input_ids=IDS).logits, model(input_ids=IDS).logits)


@pytest.mark.parametrize("reentrant", [True, False])
@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_gradients_through_checkpointed_blocks_are_those_without(reentrant, name):
    model = model_of(name).train()
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    sae, ids = sae_of().requires_grad_(False), torch.tensor([[0, 0, *range(5, 13)], list(range(3, 13))])
    inputs = {"attention_mask": (ids > 0).long(), "use_cache": False}
    first = "blocks.0.hook_mlp_out"

    def gradients():
        model.zero_grad()
        with (
            ablate(
                model, sae, LATENTS, hook_point="blocks.1.hook_mlp_out", prompt_tokens=4, where="generated"
            ),
            scale(model, sae, LATENTS, 3.0, where="all", when=Fires(5, 0.0, hook_point=first)),
        ):
            # two passes of other masks before their backwards
            loss = model(input_ids=ids, **inputs).logits[:, -1, 5].sum()
            loss = (
                loss
                + model(input_ids=ids.flip(0), attention_mask=(ids.flip(0) > 0).long()).logits[:, -2, 4].sum()
            )
            loss.backward()
        return [p.grad.clone() for p in model.parameters() if p.grad is not None]

    expected = gradients()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the name, which version 5.0 of transformers has alone
        model.gradient_checkpointing_enable({"use_reentrant": reentrant})
    model.enable_input_require_grads()
    for got, want in zip(gradients(), expected, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_an_edit_that_no_forward_comes_by_says_so_on_leaving():
    model = model_of("llama")
    rest = model.model.layers[1].mlp.forward
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with steer(model, sae_of(), [3], 1.0):  # no forward, no word
            pass
        with steer(model, sae_of(), [3], 1.0):
            model(input_ids=IDS)
    model.model.layers[1].mlp = torch.nn.Sequential(model.model.layers[1].mlp)
    model.model.layers[1].mlp.forward = lambda acts: rest(acts)
    with (
        pytest.warns(UserWarning, match=r"edit at 'model.layers.1.mlp.0' changed nothing: 2 forward passes"),
        steer(model, sae_of(), [3], 1.0, hook_point="model.layers.1.mlp.0"),
    ):
        model(input_ids=IDS)
        model(input_ids=IDS)


@pytest.mark.parametrize("part", ["", ".mlp"])
def test_a_compiled_block_is_refused_and_one_compiled_inside_the_edit_is_named(part, monkeypatch):
    model = model_of("llama")
    module = model.model.get_submodule(f"layers.1{part}")
    point = "model.layers.1.mlp.down_proj"
    module._compiled_call_impl = module._call_impl
    with (
        pytest.raises(HookError, match="before torch.compile"),
        steer(model, sae_of(), [3], 1.0, hook_point=point),
    ):
        pass
    with pytest.raises(HookError, match="before torch.compile"), capture(model, [point]):
        pass
    module._compiled_call_impl = None
    with (
        pytest.warns(UserWarning, match="compiled after the edit was entered"),
        steer(model, sae_of(), [3], 1.0, hook_point=point),
    ):
        module._compiled_call_impl = lambda acts, **_: (acts,)[0]
        model(input_ids=IDS)
