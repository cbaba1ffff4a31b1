"""sparsify, EleutherAI's SAE trainer: a folder a hook point, such as layers.10/ or layers.3.mlp/.

cfg.json          d_in, k, num_latents (0: d_in · expansion_factor), activation, normalize_decoder,
                  multi_topk, transcode, skip_connection
sae.safetensors   encoder.weight [n, d]  encoder.bias [n]  W_dec [n, d]  b_dec [d]

    latents = the k largest of ReLU((acts - b_dec) @ encoder.weightᵀ + encoder.bias)
    recons  = latents @ W_dec + b_dec

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

_NO_TRANSCODER = "it maps one place of the model to another, a transcoder, which is not opened here"
_FORM = {
    "d_in": int, "k": int, "num_latents?": int, "expansion_factor?": int, "activation?": str,
    "signed?": bool, "transcode?": bool, "skip_connection?": bool,
}  # fmt: skip

_HOOKPOINT = re.compile(r"(?:^|/)((?:\w+\.)*(?:layers|h|blocks)[._](\d+)((?:\.\w+)*))(?:/seed\d+)?/?$")


def recognises(place: Place) -> bool:
    return place.holds("cfg.json", "sae.safetensors")


def read(place: Place) -> Opened:
    """raises: ValueError for transcoders, GroupMax and signed latents; CheckpointError for other tensors"""
    where = str(place.folder / "cfg.json")
    cfg = read_json(place.folder / "cfg.json", _FORM)
    expect(cfg.get("transcode"), "transcode", (False,), where, _NO_TRANSCODER)
    expect(cfg.get("skip_connection"), "skip_connection", (False,), where, _NO_TRANSCODER)
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
    sae = opened(
        named(tensors, weights, W_enc="encoder.weight.T", b_enc="encoder.bias", W_dec="W_dec", b_dec="b_dec"),
        weights, kind="topk", k=cfg["k"], **_at(place),
    )  # fmt: skip
    n_latents = cfg.get("num_latents") or cfg["d_in"] * cfg.get("expansion_factor", 0)
    return check_widths(sae, cfg["d_in"], n_latents, weights, place.folder / "cfg.json")


def write(config: SAEConfig, tensors: Mapping[str, Tensor], folder: Path) -> None:
    """cfg.json and sae.safetensors of an SAE. raises: ValueError for a kind that is no TopK"""
    if config.kind != "topk":
        raise ValueError(
            f"sparsify cannot hold an SAE of kind {config.kind!r}: it has TopK alone; formats saelens and "
            "dictionary_learning hold it"
        )
    moved = subtracting(config, tensors, wanted=True)
    norms = moved["W_dec"].double().norm(dim=1)
    cfg = {
        "activation": "topk",
        "expansion_factor": max(1, config.d_sae // config.d_model),
        "normalize_decoder": bool((norms - 1).abs().max() < 1e-3),
        "num_latents": config.d_sae,
        "k": config.k,
        "multi_topk": False,
        "skip_connection": False,
        "transcode": False,
        "d_in": config.d_model,
    }
    (folder / "cfg.json").write_text(json.dumps(cfg), encoding="utf-8")
    theirs = {"encoder.weight": moved["W_enc"].T, "encoder.bias": moved["b_enc"]}
    theirs |= {"W_dec": moved["W_dec"], "b_dec": moved["b_dec"]}
    save_file({name: tensor.contiguous() for name, tensor in theirs.items()}, folder / "sae.safetensors")


def _at(place: Place) -> dict[str, Any]:
    """Hook point and model: by the folder's name, a module of the model without its head, and by the run's
    config.json one folder up."""
    found: dict[str, Any] = {}
    if name := _HOOKPOINT.search(place.name):
        module, layer, below = name.groups()
        found = {"metadata": {"saelens_lite": {"module": module}}}
        if not below:
            found["hook_point"] = f"blocks.{layer}.hook_resid_post"
    for run in (place.folder.parent / "config.json", place.folder.parent.parent / "config.json"):
        if run.is_file():
            return found | {"model_name": read_json(run, {"model?": str}).get("model") or ""}
    return found
