"""Llamascopium, the present form of Llama Scope's SAEs, and fnlp/Llama-Scope-R1-Distill: two files a folder.

config.json               sae_type "sae", d_model, expansion_factor, act_fn, norm_activation, hook_point_in,
                          hook_point_out, sparsity_include_decoder_norm, ...
sae_weights.safetensors   W_E [d, n]  b_E [n]  W_D [n, d]  b_D [d]
                          activation_function.log_jumprelu_threshold [n], the natural logarithm
                          dataset_average_activation_norm.{hook point}, a number each
                          R1-Distill: encoder.weight [n, d], decoder.weight [d, n], log_jumprelu_threshold

What they compute is in llama_scope.py; θ is exp(log_jumprelu_threshold), one a latent.
"""

from __future__ import annotations

import torch
from torch import Tensor

from saelens_lite.errors import CheckpointError
from saelens_lite.formats.llama_scope import SETTINGS, folded
from saelens_lite.formats.opened import Opened, Place, check_widths, expect, named, read_json
from saelens_lite.formats.tensor_files import read_tensors

NAME = "llamascopium"
HOLDS = "config.json and sae_weights.safetensors"
FILES = ("config.json", "sae_weights.safetensors")

_FORM = SETTINGS | {"sae_type?": str, "expansion_factor?": float}
_NORM = "dataset_average_activation_norm."
_NEW = {"W_enc": "W_E", "b_enc": "b_E", "W_dec": "W_D", "b_dec": "b_D"}
_R1 = {
    "W_enc": "encoder.weight.T",
    "b_enc": "encoder.bias",
    "W_dec": "decoder.weight.T",
    "b_dec": "decoder.bias",
}
_OTHERS = {
    "crosscoder": "a crosscoder reads and writes several places",
    "transcoder": "a transcoder reads one place and writes another, in a layout that is not read here",
    "clt": "latents of a cross-layer transcoder write to all layers that follow",
    "lorsa": "latents of low-rank sparse attention depend on other tokens",
    "molt": "a mixture of linear transforms has matrices in place of decoder rows",
}
"""What llamascopium trains beside SAEs, by sae_type."""


def recognises(place: Place) -> bool:
    return place.holds("config.json", "sae_weights.safetensors") and not place.holds("cfg.json")


def read(place: Place) -> Opened:
    """raises: ValueError for other types and settings of training; CheckpointError for other tensors"""
    file, weights = place.folder / "config.json", place.folder / "sae_weights.safetensors"
    config = read_json(file, _FORM)
    family = config.get("sae_type")
    other = _OTHERS.get(str(family).lower(), "no other is known here")
    expect(family, "sae_type", ("sae",), str(file), other)
    where, tensors = str(weights), dict(read_tensors(weights))
    norms = {name.removeprefix(_NORM): tensors.pop(name) for name in [*tensors] if name.startswith(_NORM)}
    norms = {point: float(norm) for point, norm in norms.items() if norm.numel() == 1}
    names, prefix = (_NEW, "activation_function.") if "W_E" in tensors else (_R1, "")
    logs: Tensor | None = tensors.pop(f"{prefix}log_jumprelu_threshold", None)
    if not config.get("use_decoder_bias", True):
        tensors.setdefault(names["b_dec"], torch.zeros(config["d_model"]))
    found = named(tensors, where, **names)
    if config["act_fn"].lower() == "jumprelu":
        if logs is None:
            raise CheckpointError(
                f"{where}: expected a tensor {prefix}log_jumprelu_threshold for act_fn jumprelu"
            )
        found["threshold"] = logs.float().exp()
    point = config["hook_point_in"]
    norm_in, norm_out = norms.get(point), norms.get(config.get("hook_point_out") or point)
    sae = folded(found, config, norm_in, norm_out, str(file), where, place.name)
    factor = config.get("expansion_factor")
    return check_widths(sae, config["d_model"], factor and round(factor * config["d_model"]), where, file)
