"""Gemma Scope, Google DeepMind's SAEs of Gemma 2: google/gemma-scope-{2b,9b,27b}-{pt,it}-{res,mlp,att}.

layer_{L}/width_{W}/average_l0_{v}/params.npz
    W_enc [d, n]  b_enc [n]  W_dec [n, d]  b_dec [d]  threshold [n], W in either case; scaling_factor: ones

    pre_acts = acts @ W_enc + b_enc        b_dec is folded into b_enc, nothing is subtracted
    latents  = pre_acts where pre_acts > threshold, else 0

Model, layer and site stand in names alone: res is the stream after the block, mlp what the MLP adds to it
(after its norm), att the input of the attention's output projection, heads side by side.
Transcoders (google/gemma-scope-2b-pt-transcoders, in the same files) read what the norm before the MLP
gives before its gain, and write what the MLP adds. At mlp.hook_in, after the gain, they are the same with the
rows of W_enc divided by it (`after_gain`): the model is needed.

source: Lieberum et al. 2024, arXiv:2408.05147
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from saelens_lite.errors import CheckpointError
from saelens_lite.formats.opened import Opened, Place, named, opened
from saelens_lite.formats.tensor_files import read_tensors
from saelens_lite.lm.decoder import Decoder
from saelens_lite.sae.config import SAEConfig

NAME = "gemma_scope"
HOLDS = "params.npz"
FILES = ("params.npz",)

_BEFORE_GAIN = "ln2.hook_normalized"
"""TransformerLens' name of what the norm before the MLP gives before its gain; no module ends there."""
_SITES = {"res": "hook_resid_post", "mlp": "hook_mlp_out", "att": "attn.hook_z"}


def recognises(place: Place) -> bool:
    return place.holds("params.npz") and place.path.suffix in ("", ".npz")


def read(place: Place) -> Opened:
    """raises: ValueError for embedding SAEs; CheckpointError for other tensors"""
    if re.search(r"gemma-scope-[^/]*/embedding/", place.name):
        raise ValueError(
            f"{place.name}: an SAE of the token embeddings, whose scale (times sqrt(d_model) or not) its "
            "sources leave open; not opened here, since either reading could be wrong"
        )
    where = str(place.folder / "params.npz")
    tensors = {
        "W_" + name[2:] if name[:2] == "w_" else name: t
        for name, t in read_tensors(place.folder / "params.npz").items()
    }
    scale = tensors.pop("scaling_factor", None)
    if scale is not None and not torch.equal(scale, torch.ones_like(scale)):
        raise CheckpointError(
            f"{where}: expected a scaling_factor of ones, got others: how it acts is not published, and "
            "leaving it out would change the reconstruction"
        )
    ours = {name: name for name in ("W_enc", "b_enc", "W_dec", "b_dec", "threshold")}
    found = named(tensors, where, **ours)
    fields = {"apply_b_dec_to_input": False} | _at(place)
    return opened(found, where, kind="jumprelu", **fields)


def after_gain(
    config: SAEConfig, state: Mapping[str, Tensor], model: Any
) -> tuple[SAEConfig, dict[str, Tensor]]:
    """A transcoder that reads before the gain, as one at mlp.hook_in of this model of the Gemma 2 family.

    model: a Hugging Face model; its pre_feedforward_layernorm multiplies by 1 + weight
    raises: ValueError for a model without this norm, block or width, or for a gain of 0, which leaves nothing
        to read after it
    """
    block = int(config.hook_point.split(".")[1])
    layers = Decoder.of(model).layers
    norm = getattr(layers[block], "pre_feedforward_layernorm", None) if block < len(layers) else None
    if norm is None or norm.weight.shape != (config.d_model,):
        got = "none" if norm is None else f"a gain of {list(norm.weight.shape)}"
        raise ValueError(
            f"model expected blocks.{block} with a pre_feedforward_layernorm of {config.d_model}, got {got}: "
            f"pass {config.model_name or 'the Gemma 2 model'}"
        )
    gain = 1 + norm.weight.detach().cpu().double()
    if zeros := (gain == 0).nonzero().flatten().tolist():
        raise ValueError(
            f"model expected gains other than 0 in blocks.{block}.pre_feedforward_layernorm, got 0 at "
            f"{zeros[:10]}: what the transcoder reads there is lost after the gain"
        )
    encoder = state["W_enc"]
    moved = {**state, "W_enc": (encoder.double() / gain[:, None]).to(encoder.dtype)}
    return dataclasses.replace(config, hook_point=f"blocks.{block}.mlp.hook_in"), moved


def reads_before_gain(config: SAEConfig) -> bool:
    return config.target is not None and config.hook_point.endswith(f".{_BEFORE_GAIN}")


def _at(place: Place) -> dict[str, Any]:
    """Model and hook point, as far as the name says them."""
    release = re.search(r"gemma-scope-(\d+b)-(pt|it)-(res|mlp|att|transcoders)", place.name)
    layer = re.search(r"layer_(\d+)(?=/|$)", place.name)
    if not release:
        return {}
    size, tuning, site = release.groups()
    found: dict[str, Any] = {"model_name": f"google/gemma-2-{size}" + "-it" * (tuning == "it")}
    if site == "transcoders":
        found["target"] = {}
        if layer:
            found["hook_point"] = f"blocks.{layer[1]}.{_BEFORE_GAIN}"
            found["target"] = {"hook_point": f"blocks.{layer[1]}.hook_mlp_out"}
    elif layer:
        found["hook_point"] = f"blocks.{layer[1]}.{_SITES[site]}"
        if site == "res":
            found["hf_module"] = f"model.layers.{layer[1]}"
    return found
