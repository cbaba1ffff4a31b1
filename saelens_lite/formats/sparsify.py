"""sparsify, EleutherAI's SAE trainer: a folder a hook point, such as layers.10/ or layers.3.mlp/.

cfg.json          d_in, k, num_latents (0: d_in · expansion_factor), activation, normalize_decoder,
                  multi_topk, transcode, skip_connection
sae.safetensors   encoder.weight [n, d]  encoder.bias [n]  W_dec [n, d]  b_dec [d]

    latents = the k largest of ReLU((acts - b_dec) @ encoder.weightᵀ + encoder.bias)
    recons  = latents @ W_dec + b_dec

A transcoder ("transcode": true) subtracts nothing: it reads what the module of its hook point takes and
writes what it gives, with acts @ W_skipᵀ added where it has W_skip [d, d] ("skip_connection"). Of an MLP
these are blocks.{i}.mlp.hook_in and hook_mlp_out, in a model without a norm after the MLP.

normalize_decoder and multi_topk matter in training only. config.json of the run, one folder up, names the
model. source: github.com/EleutherAI/sparsify 1.3.3
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import Tensor

from saelens_lite.errors import CheckpointError
from saelens_lite.formats.opened import Opened, Place, check_widths, expect, named, opened, read_json
from saelens_lite.formats.tensor_files import read_tensors
from saelens_lite.sae.biases import subtracting
from saelens_lite.sae.config import SAEConfig

NAME = "sparsify"
HOLDS = "cfg.json and sae.safetensors"
FILES = ("cfg.json", "sae.safetensors", "../config.json")

_FORM = {
    "d_in": int, "k": int, "num_latents?": int, "expansion_factor?": int, "activation?": str,
    "signed?": bool, "transcode?": bool, "skip_connection?": bool,
}  # fmt: skip

_NAMES = {"W_enc": "encoder.weight.T", "b_enc": "encoder.bias", "W_dec": "W_dec", "b_dec": "b_dec"}

_HOOKPOINT = re.compile(r"(?:^|/)((?:\w+\.)*(?:layers|h|blocks)[._](\d+)((?:\.\w+)*))(?:/seed\d+)?/?$")


def recognises(place: Place) -> bool:
    return place.holds("cfg.json", "sae.safetensors")


def read(place: Place) -> Opened:
    """raises: ValueError for GroupMax and signed latents; CheckpointError for other tensors"""
    where = str(place.folder / "cfg.json")
    cfg = read_json(place.folder / "cfg.json", _FORM)
    transcodes, skips = cfg.get("transcode", False), cfg.get("skip_connection", False)
    if skips and not transcodes:
        raise ValueError(
            f"{where}: skip_connection True expected transcode True: an SAE with a skip is not opened here"
        )
    expect(
        cfg.get("activation"), "activation", ("topk",), where,
        "GroupMax keeps one latent of each group, a nonlinearity without counterpart here",
    )  # fmt: skip
    expect(
        cfg.get("signed"), "signed", (False,), where,
        "latents below zero, chosen by their size, have no counterpart here",
    )  # fmt: skip
    weights = str(place.folder / "sae.safetensors")
    tensors = read_tensors(place.folder / "sae.safetensors")
    if "W_dec" not in tensors:
        raise CheckpointError(f"{weights}: expected W_dec, got an encoder alone; save the decoder with it")
    names = _NAMES | ({"W_skip": "W_skip"} if skips else {})
    found, at = named(tensors, weights, **names), _at(place, transcodes)
    sae = opened(found, weights, kind="topk", k=cfg["k"], **at)
    n_latents = cfg.get("num_latents") or cfg["d_in"] * cfg.get("expansion_factor", 0)
    return check_widths(sae, cfg["d_in"], n_latents, weights, place.folder / "cfg.json")


def write(config: SAEConfig, tensors: Mapping[str, Tensor], folder: Path) -> None:
    """cfg.json and sae.safetensors of an SAE or a transcoder.

    raises: ValueError for a kind that is no TopK, or a transcoder whose widths differ
    """
    if config.kind != "topk":
        raise ValueError(
            f"sparsify cannot hold an SAE of kind {config.kind!r}: it has TopK alone; formats saelens and "
            "dictionary_learning hold it"
        )
    if config.d_out != config.d_model:
        raise ValueError(
            f"sparsify cannot hold a transcoder of {config.d_model} to {config.d_out}: it has one width, "
            "d_in; format saelens holds it"
        )
    target = config.target
    moved = subtracting(config, tensors, wanted=target is None)
    norms = moved["W_dec"].double().norm(dim=1)
    cfg = {
        "activation": "topk",
        "expansion_factor": max(1, config.d_sae // config.d_model),
        "normalize_decoder": bool((norms - 1).abs().max() < 1e-3),
        "num_latents": config.d_sae,
        "k": config.k,
        "multi_topk": False,
        "skip_connection": target is not None and target.skip,
        "transcode": target is not None,
        "d_in": config.d_model,
    }
    (folder / "cfg.json").write_text(json.dumps(cfg), encoding="utf-8")
    theirs = {"encoder.weight": moved["W_enc"].T, "encoder.bias": moved["b_enc"]}
    theirs |= {name: moved[name] for name in ("W_dec", "b_dec", "W_skip") if name in moved}
    save_file({name: tensor.contiguous() for name, tensor in theirs.items()}, folder / "sae.safetensors")


def _at(place: Place, transcodes: bool) -> dict[str, Any]:
    """Hook points and model: by the folder's name, a module of the model without its head, and by the run's
    config.json one folder up."""
    found: dict[str, Any] = {"target": {}} if transcodes else {}
    if name := _HOOKPOINT.search(place.name):
        module, layer, below = name.groups()
        found |= {"metadata": {"saelens_lite": {"module": module}}}
        if transcodes and below == ".mlp":
            found["hook_point"] = f"blocks.{layer}.mlp.hook_in"
            found["target"] = {"hook_point": f"blocks.{layer}.hook_mlp_out"}
        elif not below and not transcodes:
            found["hook_point"] = f"blocks.{layer}.hook_resid_post"
    for run in (place.folder.parent / "config.json", place.folder.parent.parent / "config.json"):
        if run.is_file():
            return found | {"model_name": read_json(run, {"model?": str}).get("model") or ""}
    return found
