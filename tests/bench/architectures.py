"""Sweep: every causal-LM class of transformers that can be built tiny, at four points of a middle block.

What `hook_points`, `run_to`, `capture`, `edit` and `harvest_activations` give is compared with references
outside the package: transformers' hidden states, a plain hook, the model on one unpadded text. Each class has
a process of its own, forked from one that has loaded the libraries.

    .venv/bin/python tests/bench/architectures.py --json sweep.jsonl       resumes where it was stopped
    .venv/bin/python tests/bench/architectures.py --json sweep.jsonl --table     writes harvest's README
    .venv/bin/python tests/bench/architectures.py --only llama,gpt2

Verdicts: ok (all four points), partial (the residual points right, the inner two refused by reason), refusal
(an error that names the cause, before any row), wrong, crash (another exception), unbuilt (no tiny
configuration found). It exits 0 when no class is wrong or crashes.
"""

# ruff: noqa: B023, C408, SIM102
import argparse
import contextlib
import json
import multiprocessing
import os
import re
import sys
import time
import traceback
import warnings
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")

context = multiprocessing.get_context("fork")

LAYERS, WIDTH, HEADS, KV, FF, VOCAB = 4, 32, 4, 2, 48, 96

SMALL = dict(
    vocab_size=VOCAB,
    hidden_size=WIDTH,
    num_hidden_layers=LAYERS,
    num_attention_heads=HEADS,
    num_key_value_heads=KV,
    intermediate_size=FF,
    max_position_embeddings=128,
    head_dim=8,
    bos_token_id=1,
    eos_token_id=2,
    pad_token_id=0,
    d_model=WIDTH,
    decoder_layers=LAYERS,
    decoder_attention_heads=HEADS,
    decoder_ffn_dim=FF,
    encoder_layers=1,
    encoder_attention_heads=HEADS,
    encoder_ffn_dim=FF,
    n_layer=LAYERS,
    n_head=HEADS,
    n_embd=WIDTH,
    n_positions=128,
    n_layers=LAYERS,
    n_heads=HEADS,
    num_layers=LAYERS,
    num_heads=HEADS,
    ffn_dim=FF,
    max_seq_len=128,
    n_ctx=128,
    dff=FF,
    num_experts=4,
    num_experts_per_tok=2,
    moe_intermediate_size=16,
    n_routed_experts=4,
    num_local_experts=4,
    moe_num_experts=4,
    moe_topk=2,
    moe_k=2,
    num_experts_per_token=2,
    n_group=1,
    topk_group=1,
    num_expert_group=1,
    n_shared_experts=1,
    num_shared_experts=1,
    shared_expert_intermediate_size=16,
    shared_intermediate_size=16,
    expert_ffn_hidden_size=16,
    kv_lora_rank=16,
    q_lora_rank=16,
    qk_rope_head_dim=4,
    qk_nope_head_dim=4,
    v_head_dim=8,
    first_k_dense_replace=1,
    sliding_window=16,
    window_size=16,
    layer_norm_eps=1e-5,
    rotary_dim=4,
    mamba_d_state=8,
    mamba_n_heads=8,
    mamba_d_head=8,
    mamba_n_groups=1,
    mamba_chunk_size=8,
    mamba_d_ssm=64,
    mamba_dt_rank=4,
    state_size=8,
    time_step_rank=4,
    chunk_size=8,
    linear_num_key_heads=2,
    linear_num_value_heads=2,
    linear_key_head_dim=8,
    linear_value_head_dim=8,
    linear_num_heads=4,
    linear_head_dim=8,
    index_head_dim=8,
    index_n_heads=16,
    index_topk=8,
    hidden_size_per_layer_input=8,
    vocab_size_per_layer_input=VOCAB,
    laurel_rank=4,
    embedding_size=WIDTH,
    word_embed_proj_dim=WIDTH,
    type_vocab_size=2,
    attention_hidden_size=WIDTH,
    ffn_hidden_size=FF,
    num_kv_heads=KV,
    max_window_layers=2,
    original_max_position_embeddings=128,
    intermediate_size_mlp=FF,
    attention_chunk_size=16,
    swa_num_attention_heads=HEADS,
    swa_num_key_value_heads=KV,
    swa_head_dim=8,
    sliding_window_size=16,
    d_rel=4,
    rel_extent=16,
    kv_channels=8,
    block_multiple_of=8,
    local_attention=16,
    dim_head=8,
    dim_ff=FF,
    emb_dim=WIDTH,
    lru_width=WIDTH,
    attention_window_size=16,
    query_pre_attn_scalar=8,
    model_max_length=128,
    max_target_positions=128,
    max_source_positions=64,
    global_head_dim=8,
    use_cache=False,
    decoder_start_token_id=2,
    image_token_id=90,
    video_token_id=91,
    audio_token_id=92,
    dense_intermediate_size=FF,
    layerdrop=0.0,
    decoder_layerdrop=0.0,
    num_attention_layers=LAYERS,
    decoder_vocab_size=VOCAB,
    num_nextn_predict_layers=0,
    num_layers_per_stack=LAYERS,
    q_lora_dim=16,
    router_hidden_size=16,
    unpadded_vocab_size=VOCAB,
    is_decoder=True,
    add_cross_attention=False,
    is_encoder_decoder=False,
    partial_rotary_factor=0.5,
    conv_kernel=4,
    mamba_num_heads=8,
    mamba_head_dim=8,
    ssm_state_size=8,
    n_groups=1,
    moe_shared_expert_intermediate_size=16,
    moe_latent_size=None,
    n_mamba_heads=2,
    max_seq_length=128,
)

VISION = dict(
    hidden_size=16,
    intermediate_size=16,
    num_hidden_layers=5,
    num_attention_heads=2,
    image_size=8,
    patch_size=4,
)

# what the generic values do not fit
OVER = {
    "gpt_neo": dict(attention_types=[[["global", "local"], LAYERS // 2]], intermediate_size=FF),
    "deepseek_v2": dict(num_key_value_heads=HEADS, head_dim=4, first_k_dense_replace=1),
    "deepseek_v3": dict(num_key_value_heads=HEADS, head_dim=4),
    "axk1": dict(num_key_value_heads=HEADS, head_dim=4),
    "youtu": dict(num_key_value_heads=HEADS, head_dim=4),
    "minicpm3": dict(num_key_value_heads=HEADS, head_dim=None),
    "longcat_flash": dict(head_dim=4, zero_expert_num=2),
    "glm4_moe_lite": dict(num_key_value_heads=HEADS, head_dim=4),
    "glm_moe_dsa": dict(num_key_value_heads=HEADS, head_dim=4),
    "deepseek_v32": dict(num_key_value_heads=HEADS, head_dim=4),
    "deepseek_v4": dict(num_key_value_heads=1, o_groups=2, o_lora_rank=8, qk_rope_head_dim=4, head_dim=8),
    "reformer": dict(
        attn_layers=["local", "lsh", "local", "lsh"],
        axial_pos_shape=[8, 16],
        axial_pos_embds_dim=[16, 16],
        local_attn_chunk_length=8,
        lsh_attn_chunk_length=8,
        num_buckets=2,
        feed_forward_size=FF,
        attention_head_size=8,
        hash_seed=0,
    ),
    "zamba": dict(
        layers_block_type=["linear_attention", "hybrid", "linear_attention", "hybrid"],
        attn_layer_period=2,
        attn_layer_offset=1,
        n_mamba_heads=2,
        attention_hidden_size=64,
        attention_head_dim=16,
        num_key_value_heads=HEADS,
    ),
    "zamba2": dict(
        num_key_value_heads=HEADS,
        layers_block_type=["mamba", "hybrid", "mamba", "hybrid"],
        n_mamba_heads=8,
        mamba_headdim=8,
        mamba_ngroups=1,
        num_mem_blocks=1,
        kv_channels=8,
        attention_hidden_size=64,
        attention_head_dim=16,
    ),
    "mamba2": dict(num_heads=8, head_dim=8, n_groups=1),
    "bert": {},
    "xlm": dict(emb_dim=WIDTH, n_langs=1, causal=True),
    "prophetnet": dict(num_decoder_layers=LAYERS, num_decoder_attention_heads=HEADS),
    "bloom": {},
    "mpt": dict(expansion_ratio=2),
    "xlstm": dict(embedding_dim=WIDTH, num_blocks=LAYERS, qk_dim_factor=0.5, v_dim_factor=1.0),
    "recurrent_gemma": dict(block_types=["recurrent", "attention"]),
    "xlnet": dict(d_inner=FF),
    "cpmant": {},
    "openai-gpt": {},
    "rwkv": dict(context_length=128),
    "git": dict(vision_config=dict(VISION)),
    "xmod": dict(languages=["en_XX"], default_language="en_XX"),
    "big_bird": dict(attention_type="original_full"),
    "bigbird_pegasus": dict(attention_type="original_full"),
    "minimax": dict(block_size=8),
    "falcon": dict(num_kv_heads=HEADS),
    "laguna": dict(num_attention_heads_per_layer=[HEADS] * LAYERS),
    "lfm2": dict(full_attn_idxs=None),
    "roc_bert": dict(enable_pronunciation=False, enable_shape=False),
    "cohere_compass_text": dict(
        layer_types=["sliding_attention", "full_attention"] * 2,
        rope_parameters={
            k: dict(rope_type="default", rope_theta=1e4, mrope_section=[1, 1, 2])
            for k in ("sliding_attention", "full_attention")
        },
    ),
    "zaya": dict(num_experts_per_tok=1),
    "qwen4_exp_text": dict(
        hc_lowrank=8,
        ple_layer_ids=[1],
        ple_embed_dim=16,
        ngram_vocab_size_base=200,
        split_ngram_parts=4,
        heads_per_ngram=2,
        make_ngram_vocab_size_divisible_by=8,
        indexer_n_heads=2,
        indexer_kv_heads=1,
        indexer_head_dim=8,
        indexer_budget=8,
        indexer_compress_ratio=2,
        layer_types=["linear_attention", "full_attention"] * 2,
    ),
    "phi4_multimodal": dict(
        vision_config=dict(
            hidden_size=16,
            intermediate_size=16,
            num_hidden_layers=2,
            num_attention_heads=2,
            image_size=16,
            patch_size=8,
            crop_size=16,
        ),
        audio_config=dict(
            hidden_size=16,
            intermediate_size=16,
            num_blocks=1,
            num_attention_heads=2,
            input_size=8,
            time_reduction=4,
            nemo_conv_channels=8,
            ext_pw_out_channel=16,
            depthwise_separable_out_channel=16,
        ),
    ),
    "lfm2_moe": dict(layer_types=["conv", "full_attention"] * 2, num_dense_layers=1),
    "moshi": dict(num_codebooks=2),
    "blt": None,
    "gemma3n_text": dict(num_kv_shared_layers=0, activation_sparsity_pattern=None),
    "gemma4_text": dict(num_kv_shared_layers=0),
    "afmoe": dict(num_dense_layers=1, num_key_value_heads=KV),
    "hunyuan_v1_moe": dict(num_experts=4, moe_topk=2),
    "dbrx": dict(
        attn_config=dict(kv_n_heads=KV, clip_qkv=8.0, rope_theta=1e4),
        ffn_config=dict(ffn_hidden_size=16, moe_num_experts=4, moe_top_k=2, hidden_size=WIDTH),
    ),
}


def accepted(cls):
    import dataclasses
    import inspect

    names = set(getattr(cls, "attribute_map", {}) or {})
    with contextlib.suppress(TypeError):
        names |= {field.name for field in dataclasses.fields(cls)}
    for base in cls.__mro__:
        names |= set(getattr(base, "__annotations__", {}))
    names |= set(inspect.signature(cls.__init__).parameters)
    return names


def shrunk(cls, extra=None):
    """A tiny configuration of a text class; list-valued per-layer fields are cut to LAYERS."""
    names = accepted(cls)
    values = {k: v for k, v in SMALL.items() if k in names}
    default = cls()
    for key, value in default.to_dict().items():
        if key.startswith("_") or key in values or key not in names:
            continue
        if (
            isinstance(value, list)
            and len(value) > LAYERS
            and key.endswith(("layers", "types", "type", "pattern", "per_layer", "theta", "layer"))
        ):
            start = 0
            values[key] = (
                value[start : start + LAYERS]
                if len(set(map(str, value[:LAYERS]))) > 1 or len(set(map(str, value))) == 1
                else (
                    value[: LAYERS - 2]
                    + list(dict.fromkeys(map(str, value)))[:0]
                    + [next(v for v in value if str(v) != str(value[0])), value[0]]
                )
            )
    values.update(extra or {})
    return dict(values.items()), default


def attempts(kind, cls):
    over = OVER.get(kind) or {}
    values, _default = shrunk(cls, over)
    yield values
    for drop in (
        ["head_dim"],
        ["pad_token_id", "bos_token_id", "eos_token_id"],
        ["partial_rotary_factor"],
        ["layer_types"],
        ["is_encoder_decoder", "is_decoder", "add_cross_attention"],
        ["num_key_value_heads"],
        ["rotary_dim"],
        ["first_k_dense_replace"],
        ["mlp_layer_types"],
        ["hidden_size_per_layer_input"],
        ["layer_types", "mlp_layer_types"],
        ["head_dim", "num_key_value_heads"],
        ["head_dim", "partial_rotary_factor"],
    ):
        yield {k: v for k, v in values.items() if k not in drop or k in over}
    yield {k: v for k, v in values.items() if not isinstance(v, list)}


def build(kind):
    import torch
    import transformers
    from torch import nn
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES as NAMES

    config_class, model_class = CONFIG_MAPPING[kind], getattr(transformers, NAMES[kind])
    errors = []
    try:
        candidates = (
            list(SPECIAL[kind](config_class)) if kind in SPECIAL else list(attempts(kind, config_class))
        )
    except Exception as error:
        return None, f"config: {error!r}"[:300]
    for values in candidates:
        try:
            torch.manual_seed(0)
            config = values if not isinstance(values, dict) else config_class(**values)
            text = config.get_text_config(decoder=True)
            if not isinstance(config, model_class.config_class) and isinstance(
                text, model_class.config_class
            ):
                config = text  # as AutoModelForCausalLM does
            if getattr(text, "num_hidden_layers", LAYERS) > 12:
                raise ValueError(f"still {text.num_hidden_layers} layers")
            with torch.device("meta"):
                model = model_class(config)
            size = sum(p.numel() for p in model.parameters())
            if size > 30_000_000:
                raise ValueError(f"still {size:,} parameters")
            torch.manual_seed(0)
            model = model_class(config).eval().float()
            torch.manual_seed(1)
            state = {k: v.clone() for k, v in model.state_dict().items()}
            for _name, parameter in model.named_parameters():
                if parameter.ndim > 1:
                    nn.init.normal_(parameter, std=0.25)
            ids = torch.tensor([[1, 5, 9, 33, 7, 12, 40, 3]])
            with torch.no_grad():
                logits = run(model, ids)
                if not torch.isfinite(logits).all():
                    model.load_state_dict(state)
                    logits = run(model, ids)
            if not torch.isfinite(logits).all():
                raise ValueError("logits are not finite")
            return model, ""
        except Exception as error:
            errors.append(f"{type(error).__name__}: {str(error)[:160]}")
    return None, " | ".join(list(dict.fromkeys(errors))[:3])


def text_of(cls_kwargs):
    return cls_kwargs


def _composite(text_kind, **more):
    def make(cls):
        from transformers.models.auto.configuration_auto import CONFIG_MAPPING

        sub = cls.sub_configs
        text_cls = sub["text_config"]
        if not hasattr(text_cls, "to_dict") or text_cls.__name__ in ("AutoConfig",):
            text_cls = CONFIG_MAPPING[text_kind]
        for values in attempts(text_kind, text_cls):
            try:
                text = text_cls(**values)
            except Exception:
                continue
            kwargs = dict(text_config=text, **more)
            if "vision_config" in more and isinstance(more["vision_config"], str):
                kwargs["vision_config"] = CONFIG_MAPPING[more["vision_config"]](**dict(VISION.items()))
            elif "vision_config" in sub and "vision_config" not in more:
                vc = sub["vision_config"]
                if vc.__name__ != "AutoConfig":
                    names = accepted(vc)
                    small = dict(
                        hidden_size=16,
                        intermediate_size=16,
                        num_hidden_layers=2,
                        num_attention_heads=2,
                        image_size=8,
                        patch_size=4,
                        depth=2,
                        num_heads=2,
                        out_hidden_size=WIDTH,
                        embed_dim=16,
                        mlp_dim=16,
                        output_channels=8,
                        window_size=2,
                        global_attn_indexes=[1],
                        num_global_layers=1,
                        attention_heads=2,
                        vision_output_dim=16,
                        head_dim=8,
                        num_key_value_heads=2,
                        intermediate_layers_indices=[0, 1],
                        projector_input_dim=16,
                        projector_output_dim=16,
                        num_channels=3,
                        supported_aspect_ratios=[[1, 1]],
                        num_position_embeddings=16,
                        deepstack_visual_indexes=[1],
                    )
                    kwargs["vision_config"] = {k: v for k, v in small.items() if k in names}
            yield cls(**kwargs)

    return make


def _musicgen(cls):
    from transformers import MusicgenDecoderConfig, MusicgenMelodyDecoderConfig

    d = (MusicgenMelodyDecoderConfig if "Melody" in cls.__name__ else MusicgenDecoderConfig)(
        vocab_size=VOCAB,
        num_hidden_layers=LAYERS,
        hidden_size=WIDTH,
        num_attention_heads=HEADS,
        ffn_dim=FF,
        num_codebooks=1,
        max_position_embeddings=128,
        pad_token_id=0,
        bos_token_id=1,
    )
    yield d


def _blt(cls):
    tiny = dict(
        vocab_size=VOCAB,
        hidden_size=WIDTH,
        num_hidden_layers=2,
        num_attention_heads=HEADS,
        num_key_value_heads=HEADS,
        intermediate_size=FF,
        max_position_embeddings=128,
    )
    yield dict(
        vocab_size=VOCAB,
        max_position_embeddings=128,
        patch_in_forward=False,
        patch_size=4,
        encoder_hash_byte_group_vocab=50,
        patcher_config=dict(tiny),
        encoder_config=dict(tiny, hidden_size_global=WIDTH, num_hidden_layers=1),
        decoder_config=dict(tiny, hidden_size_global=WIDTH),
        global_config=dict(tiny, num_hidden_layers=LAYERS),
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=0,
    )


SPECIAL = {
    "gemma3": _composite(
        "gemma3_text",
        vision_config="siglip_vision_model",
        image_token_index=90,
        boi_token_index=91,
        eoi_token_index=92,
        mm_tokens_per_image=4,
    ),
    "gemma3n": _composite("gemma3n_text"),
    "gemma4": _composite("gemma4_text"),
    "gemma4_unified": _composite("gemma4_unified_text"),
    "emu3": _composite("llama"),
    "llama4": _composite("llama4_text"),
    "got_ocr2": _composite("qwen2", image_token_index=90),
    "mllama": _composite("mllama_text_model"),
    "qwen3_5": _composite("qwen3_5_text"),
    "qwen3_5_moe": _composite("qwen3_5_moe_text"),
    "qwen4_exp": _composite("qwen4_exp_text"),
    "fuyu": _composite("persimmon"),
    "dots3_note": _composite("dots3_note_text"),
    "moss_transcribe_diarize": _composite("qwen3"),
    "musicgen": _musicgen,
    "musicgen_melody": _musicgen,
    "blt": _blt,
}


def run(model, ids, **more):
    import inspect

    kwargs = dict(more)
    if "use_cache" in inspect.signature(type(model).forward).parameters:
        kwargs["use_cache"] = False
    out = model(input_ids=ids, **kwargs)
    return out.logits if hasattr(out, "logits") else out[0]


def main_tensor(output):
    return output[0] if isinstance(output, (tuple, list)) else output


def same(a, b, tol=0.0):
    import torch

    if a.shape != b.shape:
        return f"shape {list(a.shape)} / {list(b.shape)}"
    if torch.equal(a, b):
        return ""
    gap = (a - b).abs().max().item()
    scale = b.abs().max().item()
    return "" if gap <= tol * max(scale, 1e-6) else f"max diff {gap:.2g} of {scale:.2g}"


def blocks_of(model):
    from saelens_lite.lm.decoder import Decoder

    return Decoder(model).path, Decoder(model).layers


def child(kind):
    warnings.filterwarnings("ignore")
    import torch

    torch.set_num_threads(1)
    report = {"kind": kind, "notes": [], "wrong": [], "crash": [], "refused": []}
    model, why = build(kind)
    if model is None:
        report["verdict"], report["why"] = "unbuilt", why
        return report
    report["model"] = type(model).__name__
    from saelens_lite.errors import HookError
    from saelens_lite.lm import hooks

    wrong, notes, crash, refused = report["wrong"], report["notes"], report["crash"], report["refused"]
    ids = torch.tensor([[1, 5, 9, 33, 7, 12, 40, 3], [1, 8, 4, 4, 20, 61, 2, 30]])
    clear = (HookError, ValueError)

    def tried(what, fn):
        try:
            return fn()
        except clear as error:
            refused.append(f"{what}: {str(error)[:300]}")
        except Exception as error:
            crash.append(
                f"{what}: {type(error).__name__}: {str(error)[:200]} @ "
                f"{traceback.extract_tb(error.__traceback__)[-1].name}"
            )

    with torch.no_grad():
        path_layers = tried("decoder_layers", lambda: blocks_of(model))
        if path_layers is None:
            report["verdict"] = "refusal" if refused else "crash"
            return report
        path, layers = path_layers
        report["path"], report["n"] = path, len(layers)
        text = model.config.get_text_config(decoder=True)
        stated = getattr(text, "num_hidden_layers", None)
        if stated is not None and stated != len(layers):
            notes.append(f"config says {stated} layers, blocks are {len(layers)} ({path})")
        names = tried("hook_points", lambda: hooks.hook_points(model))
        if names is None:
            report["verdict"] = "refusal" if refused else "crash"
            return report
        report["kinds"] = sorted({n.split(".")[-1] for n in names})
        middle = max(1, len(layers) // 2) if len(layers) > 2 else 0
        report["middle"] = middle
        # references
        block = layers[middle]
        seen = {"in": [], "out": []}

        h1 = block.register_forward_pre_hook(
            lambda m, a, k: seen["in"].append(a[0] if a else k.get("hidden_states")), with_kwargs=True
        )
        h2 = block.register_forward_hook(lambda m, a, o: seen["out"].append(main_tensor(o)))
        clean = run(model, ids)
        h1.remove(), h2.remove()
        if len(seen["out"]) != 1:
            notes.append(f"block {middle} runs {len(seen['out'])} times a forward")
        hs = None
        try:
            out = model(input_ids=ids, output_hidden_states=True, use_cache=False) if hooks else None
            hs = getattr(out, "hidden_states", None) or getattr(out, "decoder_hidden_states", None)
        except Exception as error:
            notes.append(f"output_hidden_states: {type(error).__name__}")
        if hs is None:
            notes.append("no hidden_states from the model")
        elif len(hs) != len(layers) + 1:
            notes.append(f"{len(hs)} hidden_states for {len(layers)} blocks")
        # read
        points = [f"blocks.{middle}.hook_{k}" for k in ("resid_pre", "attn_out", "mlp_out", "resid_post")]
        got = {}
        for p in points:
            found = tried(f"run_to {p}", lambda p=p: hooks.run_to(model, [p], input_ids=ids)[p])
            if found is not None:
                got[p] = found
        pre, attn, mlp, post = (got.get(p) for p in points)
        if seen["in"] and pre is not None and isinstance(seen["in"][0], torch.Tensor):
            if d := same(pre, seen["in"][0]):
                wrong.append(f"resid_pre is not the block's input: {d}")
        if seen["out"] and post is not None and isinstance(seen["out"][0], torch.Tensor):
            if d := same(post, seen["out"][0]):
                wrong.append(f"resid_post is not the block's output: {d}")
        if hs is not None and len(hs) == len(layers) + 1:
            for label, value, ref in (
                ("resid_pre", pre, hs[middle]),
                ("resid_post", post, hs[middle + 1] if middle + 1 < len(layers) else None),
            ):
                if value is not None and ref is not None:
                    if d := same(value, ref):
                        where = [
                            j for j, h in enumerate(hs) if h.shape == value.shape and torch.equal(h, value)
                        ]
                        place = middle + (label == "resid_post")
                        notes.append(f"{label} is not hidden_states[{place}] ({d}), but {where}")
        if post is not None and middle + 1 < len(layers):
            nxt = tried(
                "next resid_pre",
                lambda: hooks.run_to(model, [f"blocks.{middle + 1}.hook_resid_pre"], input_ids=ids),
            )
            if nxt is not None:
                if d := same(next(iter(nxt.values())), post):
                    wrong.append(f"resid_pre(i+1) is not resid_post(i): {d}")
        if all(v is not None for v in (pre, attn, mlp, post)):
            if pre.shape == attn.shape == mlp.shape == post.shape:
                if d := same(pre + attn + mlp, post, 2e-6 * 8):
                    wrong.append(f"pre + attn + mlp is not post: {d}")
                for label, v in (("attn_out", attn), ("mlp_out", mlp)):
                    if v.abs().max() < 1e-4 * pre.abs().max():
                        notes.append(
                            f"{label} is about zero ({v.abs().max():.1e} beside {pre.abs().max():.1e})"
                        )
            else:
                wrong.append(f"shapes {[list(v.shape) for v in (pre, attn, mlp, post)]}")
        for label, v in (("resid_pre", pre), ("resid_post", post)):
            if v is not None and (v.ndim != 3 or tuple(v.shape[:2]) != tuple(ids.shape)):
                notes.append(f"{label} has shape {list(v.shape)} for ids {list(ids.shape)}")
        usable = list(got)
        if usable:

            def captured():
                with hooks.capture(model, usable) as found:
                    logits = run(model, ids)
                return dict(found), logits

            both = tried("capture", captured)
            if both is not None:
                found, logits = both
                if d := same(logits, clean):
                    wrong.append(f"capture changes logits: {d}")
                for p in usable:
                    if p not in found:
                        wrong.append(f"capture has no {p}")
                    elif d := same(found[p], got[p]):
                        wrong.append(f"truncated forward is not the full one at {p}: {d}")
        # edits
        for p in usable:

            def noop(fn):
                with hooks.edit(model, p, fn):
                    return run(model, ids)

            for label, fn in (("acts", lambda a, i: a), ("clone", lambda a, i: a.clone())):
                logits = tried(f"no-op edit {p}", lambda: noop(fn))
                if logits is not None and (d := same(logits, clean)):
                    wrong.append(f"no-op edit ({label}) at {p} changes logits: {d}")
            bump = torch.randn(got[p].shape[-1], generator=torch.Generator().manual_seed(3))
            logits = tried(f"edit {p}", lambda: noop(lambda a, i: a + bump))
            if logits is not None and logits.shape == clean.shape and torch.equal(logits, clean):
                wrong.append(f"an edit at {p} does nothing")
            if p.endswith(("attn_out", "mlp_out")) and post is not None:

                def moved():
                    with (
                        hooks.edit(model, p, lambda a, i: a + bump),
                        hooks.capture(model, [points[3]]) as found,
                    ):
                        run(model, ids)
                    return found[points[3]]

                m = tried(f"edit {p} seen at resid_post", moved)
                if m is not None and torch.equal(m, post):
                    wrong.append(f"an edit at {p} leaves resid_post as it was")
        # a harvest: rows of the store against the model run on each context alone, without padding
        if pre is not None or post is not None:
            tried("harvest", lambda: harvest(model, [p for p in points if p in got], wrong, notes, report))
    inner = [p for p in points if p.endswith(("attn_out", "mlp_out"))]
    inner_refused = all(p not in got for p in inner) and any("hook_attn_out" in r for r in refused)
    resid_ok = all(p in got for p in points if p not in inner)
    hard = [r for r in refused if not any(f"run_to {p}" in r for p in inner)]
    report["verdict"] = (
        "wrong"
        if wrong
        else "crash"
        if crash
        else "refusal"
        if hard
        else "partial"
        if inner_refused and resid_ok
        else "ok"
        if len(got) == 4
        else "odd"
    )
    if report["verdict"] == "partial":
        with torch.no_grad():
            report["because"] = why_partial(model, block, ids)
    return report


def why_partial(model, block, ids):
    """What the direct parts of a block say about why no two of them add up to its change."""
    import torch

    given, streams = {}, []
    handles = [
        part.register_forward_hook(
            lambda m, a, o, name=name: given.setdefault(name, []).append(main_tensor(o))
        )
        for name, part in block.named_children()
    ]
    handles.append(block.register_forward_hook(lambda m, a, o: streams.append(main_tensor(o))))
    run(model, ids)
    for handle in handles:
        handle.remove()
    (after,) = streams
    norms = {name for name, part in block.named_children() if type(part).__name__.endswith("Norm")}
    wide = {
        name
        for name, outs in given.items()
        if isinstance(outs[0], torch.Tensor) and outs[0].numel() == after.numel()
    }
    ends = {name for name in wide if torch.equal(given[name][-1].view_as(after), after)}
    if ends:
        return (
            "the stream is normalised after the sum" if ends & norms else "a part returns the stream itself"
        )
    kinds = dict(block.named_children())
    adding = {name for name in wide - norms if not isinstance(kinds[name], torch.nn.Dropout)}
    if len(adding) < 2:
        return "a block has one part, or its parts are not direct children"
    return "branches are scaled, more than two, or none takes an attention mask"


REFUSED = {
    "do not feed each other|no decoder found": "no list whose members run once and feed each other",
    "never ran": "text alone skips a block",
    "edits expected activations": "the stream is not [batch seq d_model]: harvests and edits are refused",
}
OUTCOMES = {
    "ok": "right at all four points",
    "partial": "right at the residual points",
    "refusal": "refused",
    "unbuilt": "not built tiny",
    "wrong": "wrong",
    "odd": "wrong",
    "crash": "crashing",
    "died": "crashing",
    "timeout": "crashing",
}


def reason(found):
    """Why a class is not right at all four points, in a clause."""
    if found["verdict"] == "partial":
        return found["because"]
    told = " ".join(found.get("refused", [])) if found["verdict"] == "refusal" else ""
    return next((why for pattern, why in REFUSED.items() if re.search(pattern, told)), "")


def table(results):
    """Markdown: a row for each outcome and reason, with the classes."""
    rows = {}
    for found in results:
        rows.setdefault((OUTCOMES[found["verdict"]], reason(found)), []).append(found["kind"])
    order = list(dict.fromkeys(OUTCOMES.values()))
    lines = ["| outcome | reason | classes | names |", "|---|---|---|---|"]
    for (outcome, why), kinds in sorted(rows.items(), key=lambda row: (order.index(row[0][0]), -len(row[1]))):
        lines.append(f"| {outcome} | {why} | {len(kinds)} | {', '.join(sorted(kinds))} |")
    return "\n".join(lines) + "\n"


def write_table(results):
    """Put the table between its marks in harvest's README."""
    readme = Path(__file__).parents[2] / "harvest" / "README.md"
    before, start, rest = readme.read_text().partition("<!-- sweep -->\n")
    _, end, after = rest.partition("<!-- end of sweep -->")
    assert start and end, "harvest's README has marks around the table"
    readme.write_text(before + start + table(results) + end + after)


def tokenizer_of(vocab):
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = {f"w{i}": i for i in range(vocab)}
    words["<pad>"], words["<s>"], words["</s>"] = 0, 1, 2
    for k in ("w0", "w1", "w2"):
        words.pop(k)
    t = Tokenizer(models.WordLevel(words, unk_token="w3"))
    t.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=t, bos_token="<s>", eos_token="</s>", pad_token="<pad>")


def harvest(model, points, wrong, notes, report):
    import random
    import tempfile

    import saelens_lite as sl
    from saelens_lite.lm.decoder import Decoder

    vocab = min(VOCAB, Decoder(model).embedding.num_embeddings)
    tok = tokenizer_of(min(vocab, 88))
    rng = random.Random(0)
    docs = [
        " ".join(f"w{rng.randrange(5, min(vocab, 88))}" for _ in range(rng.choice([3, 9, 14, 30])))
        for _ in range(7)
    ]
    with tempfile.TemporaryDirectory() as folder:
        store = sl.harvest_activations(
            model,
            docs,
            points,
            f"{folder}/store",
            max_tokens=10_000,
            tokenizer=tok,
            context_length=16,
            batch_size_seqs=3,
            dtype="float32",
            progress=False,
            documents_per_shard=64,
            check_space=False,
        )
        for p in points:
            tokens = store.tokens(0)
            rows = store.acts(0, p).float()
            at = 0
            worst = ""
            for s in range(tokens.input_ids.shape[0]):
                real = int(tokens.attended[s].sum())
                ids = tokens.input_ids[s, :real].long()[None]
                layers = dict(model.named_modules())[report["path"]]
                layers[report["middle"]]
                from saelens_lite.lm import hooks

                alone = hooks.run_to(model, [p], input_ids=ids)[p][0]
                kept = tokens.kept[s, :real].bool()
                n = int(kept.sum())
                d = same(rows[at : at + n], alone[kept].float(), 1e-4)
                if d and not worst:
                    worst = f"context {s} of {len(tokens.input_ids)} ({real} of {len(ids[0])} tokens): {d}"
                at += n
            if worst:
                wrong.append(f"stored rows of {p} are not those of the context alone: {worst}")
    report["harvested"] = True


def apart(kind, limit_s=180):
    """The report of a class, from a process of its own: one that dies takes no other with it."""
    ours, theirs = context.Pipe(duplex=False)

    def tell():
        theirs.send(child(kind))

    process = context.Process(target=tell)
    process.start()
    theirs.close()
    try:
        if not ours.poll(limit_s):
            return {"kind": kind, "verdict": "timeout"}
        return ours.recv()
    except EOFError:
        process.join()
        return {"kind": kind, "verdict": "died", "why": f"exit code {process.exitcode}"}
    finally:
        process.kill()
        process.join()


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--only", default="")
    parser.add_argument(
        "--json", default="sweep.jsonl", help="a line for each class; those there are not run again"
    )
    parser.add_argument("--table", action="store_true", help="write the table in harvest/README.md")
    args = parser.parse_args()
    # once, for the processes that are forked from this one
    import torch
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES as NAMES

    torch.set_num_threads(1)
    child("gpt2")  # loads what every class needs
    file = Path(args.json)
    lines = file.read_text().splitlines() if file.exists() else []
    results = {found["kind"]: found for found in map(json.loads, lines)}
    kinds = args.only.split(",") if args.only else list(NAMES)
    for kind in kinds:
        if kind in results:
            continue
        began = time.time()
        found = apart(kind)
        results[kind] = found | {"seconds": round(time.time() - began, 1)}
        with file.open("a") as out:
            out.write(json.dumps(results[kind]) + "\n")
        why = [found.get("why", "")[:150], *found.get("wrong", [])[:2], *found.get("crash", [])[:2]]
        print(found["verdict"], kind, *filter(None, why), sep=" · ", flush=True)
    count = {}
    for kind in kinds:
        count.setdefault(results[kind]["verdict"], []).append(kind)
    for verdict, those in count.items():
        print(f"{verdict} {len(those)}: {', '.join(those)}")
    if args.table:
        write_table([results[kind] for kind in kinds])
    return int(any(verdict not in ("ok", "partial", "refusal", "unbuilt") for verdict in count))


if __name__ == "__main__":
    sys.exit(main())
