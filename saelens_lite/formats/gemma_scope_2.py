"""Gemma Scope 2, Google DeepMind's SAEs of Gemma 3: google/gemma-scope-2-{270m,1b,4b,12b,27b}-{pt,it}.

{resid_post,attn_out,mlp_out}[_all]/layer_{L}_width_{W}_l0_{small,medium,big}/
    config.json         architecture "jump_relu", model_name, hf_hook_point_in, ...; each may be absent
    params.safetensors  w_enc [d, n]  b_enc [n]  w_dec [n, d]  b_dec [d]  threshold [n]

    pre_acts = acts @ w_enc + b_enc        nothing is subtracted
    latents  = pre_acts where pre_acts > threshold, else 0

attn_out is the input of the attention's output projection, heads side by side; mlp_out what the MLP adds to
the stream, after its norm. source: huggingface.co/google/gemma-scope-2
"""

from __future__ import annotations

import re
from typing import Any

from saelens_lite.errors import CheckpointError
from saelens_lite.formats.opened import Opened, Place, expect, named, opened, read_json
from saelens_lite.formats.tensor_files import read_tensors

NAME = "gemma_scope_2"
HOLDS = "params.safetensors"
FILES = ("params.safetensors", "config.json")

_FORM = {"architecture?": str, "model_name?": str, "hf_hook_point_in?": str, "hf_hook_point_out?": str,
         "type?": str, "affine_connection?": bool}  # fmt: skip
_NO_TRANSCODER = "it maps one place of the model to another, a transcoder, which is not opened here"
_SITES = {"resid_post": "hook_resid_post", "mlp_out": "hook_mlp_out", "attn_out": "attn.hook_z"}
_MODULES = {
    "output": "hook_resid_post",
    "post_feedforward_layernorm.output": "hook_mlp_out",
    "self_attn.o_proj.input": "attn.hook_z",
}


def recognises(place: Place) -> bool:
    return place.holds("params.safetensors") and place.path.suffix in ("", ".safetensors")


def read(place: Place) -> Opened:
    """raises: ValueError for transcoders and crosscoders; CheckpointError for other tensors"""
    file = place.folder / "config.json"
    config: dict[str, Any] = read_json(file, _FORM) if file.is_file() else {}
    where = str(place.folder / "params.safetensors")
    expect(
        config.get("architecture"), "architecture", ("jump_relu",), str(file), "it is another SAE than these"
    )
    tensors = read_tensors(place.folder / "params.safetensors")
    told = f"gemma-scope-2/{config.get('type')} {place.name}"
    other = re.search(r"gemma-scope-2[^/]*/(transcoder|crosscoder|clt)", told)
    if other or "affine_skip_connection" in tensors or config.get("affine_connection"):
        raise ValueError(f"{place.name}: {other[1] if other else 'transcoder'}: {_NO_TRANSCODER}")
    site_out = config.get("hf_hook_point_out") or config.get("hf_hook_point_in")
    expect(site_out, "hf_hook_point_out", (config.get("hf_hook_point_in"),), str(file), _NO_TRANSCODER)
    if any(tensor.ndim > 2 for tensor in tensors.values()):
        raise CheckpointError(f"{where}: expected matrices, got tensors of several layers, a crosscoder's")
    found = named(
        tensors, where, W_enc="w_enc", b_enc="b_enc", W_dec="w_dec", b_dec="b_dec", threshold="threshold"
    )
    at = _at(place, config)
    return opened(found, where, kind="jumprelu", apply_b_dec_to_input=False, **at)


def _at(place: Place, config: dict[str, Any]) -> dict[str, str]:
    """Model and hook point, by config.json, else by the name."""
    found = {}
    release = re.search(r"gemma-scope-2-(\d+[mb]-(?:pt|it))", place.name)
    model = config.get("model_name") or (f"gemma-3-{release[1]}" if release else "")
    if model:
        model = model.replace("-v3", "-3")
        model = model.removesuffix("-pt") if "270m" in model else model  # its base has no suffix on the hub
        found["model_name"] = model if "/" in model else f"google/{model}"
    told = re.fullmatch(r"model\.layers\.(\d+)\.(.+)", config.get("hf_hook_point_in") or "")
    name = re.search(r"(resid_post|mlp_out|attn_out)(?:_all)?/layer_(\d+)_", place.name)
    layer, point = (told[1], _MODULES.get(told[2])) if told else (None, None)
    if point is None and name:
        layer, point = name[2], _SITES[name[1]]
    if layer is not None and point is not None:
        found["hook_point"] = f"blocks.{layer}.{point}"
        if point == "hook_resid_post":
            found["hf_module"] = f"model.layers.{layer}"
    return found
