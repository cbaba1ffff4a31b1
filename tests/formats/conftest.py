"""Golden folders of foreign formats, written by their published definitions, each beside a forward pass of
its own in float64, of the same tensors by the same definition."""

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from saelens_lite.sae.any_kind import load_any
from saelens_lite.sae.config import Target

D, N, K = 12, 32, 4
D_OUT = 10
MARGIN = 1e-3

Answer = tuple[torch.Tensor, torch.Tensor, torch.Tensor]
"""latents [rows, N], recons [rows, D], and how far each row is from a tie at threshold or k-th value"""


@dataclass
class Golden:
    """folder: of the SAE inside the format's own folders; forward: float64 rows to an Answer"""

    format: str
    folder: Path
    forward: Callable[[torch.Tensor], Answer]
    rows: torch.Tensor = field(default_factory=lambda: torch.empty(0))
    facts: dict = field(default_factory=dict)

    def load(self, **options):
        return load_any(self.folder, **options)


CASES: dict[str, Callable] = {}


def case(format: str, where: str = "", **facts):
    """A writer of one golden folder: it takes folder and generator, and returns the forward pass."""

    def register(write):
        CASES[write.__name__] = (format, where, facts, write)
        return write

    return register


def relu(pre):
    return pre.relu(), torch.full(pre.shape[:1], torch.inf)


def jumprelu(pre, threshold, gate=None):
    gate = pre if gate is None else gate
    return pre.relu() * (gate > threshold), (gate - threshold).abs().amin(-1)


def topk(pre, k=K):
    largest, at = pre.relu().topk(k + 1)
    kept = torch.zeros_like(pre).scatter(-1, at[:, :k], largest[:, :k])
    gap = torch.where(largest[:, k] > 0, largest[:, k - 1] - largest[:, k], torch.inf)
    return kept, gap


def gated(gate, magnitude):
    return magnitude.relu() * (gate > 0), gate.abs().amin(-1)


def normal(generator, *shape, scale=0.5):
    return torch.randn(*shape, generator=generator) * scale


def weights(generator):
    """Float32: W_enc [D, N], b_enc [N], W_dec [N, D] with rows of unlike norms, b_dec [D]."""
    norms = 0.5 + 2 * torch.rand(N, 1, generator=generator)
    W_dec = torch.nn.functional.normalize(normal(generator, N, D), dim=1) * norms
    return normal(generator, D, N), normal(generator, N), W_dec, normal(generator, D)


def wide(*tensors):
    return [tensor.double() for tensor in tensors]


def write_json(file: Path, value: dict) -> None:
    file.write_text(json.dumps(value))


# Gemma Scope -----------------------------------------------------------------------------------------


@case("gemma_scope", "gemma-scope-2b-pt-res/layer_20/width_16k/average_l0_71",
      model_name="google/gemma-2-2b", hook_point="blocks.20.hook_resid_post")  # fmt: skip
def gemma_scope(folder, generator, prefix="W"):
    W_enc, b_enc, W_dec, b_dec = weights(generator)
    threshold = 0.2 + torch.rand(N, generator=generator)
    arrays = {f"{prefix}_enc": W_enc, "b_enc": b_enc, f"{prefix}_dec": W_dec, "b_dec": b_dec}
    np.savez(folder / "params.npz", threshold=threshold, **{name: t.numpy() for name, t in arrays.items()})
    W_enc, b_enc, W_dec, b_dec, threshold = wide(W_enc, b_enc, W_dec, b_dec, threshold)

    def forward(x):
        latents, gap = jumprelu(x @ W_enc + b_enc, threshold)
        return latents, latents @ W_dec + b_dec, gap

    return forward


@case("gemma_scope", "gemma-scope-9b-it-att/layer_9/width_16k/average_l0_88",
      model_name="google/gemma-2-9b-it", hook_point="blocks.9.attn.hook_z")  # fmt: skip
def gemma_scope_in_lower_case(folder, generator):
    return gemma_scope(folder, generator, prefix="w")


# Gemma Scope 2 ---------------------------------------------------------------------------------------


def write_gemma_scope_2(folder, generator, config):
    W_enc, b_enc, W_dec, b_dec = weights(generator)
    threshold = 0.2 + torch.rand(N, generator=generator)
    tensors = {"w_enc": W_enc, "b_enc": b_enc, "w_dec": W_dec, "b_dec": b_dec, "threshold": threshold}
    save_file(tensors, folder / "params.safetensors")
    if config is not None:
        write_json(folder / "config.json", config)
    W_enc, b_enc, W_dec, b_dec, threshold = wide(*tensors.values())

    def forward(x):
        latents, gap = jumprelu(x @ W_enc + b_enc, threshold)
        return latents, latents @ W_dec + b_dec, gap

    return forward


@case("gemma_scope_2", "gemma-scope-2-270m-pt/resid_post/layer_12_width_16k_l0_big",
      model_name="google/gemma-3-270m", hook_point="blocks.12.hook_resid_post")  # fmt: skip
def gemma_scope_2(folder, generator):
    config = {
        "architecture": "jump_relu",
        "model_name": "gemma-v3-270m-pt",
        "type": "sae",
        "width": N,
        "l0": 60,
    }
    return write_gemma_scope_2(folder, generator, config | {"hf_hook_point_in": "model.layers.12.output"})


@case("gemma_scope_2", "gemma-scope-2-4b-it/attn_out_all/layer_3_width_16k_l0_small",
      model_name="google/gemma-3-4b-it", hook_point="blocks.3.attn.hook_z")  # fmt: skip
def gemma_scope_2_without_config(folder, generator):
    return write_gemma_scope_2(folder, generator, None)


AFFINE = {
    "architecture": "jump_relu", "model_name": "gemma-v3-1b-it", "affine_connection": True,
    "hf_hook_point_in": "model.layers.7.pre_feedforward_layernorm.output",
    "hf_hook_point_out": "model.layers.7.post_feedforward_layernorm.output",
}  # fmt: skip


@case("gemma_scope_2", "gemma-scope-2-1b-it/transcoder/layer_7_width_16k_l0_small_affine",
      model_name="google/gemma-3-1b-it", hook_point="blocks.7.mlp.hook_in",
      target=Target(d_model=D, skip=True, hook_point="blocks.7.hook_mlp_out"))  # fmt: skip
def gemma_scope_2_affine_transcoder(folder, generator):
    of_latents = write_gemma_scope_2(folder, generator, AFFINE)
    skip = normal(generator, D, D)
    tensors = load_file(folder / "params.safetensors") | {"affine_skip_connection": skip}
    save_file(tensors, folder / "params.safetensors")

    def forward(x):
        latents, recons, gap = of_latents(x)
        return latents, recons + x @ skip.double(), gap

    return forward


@case("gemma_scope_2", "gemma-scope-2-270m-pt/transcoder_all/layer_3_width_16k_l0_big",
      model_name="google/gemma-3-270m", hook_point="blocks.3.mlp.hook_in",
      target=Target(d_model=D, hook_point="blocks.3.hook_mlp_out"))  # fmt: skip
def gemma_scope_2_transcoder_without_config(folder, generator):
    return write_gemma_scope_2(folder, generator, None)


# Qwen-Scope ------------------------------------------------------------------------------------------


@case("qwen_scope", "SAE-Res-Qwen3-1.7B-Base-W32K-L0_4", file="layer5.sae.pt", k=K,
      model_name="Qwen/Qwen3-1.7B-Base", hook_point="blocks.5.hook_resid_post")  # fmt: skip
def qwen_scope(folder, generator):
    W_enc, b_enc, W_dec, b_dec = weights(generator)
    tensors = {"W_enc": W_enc.T.clone(), "b_enc": b_enc, "W_dec": W_dec.T.clone(), "b_dec": b_dec}
    torch.save(tensors, folder / "layer5.sae.pt")
    W_enc, b_enc, W_dec, b_dec = wide(W_enc, b_enc, W_dec, b_dec)

    def forward(x):
        latents, gap = topk(x @ W_enc + b_enc)
        return latents, latents @ W_dec + b_dec, gap

    return forward


# Llama Scope -----------------------------------------------------------------------------------------


LLAMA = {
    "d_model": D, "expansion_factor": N / D, "act_fn": "jumprelu", "use_decoder_bias": True,
    "apply_decoder_bias_to_pre_encoder": False, "hook_point_in": "blocks.15.hook_resid_post",
    "hook_point_out": "blocks.15.hook_resid_post", "norm_activation": "dataset-wise",
    "sparsity_include_decoder_norm": True, "top_k": 50,
}  # fmt: skip


def llama_forward(W_enc, b_enc, W_dec, b_dec, threshold, norm_in=D**0.5, norm_out=D**0.5, by_norm=True):
    """As github.com/OpenMOSS/Language-Model-SAEs has it: rows to norm sqrt(d), a gate that sees decoder
    norms, the reconstruction back."""
    W_enc, b_enc, W_dec, b_dec, threshold = wide(W_enc, b_enc, W_dec, b_dec, threshold)
    norms = W_dec.norm(dim=1) if by_norm else torch.ones(N).double()

    def forward(x):
        h = (x * D**0.5 / norm_in) @ W_enc + b_enc
        latents = h * (h * norms > threshold)
        recons = (latents @ W_dec + b_dec) * norm_out / D**0.5
        return latents, recons, (h * norms - threshold).abs().amin(-1)

    return forward


@case("llama_scope", "Llama3_1-8B-Base-L15R-8x", model_name="meta-llama/Llama-3.1-8B",
      hook_point="blocks.15.hook_resid_post")  # fmt: skip
def llama_scope(folder, generator):
    W_enc, b_enc, W_dec, b_dec = weights(generator)
    (folder / "checkpoints").mkdir(exist_ok=True)
    tensors = {"encoder.weight": W_enc.T.contiguous(), "encoder.bias": b_enc}
    tensors |= {"decoder.weight": W_dec.T.contiguous(), "decoder.bias": b_dec}
    save_file(tensors, folder / "checkpoints/final.safetensors")
    facts = {"d_sae": N, "jump_relu_threshold": 0.52734375}
    facts |= {"dataset_average_activation_norm": {"in": 17.125, "out": 16.5}}
    write_json(folder / "hyperparams.json", LLAMA | facts)
    return llama_forward(W_enc, b_enc, W_dec, b_dec, torch.full((N,), 0.52734375), 17.125, 16.5)


@case("llamascopium", "llamascopium/L15R", hook_point="blocks.15.hook_resid_post")
def llamascopium(folder, generator):
    W_enc, b_enc, W_dec, b_dec = weights(generator)
    logs = normal(generator, N) - 0.5
    tensors = {"W_E": W_enc, "b_E": b_enc, "W_D": W_dec, "b_D": b_dec}
    tensors |= {"activation_function.log_jumprelu_threshold": logs}
    tensors |= {f"dataset_average_activation_norm.{LLAMA['hook_point_in']}": torch.tensor(9.25)}
    save_file(tensors, folder / "sae_weights.safetensors")
    write_json(folder / "config.json", LLAMA | {"sae_type": "sae"})
    return llama_forward(W_enc, b_enc, W_dec, b_dec, logs.double().exp(), 9.25, 9.25)


@case("llamascopium", "Llama-Scope-R1-Distill/800M-Slimpajama-0-OpenR1-Math-220k/L15R",
      model_name="deepseek-ai/DeepSeek-R1-Distill-Llama-8B")  # fmt: skip
def llama_scope_r1_distill(folder, generator):
    """Its weights are folded already, and its gate leaves the norms out."""
    W_enc, b_enc, W_dec, b_dec = weights(generator)
    logs = normal(generator, N) - 0.5
    tensors = {"encoder.weight": W_enc.T.contiguous(), "encoder.bias": b_enc, "log_jumprelu_threshold": logs}
    tensors |= {"decoder.weight": W_dec.T.contiguous(), "decoder.bias": b_dec}
    save_file(tensors, folder / "sae_weights.safetensors")
    changes = {"norm_activation": "inference", "sparsity_include_decoder_norm": False}
    write_json(folder / "config.json", LLAMA | changes)
    return llama_forward(W_enc, b_enc, W_dec, b_dec, logs.double().exp(), by_norm=False)


# OpenAI ----------------------------------------------------------------------------------------------


def openai_tensors(W_enc, b_enc, W_dec, b_dec):
    tensors = {"pre_bias": b_dec, "encoder.weight": W_enc.T.clone(), "latent_bias": b_enc}
    return tensors | {
        "decoder.weight": W_dec.T.clone(),
        "stats_last_nonzero": torch.zeros(N, dtype=torch.int64),
    }


@case("openai", "resid_post_mlp_v5_32k/autoencoders", file="8.pt", k=K, model_name="openai-community/gpt2",
      hook_point="blocks.8.hook_resid_post")  # fmt: skip
def openai_topk(folder, generator):
    saved = openai_tensors(*(drawn := weights(generator)))
    saved |= {"activation": "TopK", "activation_state_dict": {"k": K, "postact_fn": "ReLU"}}
    torch.save(saved, folder / "8.pt")
    W_enc, b_enc, W_dec, b_dec = wide(*drawn)

    def forward(x):
        mean, std = x.mean(-1, keepdim=True), x.std(-1, keepdim=True)
        latents, gap = topk(((x - mean) / (std + 1e-5) - b_dec) @ W_enc + b_enc)
        return latents, (latents @ W_dec + b_dec) * std + mean, gap

    return forward


@case("openai", "resid_delta_mlp_v4/autoencoders", file="3.pt", hook_point="blocks.3.hook_mlp_out")
def openai_relu(folder, generator):
    """Of before activations were saved: ReLU, and rows as they are."""
    torch.save(openai_tensors(*(drawn := weights(generator))), folder / "3.pt")
    W_enc, b_enc, W_dec, b_dec = wide(*drawn)

    def forward(x):
        latents, gap = relu((x - b_dec) @ W_enc + b_enc)
        return latents, latents @ W_dec + b_dec, gap

    return forward


# Goodfire --------------------------------------------------------------------------------------------


@case("goodfire", "Llama-3.1-8B-Instruct-SAE-l19", file="Llama-3.1-8B-Instruct-SAE-l19.pth",
      model_name="meta-llama/Llama-3.1-8B-Instruct", hook_point="blocks.19.hook_resid_post")  # fmt: skip
def goodfire(folder, generator, file="Llama-3.1-8B-Instruct-SAE-l19.pth", linear="_linear"):
    W_enc, b_enc, W_dec, b_dec = weights(generator)
    tensors = {f"encoder{linear}.weight": W_enc.T.clone(), f"encoder{linear}.bias": b_enc}
    tensors |= {f"decoder{linear}.weight": W_dec.T.clone(), f"decoder{linear}.bias": b_dec}
    torch.save(tensors, folder / file)
    W_enc, b_enc, W_dec, b_dec = wide(W_enc, b_enc, W_dec, b_dec)

    def forward(x):
        latents, gap = relu(x @ W_enc + b_enc)
        return latents, latents @ W_dec + b_dec, gap

    return forward


@case(
    "goodfire",
    "DeepSeek-R1-Distill-Llama-8B-SAE-l19",
    file="DeepSeek-R1-Distill-Llama-8B-SAE-l19.pt",
    hook_point="blocks.19.hook_resid_post",
    model_name="deepseek-ai/DeepSeek-R1-Distill-Llama-8B",
)
def deepseek_r1(folder, generator):
    return goodfire(folder, generator, "DeepSeek-R1-Distill-Llama-8B-SAE-l19.pt", linear="")


# sparsify --------------------------------------------------------------------------------------------


@case(
    "sparsify", "run/layers.10", k=K, hook_point="blocks.10.hook_resid_post", model_name="EleutherAI/pythia"
)
def sparsify(folder, generator, **config):
    W_enc, b_enc, W_dec, b_dec = weights(generator)
    tensors = {"encoder.weight": W_enc.T.contiguous(), "encoder.bias": b_enc, "W_dec": W_dec, "b_dec": b_dec}
    save_file(tensors, folder / "sae.safetensors")
    config = {
        "activation": "topk", "expansion_factor": 32, "normalize_decoder": True, "num_latents": N, "k": K,
        "multi_topk": False, "skip_connection": False, "transcode": False, "d_in": D,
    } | config  # fmt: skip
    write_json(folder / "cfg.json", {key: value for key, value in config.items() if value is not None})
    write_json(folder.parent / "config.json", {"model": "EleutherAI/pythia", "dataset": "pile"})
    W_enc, b_enc, W_dec, b_dec = wide(W_enc, b_enc, W_dec, b_dec)

    def forward(x):
        latents, gap = topk((x - b_dec) @ W_enc + b_enc)
        return latents, latents @ W_dec + b_dec, gap

    return forward


@case("sparsify", "old/layers.3.mlp/seed0", k=K, hook_point="")
def sparsify_of_old(folder, generator):
    """Without activation; its width by the expansion factor is no whole number here, so by num_latents."""
    return sparsify(
        folder, generator, activation=None, multi_topk=None, signed=False, normalize_decoder=False
    )


@case("sparsify", "skip/layers.3.mlp", k=K, hook_point="blocks.3.mlp.hook_in",
      target=Target(d_model=D, skip=True, hook_point="blocks.3.hook_mlp_out"))  # fmt: skip
def sparsify_skip_transcoder(folder, generator):
    """b_dec is not subtracted, and W_skip [d, d] is applied transposed."""
    sparsify(folder, generator, transcode=True, skip_connection=True)
    tensors = load_file(folder / "sae.safetensors") | {"W_skip": normal(generator, D, D)}
    save_file(tensors, folder / "sae.safetensors")
    wide_ones = {name: tensor.double() for name, tensor in tensors.items()}

    def forward(x):
        latents, gap = topk(x @ wide_ones["encoder.weight"].T + wide_ones["encoder.bias"])
        return latents, latents @ wide_ones["W_dec"] + wide_ones["b_dec"] + x @ wide_ones["W_skip"].T, gap

    return forward


# dictionary_learning ---------------------------------------------------------------------------------


def dictionary(dict_class):
    """Register a writer of tensors and forward as an ae.pt beside its config.json."""

    def register(write):
        def whole(folder, generator):
            tensors, forward = write(*weights(generator), generator)
            torch.save(
                {name: tensor.clone().contiguous() for name, tensor in tensors.items()}, folder / "ae.pt"
            )
            trainer = {"dict_class": dict_class, "activation_dim": D, "dict_size": N, "layer": 12, "lr": 1e-4,
                       "lm_name": "google/gemma-2-2b", "submodule_name": "resid_post_layer_12"}  # fmt: skip
            trainer |= {"k": K} if "TopK" in dict_class else {}
            write_json(
                folder / "config.json", {"trainer": trainer, "buffer": {"d_submodule": D, "io": "out"}}
            )
            return forward

        whole.__name__ = f"dictionary_{dict_class}"
        facts = {"model_name": "google/gemma-2-2b", "hook_point": "blocks.12.hook_resid_post"}
        return case("dictionary_learning", f"resid_post_layer_12/{dict_class}/trainer_0", **facts)(whole)

    return register


def linear(W_enc, b_enc, W_dec):
    return {"encoder.weight": W_enc.T, "encoder.bias": b_enc, "decoder.weight": W_dec.T}


@dictionary("AutoEncoder")
def _(W_enc, b_enc, W_dec, b_dec, _):
    tensors = {**linear(W_enc, b_enc, W_dec), "bias": b_dec}
    W_enc, b_enc, W_dec, b_dec = wide(W_enc, b_enc, W_dec, b_dec)

    def forward(x):
        latents, gap = relu((x - b_dec) @ W_enc + b_enc)
        return latents, latents @ W_dec + b_dec, gap

    return tensors, forward


@dictionary("AutoEncoderNew")
def _(W_enc, b_enc, W_dec, b_dec, _):
    tensors = {**linear(W_enc, b_enc, W_dec), "decoder.bias": b_dec}
    W_enc, b_enc, W_dec, b_dec = wide(W_enc, b_enc, W_dec, b_dec)

    def forward(x):
        latents, gap = relu(x @ W_enc + b_enc)
        return latents, latents @ W_dec + b_dec, gap

    return tensors, forward


@dictionary("AutoEncoderTopK")
def _(W_enc, b_enc, W_dec, b_dec, _):
    """Its threshold is for training: encode keeps k."""
    tensors = {**linear(W_enc, b_enc, W_dec), "b_dec": b_dec}
    tensors |= {"k": torch.tensor(K), "threshold": torch.tensor(0.7)}
    W_enc, b_enc, W_dec, b_dec = wide(W_enc, b_enc, W_dec, b_dec)

    def forward(x):
        latents, gap = topk((x - b_dec) @ W_enc + b_enc)
        return latents, latents @ W_dec + b_dec, gap

    return tensors, forward


@dictionary("BatchTopKSAE")
def _(W_enc, b_enc, W_dec, b_dec, _):
    tensors = {**linear(W_enc, b_enc, W_dec), "b_dec": b_dec}
    tensors |= {"k": torch.tensor(K), "threshold": torch.tensor(0.7)}
    W_enc, b_enc, W_dec, b_dec = wide(W_enc, b_enc, W_dec, b_dec)

    def forward(x):
        latents, gap = jumprelu((x - b_dec) @ W_enc + b_enc, float(tensors["threshold"]))
        return latents, latents @ W_dec + b_dec, gap

    return tensors, forward


@dictionary("MatryoshkaBatchTopKSAE")
def _(W_enc, b_enc, W_dec, b_dec, _):
    """Its threshold was never set: -1 keeps every positive latent."""
    tensors = {"W_enc": W_enc, "b_enc": b_enc, "W_dec": W_dec, "b_dec": b_dec}
    tensors |= {"k": torch.tensor(K), "threshold": torch.tensor(-1.0), "group_sizes": torch.tensor([8, 24])}
    W_enc, b_enc, W_dec, b_dec = wide(W_enc, b_enc, W_dec, b_dec)

    def forward(x):
        latents, gap = relu((x - b_dec) @ W_enc + b_enc)
        return latents, latents @ W_dec + b_dec, gap

    return tensors, forward


@dictionary("GatedAutoEncoder")
def _(W_enc, gate_bias, W_dec, b_dec, generator):
    r_mag, mag_bias = normal(generator, N), normal(generator, N)
    tensors = {"encoder.weight": W_enc.T, "decoder.weight": W_dec.T, "decoder_bias": b_dec}
    tensors |= {"r_mag": r_mag, "gate_bias": gate_bias, "mag_bias": mag_bias}
    W_enc, gate_bias, W_dec, b_dec, r_mag, mag_bias = wide(W_enc, gate_bias, W_dec, b_dec, r_mag, mag_bias)

    def forward(x):
        projected = (x - b_dec) @ W_enc
        latents, gap = gated(projected + gate_bias, r_mag.exp() * projected + mag_bias)
        return latents, latents @ W_dec + b_dec, gap

    return tensors, forward


@dictionary("JumpReluAutoEncoder")
def _(W_enc, b_enc, W_dec, b_dec, generator):
    threshold = 0.2 + torch.rand(N, generator=generator)
    tensors = {"W_enc": W_enc, "b_enc": b_enc, "W_dec": W_dec, "b_dec": b_dec, "threshold": threshold}
    W_enc, b_enc, W_dec, b_dec, threshold = wide(*tensors.values())

    def forward(x):
        latents, gap = jumprelu(x @ W_enc + b_enc, threshold)
        return latents, latents @ W_dec + b_dec, gap

    return tensors, forward


# SAELens ---------------------------------------------------------------------------------------------


def write_saelens(folder, generator, config):
    W_enc, b_enc, W_dec, b_dec = weights(generator)
    tensors = {"W_enc": W_enc, "b_enc": b_enc, "W_dec": W_dec, "b_dec": b_dec}
    save_file(tensors, folder / "sae_weights.safetensors")
    write_json(
        folder / "cfg.json", {"d_in": D, "d_sae": N, "dtype": "torch.float32", "device": "cuda"} | config
    )
    W_enc, b_enc, W_dec, b_dec = wide(W_enc, b_enc, W_dec, b_dec)

    def forward(x):
        latents, gap = relu((x - b_dec) @ W_enc + b_enc)
        return latents, latents @ W_dec + b_dec, gap

    return forward


@case(
    "saelens",
    kind="relu",
    hook_point="blocks.0.attn.hook_z",
    model_name="gpt2-small",
    normalize_activations="none",
)
def saelens_of_version_2(folder, generator):
    """Flat, with the old names; heads side by side."""
    config = {
        "hook_point": "blocks.0.attn.hook_z",
        "hook_point_layer": 0,
        "model_name": "gpt2-small",
        "l1_coefficient": 1,
    }
    return write_saelens(
        folder, generator, config | {"normalize_activations": False, "activation_fn_str": "relu"}
    )


@case("saelens", kind="relu", hook_point="blocks.8.hook_resid_pre", normalize_activations="center")
def saelens_centred(folder, generator):
    metadata = {
        "sae_lens_version": "6.0.0",
        "hook_name": "blocks.8.hook_resid_pre",
        "model_name": "gpt2-small",
    }
    metadata |= {"model_from_pretrained_kwargs": {"center_writing_weights": True}}
    config = {"architecture": "standard", "normalize_activations": "none", "apply_b_dec_to_input": True}
    of_centred = write_saelens(folder, generator, config | {"metadata": metadata})

    def forward(x):
        mean = x.mean(-1, keepdim=True)
        latents, recons, gap = of_centred(x - mean)
        return latents, recons + mean, gap

    return forward


@case("saelens", kind="relu", normalize_activations="constant_norm_rescale", model_name="mistral-7b")
def saelens_rescaled(folder, generator):
    """SAELens itself gives NaN for a row of zeros."""
    metadata = {
        "sae_lens_version": "6.0.0",
        "hook_name": "blocks.8.hook_resid_pre",
        "model_name": "mistral-7b",
    }
    config = {
        "architecture": "standard",
        "normalize_activations": "constant_norm_rescale",
        "metadata": metadata,
    }
    of_rescaled = write_saelens(folder, generator, config)

    def forward(x):
        size = x.norm(dim=-1, keepdim=True) / D**0.5
        latents, recons, gap = of_rescaled(x / size.masked_fill(size == 0, 1))
        return latents, recons * size, gap

    return forward


def transcoder(architecture):
    """Register one of SAELens' four, of unlike widths."""

    def write(folder, generator):
        W_enc, b_enc, W_dec, _ = weights(generator)
        W_dec, b_dec = W_dec[:, :D_OUT].contiguous(), normal(generator, D_OUT)
        tensors = {"W_enc": W_enc, "b_enc": b_enc, "W_dec": W_dec, "b_dec": b_dec}
        if "jumprelu" in architecture:
            tensors["threshold"] = 0.2 + torch.rand(N, generator=generator)
        if "skip" in architecture:
            tensors["W_skip"] = normal(generator, D_OUT, D)
        save_file(tensors, folder / "sae_weights.safetensors")
        metadata = {"sae_lens_version": "6.54.12", "hook_name": "blocks.2.mlp.hook_in", "model_name": "tiny"}
        config = {
            "d_in": D, "d_sae": N, "d_out": D_OUT, "dtype": "float32", "device": "cpu",
            "apply_b_dec_to_input": False, "normalize_activations": "none", "reshape_activations": "none",
            "metadata": metadata | {"hook_name_out": "blocks.2.hook_mlp_out"}, "architecture": architecture,
        }  # fmt: skip
        write_json(folder / "cfg.json", config)
        exact = {name: tensor.double() for name, tensor in tensors.items()}

        def forward(x):
            pre = x @ exact["W_enc"] + exact["b_enc"]
            latents, gap = jumprelu(pre, exact["threshold"]) if "threshold" in exact else relu(pre)
            recons = latents @ exact["W_dec"] + exact["b_dec"]
            return latents, recons + x @ exact["W_skip"].T if "W_skip" in exact else recons, gap

        return forward

    write.__name__ = f"saelens_{architecture}"
    target = Target(d_model=D_OUT, skip="skip" in architecture, hook_point="blocks.2.hook_mlp_out")
    return case("saelens", hook_point="blocks.2.mlp.hook_in", model_name="tiny", target=target)(write)


for architecture in ("transcoder", "skip_transcoder", "jumprelu_transcoder", "jumprelu_skip_transcoder"):
    transcoder(architecture)


# circuit-tracer --------------------------------------------------------------------------------------


@case("circuit_tracer", "qwen3-0.6b-transcoders-lowl0", file="layer_3.safetensors", kind="relu",
      hook_point="blocks.3.mlp.hook_in",
      target=Target(d_model=D, hook_point="blocks.3.hook_mlp_out"))  # fmt: skip
def circuit_tracer_relu(folder, generator):
    """Without config.yaml, as some repositories have it."""
    W_enc, b_enc, W_dec, b_dec = weights(generator)
    tensors = {"W_enc": W_enc.T.contiguous(), "b_enc": b_enc, "W_dec": W_dec, "b_dec": b_dec}
    save_file(tensors, folder / "layer_3.safetensors")
    W_enc, b_enc, W_dec, b_dec = wide(W_enc, b_enc, W_dec, b_dec)

    def forward(x):
        latents, gap = relu(x @ W_enc + b_enc)
        return latents, latents @ W_dec + b_dec, gap

    return forward


# All of them -----------------------------------------------------------------------------------------


def rows_for(forward, generator) -> torch.Tensor | None:
    """Twelve ordinary rows, one of norm about 1e-6, one of about 1e4 and one of zeros, away from ties."""
    kept = []
    for scale, n in ((1.0, 12), (1e-6, 1), (1e4, 1), (0.0, 1)):
        candidates = normal(generator, 400, D, scale=scale) + 0.3 * scale
        latents, _, gap = forward(candidates.double())
        free = candidates[gap >= MARGIN * (latents.amax(-1) / 10).clamp_min(1.0)]
        if len(free) < n:
            return None
        kept.append(free[:n])
    return torch.cat(kept)


def write_golden(root: Path, name: str) -> Golden:
    format, where, facts, write = CASES[name]
    folder = root / name / where
    folder.mkdir(parents=True, exist_ok=True)
    for seed in range(100):
        generator = torch.Generator().manual_seed(seed)
        forward = write(folder, generator)
        if (rows := rows_for(forward, generator)) is not None:
            place = facts.get("file")
            return Golden(format, folder / place if place else folder, forward, rows, facts)
    raise AssertionError(f"{name}: no seed keeps the rows away from ties")


@pytest.fixture(scope="session")
def golden(tmp_path_factory):
    """golden("sparsify"): the folder of that name, written once."""
    root, written = tmp_path_factory.mktemp("golden"), {}

    def get(name: str) -> Golden:
        if name not in written:
            written[name] = write_golden(root, name)
        return written[name]

    get.root = root
    return get


def pytest_generate_tests(metafunc):
    if "golden_name" in metafunc.fixturenames:
        metafunc.parametrize("golden_name", CASES)
