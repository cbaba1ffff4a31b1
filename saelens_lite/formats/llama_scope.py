"""Llama Scope, OpenMOSS' SAEs of Llama 3.1: fnlp/Llama3_1-8B-Base-LX{R,A,M}-{8,32}x, a folder a layer.

hyperparams.json              d_model, d_sae, hook_point_in, hook_point_out, act_fn, jump_relu_threshold θ,
                              norm_activation, dataset_average_activation_norm {in, out},
                              sparsity_include_decoder_norm, ...
checkpoints/final.safetensors encoder.{weight [n, d], bias [n]}  decoder.{weight [d, n], bias [d]}

    s       = sqrt(d) / dataset_average_activation_norm        of the input, and of the output
    h       = s_in · acts @ encoder.weightᵀ + encoder.bias
    latents = h where h · ‖decoder column‖ > θ, else 0
    recons  = (latents @ decoder.weightᵀ + decoder.bias) / s_out

which folds exactly: threshold_i = θ / ‖column i‖, W_enc · s_in, W_dec / s_out, b_dec / s_out. SAELens
multiplies θ by s_in and leaves the norms out, so that other latents fire there; here the origin is followed.
source: He et al. 2024, arXiv:2410.20526; github.com/OpenMOSS/Language-Model-SAEs
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from saelens_lite.errors import CheckpointError
from saelens_lite.formats.opened import Opened, Place, check_widths, expect, named, opened, read_json
from saelens_lite.formats.tensor_files import read_tensors

NAME = "llama_scope"
HOLDS = "hyperparams.json and checkpoints/final.safetensors"
FILES = ("hyperparams.json", "checkpoints/final.safetensors")

SETTINGS = {
    "d_model": int, "hook_point_in": str, "hook_point_out?": str, "act_fn": str, "norm_activation": str,
    "sparsity_include_decoder_norm": bool, "apply_decoder_bias_to_pre_encoder?": bool,
    "use_decoder_bias?": bool, "use_glu_encoder?": bool,
}  # fmt: skip
_FORM = SETTINGS | {
    "d_sae": int, "jump_relu_threshold?": float,
    "dataset_average_activation_norm?": {"in": float, "out": float},
}  # fmt: skip
_ORIGIN = (
    "latents fire where the pre-activation times the norm of its decoder row is above the threshold, as in "
    "its own code; SAELens leaves the norms out, and finds other latents"
)


def recognises(place: Place) -> bool:
    return place.holds("hyperparams.json", "checkpoints/final.safetensors")


def read(place: Place) -> Opened:
    """raises: ValueError for transcoders and settings of training; CheckpointError for other tensors"""
    file, weights = place.folder / "hyperparams.json", place.folder / "checkpoints/final.safetensors"
    config = read_json(file, _FORM)
    tensors, where = read_tensors(weights), str(weights)
    if not config.get("use_decoder_bias", True):
        tensors.setdefault("decoder.bias", torch.zeros(config["d_model"]))
    found = named(
        tensors, where, W_enc="encoder.weight.T", b_enc="encoder.bias", W_dec="decoder.weight.T",
        b_dec="decoder.bias",
    )  # fmt: skip
    if config["act_fn"].lower() == "jumprelu":
        if "jump_relu_threshold" not in config:
            raise CheckpointError(f"{file}: expected a number jump_relu_threshold for act_fn jumprelu")
        found["threshold"] = torch.full_like(
            found["b_enc"], config["jump_relu_threshold"], dtype=torch.float32
        )
    norms = config.get("dataset_average_activation_norm") or {}
    sae = folded(found, config, norms.get("in"), norms.get("out"), str(file), where, place.name)
    return check_widths(sae, config["d_model"], config["d_sae"], where, file)


def folded(
    tensors: Mapping[str, Tensor], config: Mapping[str, Any], norm_in: float | None, norm_out: float | None,
    file: str, where: str, name: str,
) -> Opened:  # fmt: skip
    """The SAE in the units of its activations; tensors: in our names, those that the file has.

    config: of the form SETTINGS; norm_in, norm_out: mean norms of the rows it was trained on and for
    raises: ValueError for what has no counterpart
    """
    point = config["hook_point_in"]
    expect(
        config.get("hook_point_out"), "hook_point_out", (point,), file,
        "it maps one place of the model to another, a transcoder, which is not opened here",
    )  # fmt: skip
    expect(
        config["act_fn"].lower(), "act_fn", ("jumprelu", "relu"), file,
        "topk and batchtopk select in a form for training; the released SAEs are jumprelu",
    )  # fmt: skip
    way_out = "fold it with its own code (lm_saes), and save the SAE again"
    norm_activation = config["norm_activation"]
    expect(
        norm_activation, "norm_activation", ("dataset-wise", "token-wise", "inference"), file,
        "a batch's own mean norm would make latents depend on the other rows",
    )  # fmt: skip
    expect(
        config.get("apply_decoder_bias_to_pre_encoder"),
        "apply_decoder_bias_to_pre_encoder",
        (False,),
        file,
        way_out,
    )
    expect(config.get("use_glu_encoder"), "use_glu_encoder", (False,), file, "it has no counterpart here")
    s_in = s_out = 1.0
    if norm_activation == "dataset-wise":
        if not norm_in or not norm_out or min(norm_in, norm_out) < 0:
            raise CheckpointError(
                f"{file}: expected dataset_average_activation_norm above 0 for norm_activation "
                f"'dataset-wise', got {norm_in} and {norm_out}; without it the input's scale is not known"
            )
        s_in, s_out = (config["d_model"] ** 0.5 / norm for norm in (norm_in, norm_out))
    wide = {
        key: tensor.to(torch.promote_types(tensor.dtype, torch.float32)) for key, tensor in tensors.items()
    }
    notes = ()
    if "threshold" in wide and config["sparsity_include_decoder_norm"]:
        norms = torch.linalg.vector_norm(wide["W_dec"], dim=1)
        # a latent whose column is zero never fires
        wide["threshold"] = torch.where(norms > 0, wide["threshold"] / norms, torch.inf)
        notes = (_ORIGIN,)
    wide["W_enc"] = wide["W_enc"] * s_in
    wide["W_dec"], wide["b_dec"] = wide["W_dec"] / s_out, wide["b_dec"] / s_out
    normalized = "constant_norm_rescale" if norm_activation == "token-wise" else "none"
    return opened(
        wide, where, notes, kind="jumprelu" if "threshold" in wide else "relu", apply_b_dec_to_input=False,
        normalize_activations=normalized, **_at(point, name),
    )  # fmt: skip


def _at(point: str, name: str) -> dict[str, str]:
    found = {"hook_point": point}
    if "Llama3_1-8B-Base" in name:
        found["model_name"] = "meta-llama/Llama-3.1-8B"
    elif "R1-Distill" in name:
        found["model_name"] = "deepseek-ai/DeepSeek-R1-Distill-Llama-8B"
    if layer := re.fullmatch(r"blocks\.(\d+)\.hook_resid_post", point):
        found["hf_module"] = f"model.layers.{layer[1]}"
    return found
