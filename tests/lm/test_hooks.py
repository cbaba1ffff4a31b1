"""Hook points on tiny random models of the real classes, however they are wrapped or placed."""

import copy
import functools

import pytest
import torch
import transformers
from torch import nn

from saelens_lite.errors import HookError
from saelens_lite.lm.decoder import Decoder
from saelens_lite.lm.forward_state import position_ids_from
from saelens_lite.lm.hooks import capture, edit, hook_points, resolve, run_to

SHAPE = {
    "vocab_size": 40,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "max_position_embeddings": 32,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
GROUPED = SHAPE | {"num_key_value_heads": 1}
HEADS = GROUPED | {"head_dim": 8}
GPT = {
    "vocab_size": 40,
    "n_embd": 16,
    "n_layer": 3,
    "n_head": 2,
    "n_positions": 32,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
OPT = {key: value for key, value in SHAPE.items() if key != "intermediate_size"} | {
    "ffn_dim": 24,
    "word_embed_proj_dim": 16,
}
FALCON = {
    key: value for key, value in SHAPE.items() if key not in ("intermediate_size", "max_position_embeddings")
}

EXPERTS = {"num_experts": 2, "num_experts_per_tok": 1, "moe_intermediate_size": 16}

# name: (model class, configuration class, its arguments, path of the blocks, the parts that block 1 adds to
# the stream)
FAMILIES = {
    "llama": ("LlamaForCausalLM", "LlamaConfig", GROUPED, "model.layers", "self_attn", "mlp"),
    "mistral": ("MistralForCausalLM", "MistralConfig", GROUPED, "model.layers", "self_attn", "mlp"),
    "qwen2": ("Qwen2ForCausalLM", "Qwen2Config", GROUPED, "model.layers", "self_attn", "mlp"),
    "qwen3": ("Qwen3ForCausalLM", "Qwen3Config", HEADS, "model.layers", "self_attn", "mlp"),
    "gpt2": ("GPT2LMHeadModel", "GPT2Config", GPT, "transformer.h", "attn", "mlp"),
    "neox": ("GPTNeoXForCausalLM", "GPTNeoXConfig", SHAPE, "gpt_neox.layers", "attention", "mlp"),
    "neox, sequential": (
        "GPTNeoXForCausalLM", "GPTNeoXConfig", SHAPE | {"use_parallel_residual": False},
        "gpt_neox.layers", "attention", "mlp",
    ),
    "gemma2": (
        "Gemma2ForCausalLM", "Gemma2Config", HEADS | {"sliding_window": 8},
        "model.layers", "post_attention_layernorm", "post_feedforward_layernorm",
    ),
    "gemma3": (
        "Gemma3ForCausalLM", "Gemma3TextConfig", HEADS | {"sliding_window": 8},
        "model.layers", "post_attention_layernorm", "post_feedforward_layernorm",
    ),
    "olmo2": (
        "Olmo2ForCausalLM", "Olmo2Config", GROUPED,
        "model.layers", "post_attention_layernorm", "post_feedforward_layernorm",
    ),
    "opt": ("OPTForCausalLM", "OPTConfig", OPT, "model.decoder.layers", "self_attn", "fc2"),
    "phi": ("PhiForCausalLM", "PhiConfig", GROUPED, "model.layers", "self_attn", "mlp"),
    "falcon": ("FalconForCausalLM", "FalconConfig", FALCON, "transformer.h", "self_attention", "mlp"),
    "mixtral": (
        "MixtralForCausalLM", "MixtralConfig", GROUPED | {"num_local_experts": 2, "num_experts_per_tok": 1},
        "model.layers", "self_attn", "mlp",
    ),
    "qwen2 moe": (
        "Qwen2MoeForCausalLM", "Qwen2MoeConfig",
        GROUPED | EXPERTS | {"shared_expert_intermediate_size": 16},
        "model.layers", "self_attn", "mlp",
    ),
    "qwen3 moe": (
        "Qwen3MoeForCausalLM", "Qwen3MoeConfig",
        HEADS | EXPERTS, "model.layers", "self_attn", "mlp",
    ),
}  # fmt: skip
KINDS = ("resid_pre", "attn_out", "mlp_out", "resid_post")
# peft 0.21 asks transformers 5.23 for a property by its old name
PEFT_WARNS = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
IDS = torch.tensor([[1, 5, 9, 33, 7], [1, 8, 4, 4, 20]])


def build(model_class: str, config_class: str, arguments: dict) -> nn.Module:
    """A model with weights large enough that no branch is lost in rounding."""
    return copy.deepcopy(built(model_class, config_class, tuple(arguments.items())))


@functools.cache
def built(model_class: str, config_class: str, items: tuple) -> nn.Module:
    """What `build` copies; shared by the tests of a process, so leave it as it is."""
    arguments = dict(items)
    torch.manual_seed(0)
    model = getattr(transformers, model_class)(getattr(transformers, config_class)(**arguments)).eval()
    for parameter in model.parameters():
        if parameter.ndim > 1:
            nn.init.normal_(parameter, std=0.3)
    return model


def llama() -> nn.Module:
    return build(*FAMILIES["llama"][:3])


def n_hooks(model: nn.Module) -> int:
    return sum(len(module._forward_hooks) + len(module._forward_pre_hooks) for module in model.modules())


def state_of(model: nn.Module) -> tuple:
    """All that a caller could notice: hooks, training flags, configuration, attributes."""
    flags = [module.training for module in model.modules()]
    config = copy.deepcopy(model.config.to_dict()) if hasattr(model, "config") else None
    return (
        n_hooks(model),
        flags,
        config,
        sorted(vars(model)),
        [sorted(vars(module)) for module in model.modules()],
    )


@pytest.mark.parametrize("family", FAMILIES)
def test_the_parts_of_a_block_add_up(family):
    model_class, config_class, arguments, path, attn, mlp = FAMILIES[family]
    model = build(model_class, config_class, arguments)
    weights = {name: value.clone() for name, value in model.state_dict().items()}
    model.train()
    model.get_input_embeddings().training = False  # a mixture of flags must come back
    before = state_of(model)

    assert Decoder(model).path == path
    assert Decoder(model).width == 16
    assert hook_points(model) == [f"blocks.{block}.hook_{kind}" for block in range(3) for kind in KINDS]
    assert resolve(model, "blocks.1.hook_attn_out").module_path == f"{path}.1.{attn}"
    assert resolve(model, "blocks.1.hook_mlp_out").module_path == f"{path}.1.{mlp}"
    assert state_of(model) == before

    model.eval()
    names = [f"blocks.1.hook_{kind}" for kind in KINDS]
    with torch.no_grad():
        found = run_to(model, names, input_ids=IDS)
        reference = model(IDS, output_hidden_states=True).hidden_states
    resid_pre, attn_out, mlp_out, resid_post = (found[name] for name in names)
    torch.testing.assert_close(resid_pre + attn_out + mlp_out, resid_post, rtol=1e-5, atol=1e-5)
    assert attn_out.abs().max() > 1e-3 and mlp_out.abs().max() > 1e-3
    assert torch.equal(resid_pre, reference[1]) and torch.equal(resid_post, reference[2])
    for name, value in model.state_dict().items():
        assert torch.equal(value, weights[name])


@pytest.mark.parametrize(
    "model_class, config_class, arguments",
    [
        ("GraniteForCausalLM", "GraniteConfig", GROUPED | {"residual_multiplier": 0.3}),  # scaled branches
        ("OPTForCausalLM", "OPTConfig", OPT | {"do_layer_norm_before": False}),  # a normalised stream
        (
            "BloomForCausalLM",
            "BloomConfig",
            {"vocab_size": 40, "hidden_size": 16, "n_layer": 3, "n_head": 2},
        ),  # adds inside
    ],
)
def test_a_family_without_the_inner_points_says_so(model_class, config_class, arguments):
    model = build(model_class, config_class, arguments)
    assert hook_points(model) == [
        f"blocks.{i}.hook_{kind}" for i in range(3) for kind in ("resid_pre", "resid_post")
    ]
    with pytest.raises(
        HookError, match=r"no two parts of block 1 .* It has blocks\.0 to blocks\.2 with \.hook_resid_pre"
    ):
        resolve(model, "blocks.1.hook_mlp_out")
    with torch.no_grad():
        found = run_to(model, ["blocks.1.hook_resid_post", "blocks.2.hook_resid_pre"], input_ids=IDS)
    assert torch.equal(found["blocks.1.hook_resid_post"], found["blocks.2.hook_resid_pre"])


def test_bfloat16_and_grad_follow_the_model_and_the_caller():
    model = llama().bfloat16()
    assert (
        run_to(model, ["blocks.1.hook_mlp_out"], input_ids=IDS)["blocks.1.hook_mlp_out"].dtype
        == torch.bfloat16
    )
    assert run_to(model, ["blocks.0.hook_resid_post"], input_ids=IDS)[
        "blocks.0.hook_resid_post"
    ].requires_grad
    with torch.inference_mode():
        assert not run_to(model, ["blocks.0.hook_resid_post"], input_ids=IDS)[
            "blocks.0.hook_resid_post"
        ].requires_grad


def test_the_forward_ends_at_the_deepest_point():
    model = llama()
    ran = []
    for name, module in model.named_modules():
        module.register_forward_pre_hook(lambda *_, name=name: ran.append(name))
    run_to(model, ["blocks.1.hook_attn_out", "blocks.0.hook_resid_post"], input_ids=IDS)
    ran.clear()
    run_to(model, ["blocks.1.hook_attn_out", "blocks.0.hook_resid_post"], input_ids=IDS)
    assert "model.layers.1.self_attn" in ran
    assert not {"model.layers.1.mlp", "model.layers.2", "model.norm", "lm_head"} & set(ran)
    ran.clear()
    run_to(model, ["blocks.2.hook_resid_pre"], input_ids=IDS)
    assert "model.layers.1.mlp" in ran and "model.layers.2.self_attn" not in ran


@pytest.mark.parametrize("side", ["left", "right"])
def test_a_padded_batch_gives_the_rows_of_each_text_alone(side):
    model = build(*FAMILIES["gpt2"][:3])  # absolute positions: a wrong count would show
    texts = [[1, 5, 9, 33, 7, 12], [1, 8, 4]]
    width, name = 6, "blocks.2.hook_resid_post"
    pads = [[0] * (width - len(text)) for text in texts]
    ids = torch.tensor([pad + text if side == "left" else text + pad for pad, text in zip(pads, texts)])
    mask = (ids != 0).long()
    with torch.no_grad():
        batch = run_to(model, [name], input_ids=ids, attention_mask=mask)[name]
        for row, text in enumerate(texts):
            alone = run_to(model, [name], input_ids=torch.tensor([text]))[name][0]
            torch.testing.assert_close(batch[row][mask[row].bool()], alone, rtol=1e-5, atol=1e-5)


def test_position_ids_count_real_tokens():
    mask = torch.tensor([[0, 0, 1, 1], [1, 1, 1, 0]])
    assert position_ids_from(mask).tolist() == [[0, 0, 0, 1], [0, 1, 2, 2]]


def test_capture_sees_each_forward_and_stays_in_the_graph():
    model = llama()
    clean = model(IDS).logits
    with capture(model, ["blocks.1.hook_mlp_out", "model.layers.0"]) as found:
        logits = model(IDS).logits
        assert set(found) == {"blocks.1.hook_mlp_out", "model.layers.0"}
        (gradient,) = torch.autograd.grad(logits.sum(), found["blocks.1.hook_mlp_out"], retain_graph=True)
        assert gradient.abs().sum() > 0
        first = found["model.layers.0"]
        model(IDS[:, :3])
        assert found["model.layers.0"].shape == (2, 3, 16) and first.shape == (2, 5, 16)
    assert torch.equal(logits, clean)
    assert n_hooks(model) == 0


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("kind", KINDS)
def test_edits_write_back_what_the_module_returned(family, kind):
    model = built(*FAMILIES[family][:2], tuple(FAMILIES[family][2].items()))
    name = f"blocks.1.hook_{kind}"
    with torch.no_grad():
        clean = model(IDS).logits
        with edit(model, name, lambda acts, info: acts):
            assert torch.equal(model(IDS).logits, clean)
        with edit(model, name, lambda acts, info: acts.clone()):
            assert torch.equal(model(IDS).logits, clean)
        with (
            capture(model, ["blocks.1.hook_resid_post"]) as found,
            edit(model, name, lambda acts, info: acts + 1.0),
        ):
            assert not torch.equal(model(IDS).logits, clean)
        moved = found["blocks.1.hook_resid_post"]
        if kind == "attn_out" and family in ("neox", "phi", "falcon"):
            # parallel blocks: the MLP does not see the attention, so the stream moves by exactly what was
            # added
            torch.testing.assert_close(
                moved,
                run_to(model, ["blocks.1.hook_resid_post"], input_ids=IDS)["blocks.1.hook_resid_post"] + 1.0,
            )
        assert torch.equal(model(IDS).logits, clean)
    assert n_hooks(model) == 0


def test_nested_edits_act_in_order_of_entry():
    model, name = llama(), "blocks.1.hook_resid_post"
    with torch.no_grad():
        start = run_to(model, [name], input_ids=IDS)[name]
        with (
            edit(model, name, lambda acts, info: acts + 1.0),
            edit(model, name, lambda acts, info: acts * 2.0),
        ):
            with capture(model, ["blocks.2.hook_resid_pre"]) as found:
                model(IDS)
    torch.testing.assert_close(found["blocks.2.hook_resid_pre"], (start + 1.0) * 2.0)


def test_finding_a_block_s_parts_disturbs_no_edit_that_is_on():
    model, calls = llama(), []
    with torch.no_grad():
        parts = run_to(llama(), ["blocks.0.hook_attn_out"], input_ids=IDS)
        with edit(
            model, "blocks.0.hook_resid_pre", lambda acts, info: calls.append((info.call, acts.shape)) or acts
        ):
            found = run_to(model, ["blocks.0.hook_attn_out"], input_ids=IDS)  # the first to ask for a part
    assert torch.equal(found["blocks.0.hook_attn_out"], parts["blocks.0.hook_attn_out"])
    assert calls == [(0, (2, 5, 16))]


def test_hidden_states_that_the_model_reports_are_the_edited_ones():
    model, name = llama(), "blocks.1.hook_resid_post"
    with torch.no_grad():
        clean = model(IDS, output_hidden_states=True).hidden_states
        with edit(model, name, lambda acts, info: acts + 1.0):
            edited = model(IDS, output_hidden_states=True).hidden_states
    assert torch.equal(edited[1], clean[1])
    torch.testing.assert_close(edited[2], clean[2] + 1.0)
    assert model.model.layers[1]._forward_hooks  # transformers' own, which stay where they were


def test_nothing_is_left_after_an_exception():
    model = llama()
    run_to(model, ["blocks.0.hook_attn_out"], input_ids=IDS)
    before = state_of(model)

    def broken(acts, info):
        raise RuntimeError("broken edit")

    with pytest.raises(RuntimeError, match="broken edit"), edit(model, "blocks.1.hook_resid_pre", broken):
        model(IDS)
    assert state_of(model) == before
    with pytest.raises(RuntimeError, match="broken edit"), edit(model, "blocks.1.hook_mlp_out", broken):
        model.generate(IDS, max_new_tokens=2, do_sample=False)
    with pytest.raises(HookError, match=r"expected \[2, 5, 16\] back, got \[2, 5\]"):
        with edit(model, "blocks.1.hook_resid_pre", lambda acts, info: acts[..., 0]):
            model(IDS)
    with pytest.raises(KeyError), capture(model, ["blocks.0.hook_resid_post"]):
        raise KeyError
    with pytest.raises(IndexError):
        run_to(model, ["blocks.2.hook_resid_post"], input_ids=IDS + 1000)
    assert state_of(model) == before


def test_an_unknown_point_names_those_there_are():
    model = llama()
    with pytest.raises(
        HookError,
        match=r"did you mean 'blocks\.1\.hook_resid_post'.* blocks\.0 to blocks\.2 with .*hook_mlp_out",
    ):
        resolve(model, "blocks.1.hook_resid_pos")
    with pytest.raises(
        HookError, match=r"no hook point 'blocks\.7\.hook_attn_out' .* blocks\.0 to blocks\.2"
    ):
        run_to(model, ["blocks.7.hook_attn_out"], input_ids=IDS)
    with pytest.raises(HookError, match="did you mean 'model.layers.1.mlp'"):
        resolve(model, "model.layers.1.mpl")
    with pytest.raises(HookError, match="encoder-decoder"):
        resolve(
            build(
                "T5ForConditionalGeneration",
                "T5Config",
                {"vocab_size": 40, "d_model": 16, "d_ff": 16, "num_layers": 1, "num_heads": 2, "d_kv": 8},
            ),
            "blocks.0.hook_resid_pre",
        )
    with pytest.raises(ValueError, match="at least one hook point"):
        run_to(model, [], input_ids=IDS)
    with pytest.raises(HookError, match="no decoder found in Linear"):
        resolve(nn.Linear(2, 2), "blocks.0.hook_resid_pre")


def test_a_model_that_three_tokens_cannot_run_through_says_so():
    model = llama()
    model.model.layers[0].register_forward_pre_hook(lambda *_: 1 / 0)
    before = state_of(model)
    with pytest.raises(HookError, match="would not run through it .ZeroDivisionError"):
        resolve(model, "blocks.0.hook_attn_out")
    assert state_of(model) == before


def test_blocks_are_those_beside_the_embedding_itself():
    model = llama()
    model.more_heads = nn.ModuleList(nn.Linear(16, 40) for _ in range(9))  # as for multi-token prediction
    assert Decoder(model).path == "model.layers"


def test_a_plain_module_path_is_a_hook_point():
    model = llama()
    point = resolve(model, "model.layers.1.mlp")
    assert (point.block, point.side, point.kind) == (1, "output", "module")
    assert resolve(model, "model.norm").block is None
    found = run_to(model, ["model.layers.1.mlp", "blocks.1.hook_mlp_out"], input_ids=IDS)
    assert torch.equal(found["model.layers.1.mlp"], found["blocks.1.hook_mlp_out"])
    plain = nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 2))  # not a language model at all
    with edit(plain, "0", lambda acts, info: acts * 0):
        assert torch.equal(plain(torch.ones(1, 2, 4)), plain[1].bias.expand(1, 2, 2))


def test_a_module_that_the_forward_skips_is_named():
    model = llama()
    model.unused = nn.Linear(2, 2)
    with pytest.raises(HookError, match="never ran .*unused"):
        run_to(model, ["unused"], input_ids=IDS)
    assert n_hooks(model) == 0


@PEFT_WARNS
def test_a_peft_model_keeps_the_names_of_its_base():
    from peft import LoraConfig, get_peft_model

    base = llama()
    with torch.no_grad():
        plain = run_to(base, ["blocks.1.hook_attn_out"], input_ids=IDS)["blocks.1.hook_attn_out"]
    model = get_peft_model(
        base, LoraConfig(r=2, target_modules=["q_proj", "v_proj"], init_lora_weights=False)
    ).eval()
    before = n_hooks(model)
    assert resolve(model, "blocks.1.hook_attn_out").module_path == "model.layers.1.self_attn"
    assert Decoder(model).width == 16
    with torch.no_grad():
        adapted = run_to(model, ["blocks.1.hook_attn_out"], input_ids=IDS)["blocks.1.hook_attn_out"]
        assert not torch.equal(adapted, plain)
        clean = model(input_ids=IDS).logits
        with edit(model, "blocks.1.hook_resid_post", lambda acts, info: acts + info.token_index[..., None]):
            assert not torch.equal(model(input_ids=IDS).logits, clean)
            model.generate(input_ids=IDS, max_new_tokens=2, do_sample=False)
        assert torch.equal(model(input_ids=IDS).logits, clean)
    assert n_hooks(model) == before


@PEFT_WARNS
def test_learned_prompts_are_refused_for_edits():
    from peft import PromptTuningConfig, get_peft_model

    model = get_peft_model(llama(), PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3))
    with (
        pytest.raises(HookError, match="learned"),
        edit(model, "blocks.0.hook_resid_post", lambda acts, info: acts),
    ):
        pass


def multimodal(name: str) -> nn.Module:
    from transformers import (
        CLIPVisionConfig,
        Gemma3Config,
        Gemma3TextConfig,
        LlamaConfig,
        LlavaConfig,
        SiglipVisionConfig,
    )

    vision = {
        "hidden_size": 8,
        "intermediate_size": 8,
        "num_hidden_layers": 5,
        "num_attention_heads": 1,
        "image_size": 8,
        "patch_size": 4,
    }
    torch.manual_seed(0)
    if name == "llava":
        config = LlavaConfig(
            vision_config=CLIPVisionConfig(**vision), text_config=LlamaConfig(**GROUPED), image_token_index=39
        )
        return transformers.LlavaForConditionalGeneration(config).eval()
    config = Gemma3Config(
        vision_config=SiglipVisionConfig(**vision), text_config=Gemma3TextConfig(**HEADS),
        image_token_index=39,
        mm_tokens_per_image=4, boi_token_index=37, eoi_token_index=38,
    )  # fmt: skip
    return transformers.Gemma3ForConditionalGeneration(config).eval()


@pytest.mark.parametrize("name", ["llava", "gemma3"])
def test_the_language_model_inside_a_multimodal_one(name):
    model = multimodal(name)
    assert Decoder(model).path == "model.language_model.layers"  # three blocks; the vision tower has five
    assert Decoder(model).width == 16 and len(hook_points(model)) == 12
    with torch.no_grad():
        found = run_to(model, ["blocks.0.hook_resid_post"], input_ids=IDS)["blocks.0.hook_resid_post"]
        assert found.shape == (2, 5, 16)
        clean = model(input_ids=IDS).logits
        seen = []
        with edit(model, "blocks.0.hook_resid_post", lambda acts, info: seen.append(info) or acts * 1.5):
            assert not torch.equal(model(input_ids=IDS).logits, clean)
        assert torch.equal(seen[0].input_ids, IDS)
    assert n_hooks(model) == 0


def test_a_dispatched_model_keeps_its_placement():
    from accelerate import dispatch_model

    model = llama()
    with torch.no_grad():
        expected = run_to(model, ["blocks.1.hook_mlp_out"], input_ids=IDS)["blocks.1.hook_mlp_out"]
    model = dispatch_model(model, {"": "cpu"}, force_hooks=True)
    assert hasattr(model.model.layers[1], "_hf_hook") or hasattr(model, "_hf_hook")
    with torch.no_grad():
        assert torch.equal(
            run_to(model, ["blocks.1.hook_mlp_out"], input_ids=IDS)["blocks.1.hook_mlp_out"], expected
        )
    assert Decoder(model).device == torch.device("cpu")
    assert resolve(model, "blocks.1.hook_mlp_out").device(model) == torch.device("cpu")


def test_offloaded_weights_go_back_where_they_were():
    from accelerate import cpu_offload

    model = llama()
    with torch.no_grad():
        expected = run_to(model, ["blocks.1.hook_attn_out"], input_ids=IDS)["blocks.1.hook_attn_out"]
    fresh = llama()
    fresh.model.layers[1].loose = nn.Parameter(
        torch.zeros(1)
    )  # a weight of the block's own: accelerate holds the block
    model = cpu_offload(fresh, execution_device=torch.device("cpu"))
    assert all(parameter.device.type == "meta" for parameter in model.parameters())
    with torch.no_grad():
        assert torch.equal(
            run_to(model, ["blocks.1.hook_attn_out"], input_ids=IDS)["blocks.1.hook_attn_out"], expected
        )
    assert all(parameter.device.type == "meta" for parameter in model.parameters())
    assert resolve(model, "blocks.0.hook_resid_post").device(model) == torch.device("cpu")


@pytest.mark.long
@pytest.mark.parametrize("how", ["model.compile()", "model.forward = torch.compile(model.forward)"])
def test_a_model_compiled_in_place_is_refused_for_edits(how, gpt2):
    if how == "model.compile()":
        gpt2.compile(backend="eager")
    else:
        gpt2.forward = torch.compile(gpt2.forward, backend="eager")
    with (
        pytest.raises(HookError, match=r"before torch\.compile"),
        edit(gpt2, "blocks.0.hook_resid_post", lambda a, i: a),
    ):
        pass


def test_a_compiled_model_is_run_uncompiled_and_refused_for_edits():
    model = llama()
    compiled = torch.compile(model, backend="eager")
    assert torch.equal(
        run_to(compiled, ["blocks.0.hook_resid_post"], input_ids=IDS)["blocks.0.hook_resid_post"],
        run_to(model, ["blocks.0.hook_resid_post"], input_ids=IDS)["blocks.0.hook_resid_post"],
    )
    with (
        pytest.raises(HookError, match=r"before torch\.compile"),
        edit(compiled, "blocks.0.hook_resid_post", lambda a, i: a),
    ):
        pass


def test_a_data_parallel_model_is_the_one_inside():
    model = llama()
    wrapped = nn.DataParallel(model)
    assert resolve(wrapped, "blocks.1.hook_mlp_out").module_path == "model.layers.1.mlp"
    assert torch.equal(
        run_to(wrapped, ["blocks.0.hook_resid_post"], input_ids=IDS)["blocks.0.hook_resid_post"],
        run_to(model, ["blocks.0.hook_resid_post"], input_ids=IDS)["blocks.0.hook_resid_post"],
    )


@pytest.mark.filterwarnings(
    "ignore::DeprecationWarning", "ignore::UserWarning", "ignore::FutureWarning"
)  # torch.ao's own
def test_a_quantised_model():
    """torch's int8 linears stand in for bitsandbytes and the like: modules without parameters, whose outputs
    are floats."""
    model = torch.ao.quantization.quantize_dynamic(llama(), {nn.Linear}, dtype=torch.qint8)
    names = [f"blocks.1.hook_{kind}" for kind in KINDS]
    with torch.no_grad():
        resid_pre, attn_out, mlp_out, resid_post = run_to(model, names, input_ids=IDS).values()
        torch.testing.assert_close(resid_pre + attn_out + mlp_out, resid_post)
        clean = model(IDS).logits
        with edit(model, "blocks.1.hook_mlp_out", lambda acts, info: acts * 2.0):
            assert not torch.equal(model(IDS).logits, clean)
    assert n_hooks(model) == 0 and Decoder(model).width == 16
