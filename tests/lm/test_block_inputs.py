"""attn.hook_z and mlp.hook_in are what the output projection and the MLP take, in every family."""

import re

import pytest
import torch
from torch import nn

from saelens_lite.errors import HookError
from saelens_lite.lm.hooks import CANONICAL, capture, edit, enters_stream, hook_points, resolve, run_to

from .test_hooks import EXPERTS, FAMILIES, GROUPED, HEADS, IDS, OPT, PEFT_WARNS, build, n_hooks

Z, MLP_IN = "blocks.1.attn.hook_z", "blocks.1.mlp.hook_in"

WIDE = HEADS | {"head_dim": 12}  # heads · d_head = 24 differs from the width of the stream, 16
BLOCK_INPUTS = {
    "gpt2": ("attn.c_proj", "mlp"),
    "neox": ("attention.dense", "mlp"),
    "neox, sequential": ("attention.dense", "mlp"),
    "opt": ("self_attn.out_proj", "fc1"),
    "phi": ("self_attn.dense", "mlp"),
    "falcon": ("self_attention.dense", "mlp"),
}
"""The modules by family; in every other they are self_attn.o_proj and mlp."""
MORE = {
    "gemma2, wide heads": ("Gemma2ForCausalLM", "Gemma2Config", WIDE | {"sliding_window": 8}, "model.layers"),
    "qwen3, wide heads": ("Qwen3ForCausalLM", "Qwen3Config", WIDE, "model.layers"),
    "olmoe": ("OlmoeForCausalLM", "OlmoeConfig", GROUPED | EXPERTS, "model.layers"),
}
ALL = {name: facts[:4] for name, facts in FAMILIES.items()} | MORE


def plain_inputs(model: nn.Module, path: str) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """What the module took and gave, and the logits, by torch's own hook alone."""
    seen = []
    module = model.get_submodule(path)
    handle = module.register_forward_hook(lambda _m, args, output: seen.append((args[0].clone(), output)))
    with torch.no_grad():
        logits = model(IDS).logits
    handle.remove()
    assert len(seen) == 1
    return (*seen[0], logits)


@pytest.mark.parametrize("family", ALL)
def test_both_are_what_a_plain_hook_sees(family):
    model_class, config_class, arguments, path = ALL[family]
    model = build(model_class, config_class, arguments)
    projection, mlp = BLOCK_INPUTS.get(family, ("self_attn.o_proj", "mlp"))

    assert resolve(model, Z).module_path == f"{path}.1.{projection}"
    assert resolve(model, MLP_IN).module_path == f"{path}.1.{mlp}"
    with torch.no_grad():
        found = run_to(model, [Z, MLP_IN, "blocks.1.hook_attn_out"], input_ids=IDS)
    z, gave, _ = plain_inputs(model, f"{path}.1.{projection}")
    taken, _, _ = plain_inputs(model, f"{path}.1.{mlp}")
    assert torch.equal(found[Z], z)
    assert torch.equal(found[MLP_IN], taken.view(found[MLP_IN].shape))
    heads = model.config.num_attention_heads * (getattr(model.config, "head_dim", None) or 8)
    assert found[Z].shape == (2, 5, heads) and resolve(model, Z).width(model) == heads
    assert found[MLP_IN].shape == (2, 5, 16) and resolve(model, MLP_IN).width(model) == 16

    module = model.get_submodule(f"{path}.1.{projection}")
    W_O = module.weight if family == "gpt2" else module.weight.T  # Conv1D holds [in, out]
    product = found[Z] @ W_O + (0 if module.bias is None else module.bias)
    torch.testing.assert_close(product, gave, rtol=1e-5, atol=1e-5)
    if "gemma" not in family and family != "olmo2":  # where no norm follows
        torch.testing.assert_close(product, found["blocks.1.hook_attn_out"], rtol=1e-5, atol=1e-5)
    assert n_hooks(model) == 0


@pytest.mark.parametrize("family", ALL)
def test_an_edit_there_is_the_module_on_other_inputs(family):
    model_class, config_class, arguments, path = ALL[family]
    model = build(model_class, config_class, arguments)
    for name, inner in zip((Z, MLP_IN), BLOCK_INPUTS.get(family, ("self_attn.o_proj", "mlp"))):
        clean = model(IDS).logits
        with edit(model, name, lambda acts, info: acts):
            assert torch.equal(model(IDS).logits, clean)
        with edit(model, name, lambda acts, info: acts * 0.5):
            edited = model(IDS).logits
        module = model.get_submodule(f"{path}.1.{inner}")
        handle = module.register_forward_pre_hook(lambda _m, args: (args[0] * 0.5, *args[1:]))
        by_hand = model(IDS).logits
        handle.remove()
        assert torch.equal(edited, by_hand) and not torch.equal(edited, clean)


def test_a_head_is_a_slice():
    """Zeroing head 1's slice of z takes z_1 · W_O[1] from what the attention adds: heads of width 8."""
    model = build(*FAMILIES["llama"][:3])
    W_O = model.model.layers[1].self_attn.o_proj.weight.T
    with torch.no_grad():
        clean = run_to(model, [Z, "blocks.1.hook_attn_out"], input_ids=IDS)

        def without_head_1(acts, info):
            return torch.cat([acts[..., :8], torch.zeros_like(acts[..., 8:])], dim=-1)

        with capture(model, ["blocks.1.hook_attn_out"]) as found, edit(model, Z, without_head_1):
            model(IDS)
    torch.testing.assert_close(
        clean["blocks.1.hook_attn_out"] - found["blocks.1.hook_attn_out"],
        clean[Z][..., 8:] @ W_O[8:],
        rtol=1e-5,
        atol=1e-6,
    )


def test_the_list_has_them_on_request():
    model = build(*FAMILIES["llama"][:3])
    assert [name for name in hook_points(model, inside=True) if name.startswith("blocks.1.")] == [
        "blocks.1.hook_resid_pre",
        "blocks.1.attn.hook_z",
        "blocks.1.hook_attn_out",
        "blocks.1.mlp.hook_in",
        "blocks.1.hook_mlp_out",
        "blocks.1.hook_resid_post",
    ]
    assert not {Z, MLP_IN} & set(hook_points(model))
    assert [enters_stream(model, f"blocks.1.{name}") for name in CANONICAL] == [
        True, False, True, False, True, True
    ]  # fmt: skip
    with pytest.raises(HookError, match=r"\.hook_resid_pre, \.attn\.hook_z, \.hook_attn_out, \.mlp\.hook_in"):
        resolve(model, "blocks.3.attn.hook_z")


def test_they_are_there_where_branches_are_scaled_or_the_stream_is_normalised():
    scaled = build("GraniteForCausalLM", "GraniteConfig", GROUPED | {"residual_multiplier": 0.3})
    assert resolve(scaled, Z).module_path == "model.layers.1.self_attn.o_proj"
    assert resolve(scaled, MLP_IN).module_path == "model.layers.1.mlp"
    normalised = build("OPTForCausalLM", "OPTConfig", OPT | {"do_layer_norm_before": False})
    assert resolve(normalised, Z).module_path == "model.decoder.layers.1.self_attn.out_proj"
    assert resolve(normalised, MLP_IN).module_path == "model.decoder.layers.1.fc1"


def test_they_are_refused_where_no_module_is_meant():
    bloom = {"vocab_size": 40, "hidden_size": 16, "n_layer": 3, "n_head": 2}
    model = build("BloomForCausalLM", "BloomConfig", bloom)  # its attention gives the stream too
    with pytest.raises(HookError, match=r"no module inside the attention of block 1 \(BloomBlock\) projects"):
        resolve(model, Z)
    assert resolve(model, MLP_IN).module_path == "transformer.h.1.mlp"
    shared = GROUPED | {"num_local_experts": 2, "num_experts_per_tok": 1, "shared_intermediate_size": 16}
    model = build("GraniteMoeSharedForCausalLM", "GraniteMoeSharedConfig", shared)
    with pytest.raises(HookError, match=r"no single part of block 1 .* beside its attention is the MLP"):
        resolve(model, MLP_IN)


def test_names_of_transformer_lens_are_explained():
    model = build(*FAMILIES["llama"][:3])
    why = "in LlamaForCausalLM: TransformerLens' hook_mlp_in is the stream before the MLP's norm"
    with pytest.raises(HookError, match=re.escape(why) + r".* is blocks\.1\.mlp\.hook_in$"):
        resolve(model, "blocks.1.hook_mlp_in")
    with pytest.raises(HookError, match=r"between a norm and its gain.* is blocks\.1\.mlp\.hook_in$"):
        resolve(model, "blocks.1.ln2.hook_normalized")


@PEFT_WARNS
def test_lora_around_the_projection_is_the_projection():
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(r=2, target_modules=["o_proj"], init_lora_weights=False)
    wrapped = get_peft_model(build(*FAMILIES["llama"][:3]), config)
    assert resolve(wrapped, Z).module_path == "model.layers.1.self_attn.o_proj"
