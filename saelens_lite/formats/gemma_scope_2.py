"""Gemma Scope 2, Google DeepMind's SAEs of Gemma 3: google/gemma-scope-2-{270m,1b,4b,12b,27b}-{pt,it}.

{resid_post,attn_out,mlp_out,transcoder}[_all]/layer_{L}_width_{W}_l0_{small,medium,big}/
    config.json         architecture "jump_relu", model_name, hf_hook_point_in, ...; each may be absent
    params.safetensors  w_enc [d, n]  b_enc [n]  w_dec [n, d]  b_dec [d]  threshold [n]

    pre_acts = acts @ w_enc + b_enc        nothing is subtracted
    latents  = pre_acts where pre_acts > threshold, else 0

attn_out is the input of the attention's output projection, heads side by side; mlp_out what the MLP adds to
the stream, after its norm. A transcoder reads what the MLP takes, after norm and gain (mlp.hook_in; SAELens
says hook_mlp_in, which TransformerLens has elsewhere), and writes hook_mlp_out; affine ones hold
affine_skip_connection [d, d_out], added as acts @ it. source: huggingface.co/google/gemma-scope-2
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
_NOT_MLP = "only transcoders of an MLP, from its input to what it adds, are opened here"
_SITES = {"resid_post": "hook_resid_post", "mlp_out": "hook_mlp_out", "attn_out": "attn.hook_z",
          "transcoder": "mlp.hook_in"}  # fmt: skip
_MLP_IN, _MLP_OUT = "pre_feedforward_layernorm.output", "post_feedforward_layernorm.output"
_OTHERS = {"crosscoder": "crosscoder", "clt": "cross-layer transcoder"}
_MODULES = {
    "output": "hook_resid_post",
    _MLP_IN: "mlp.hook_in",
    _MLP_OUT: "hook_mlp_out",
    "self_attn.o_proj.input": "attn.hook_z",
}


def recognises(place: Place) -> bool:
    return place.holds("params.safetensors") and place.path.suffix in ("", ".safetensors")


def read(place: Place) -> Opened:
    """raises: ValueError for crosscoders and cross-layer transcoders; CheckpointError for other tensors"""
    file = place.folder / "config.json"
    config: dict[str, Any] = read_json(file, _FORM) if file.is_file() else {}
    where = str(place.folder / "params.safetensors")
    expect(
        config.get("architecture"), "architecture", ("jump_relu",), str(file), "it is another SAE than these"
    )
    tensors = read_tensors(place.folder / "params.safetensors")
    told = f"gemma-scope-2/{config.get('type')} {place.name}"
    if other := re.search(r"gemma-scope-2[^/]*/(crosscoder|clt)", told):
        raise ValueError(f"{place.name}: a {_OTHERS[other[1]]}, which is not opened here")
    site_in, site_out = config.get("hf_hook_point_in"), config.get("hf_hook_point_out")
    transcodes = "gemma-scope-2" in told and bool(re.search(r"/transcoder", told))
    transcodes = transcodes or "affine_skip_connection" in tensors or site_out not in (None, site_in)
    for key, told_there, site in (
        ("hf_hook_point_in", site_in, _MLP_IN),
        ("hf_hook_point_out", site_out, _MLP_OUT),
    ):
        if transcodes and not (told_there or site).endswith(site):
            expect(told_there, key, (f"model.layers.….{site}",), str(file), _NOT_MLP)
    if any(tensor.ndim > 2 for tensor in tensors.values()):
        raise CheckpointError(f"{where}: expected matrices, got tensors of several layers, a crosscoder's")
    names = {"W_enc": "w_enc", "b_enc": "b_enc", "W_dec": "w_dec", "b_dec": "b_dec", "threshold": "threshold"}
    if transcodes and (config.get("affine_connection") or "affine_skip_connection" in tensors):
        names["W_skip"] = "affine_skip_connection.T"
    found = named(tensors, where, **names)
    fields = {"apply_b_dec_to_input": False} | _at(place, config, transcodes)
    return opened(found, where, kind="jumprelu", **fields)


def _at(place: Place, config: dict[str, Any], transcodes: bool) -> dict[str, Any]:
    """Model and hook points, by config.json, else by the name."""
    found: dict[str, Any] = {"target": {}} if transcodes else {}
    release = re.search(r"gemma-scope-2-(\d+[mb]-(?:pt|it))", place.name)
    model = config.get("model_name") or (f"gemma-3-{release[1]}" if release else "")
    if model:
        model = model.replace("-v3", "-3")
        model = model.removesuffix("-pt") if "270m" in model else model  # its base has no suffix on the hub
        found["model_name"] = model if "/" in model else f"google/{model}"
    told = re.fullmatch(r"model\.layers\.(\d+)\.(.+)", config.get("hf_hook_point_in") or "")
    name = re.search(r"(resid_post|mlp_out|attn_out|transcoder)(?:_all)?/layer_(\d+)_", place.name)
    layer, point = (told[1], _MODULES.get(told[2])) if told else (None, None)
    if point is None and name:
        layer, point = name[2], _SITES[name[1]]
    if layer is not None and point is not None:
        found["hook_point"] = f"blocks.{layer}.{point}"
        if point == "hook_resid_post":
            found["hf_module"] = f"model.layers.{layer}"
        if transcodes:
            found["target"] = {"hook_point": f"blocks.{layer}.hook_mlp_out"}
    return found
