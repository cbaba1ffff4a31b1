"""Gemma Scope, Google DeepMind's SAEs of Gemma 2: google/gemma-scope-{2b,9b,27b}-{pt,it}-{res,mlp,att}.

layer_{L}/width_{W}/average_l0_{v}/params.npz
    W_enc [d, n]  b_enc [n]  W_dec [n, d]  b_dec [d]  threshold [n], W in either case; scaling_factor: ones

    pre_acts = acts @ W_enc + b_enc        b_dec is folded into b_enc, nothing is subtracted
    latents  = pre_acts where pre_acts > threshold, else 0

Model, layer and site stand in names alone: res is the stream after the block, mlp what the MLP adds to it
(after its norm), att the input of the attention's output projection, heads side by side.
source: Lieberum et al. 2024, arXiv:2408.05147
"""

from __future__ import annotations

import re

import torch

from saelens_lite.errors import CheckpointError
from saelens_lite.formats.opened import Opened, Place, named, opened
from saelens_lite.formats.tensor_files import read_tensors

NAME = "gemma_scope"
HOLDS = "params.npz"
FILES = ("params.npz",)

_SITES = {"res": "hook_resid_post", "mlp": "hook_mlp_out", "att": "attn.hook_z"}


def recognises(place: Place) -> bool:
    return place.holds("params.npz") and place.path.suffix in ("", ".npz")


def read(place: Place) -> Opened:
    """raises: ValueError for transcoders and embedding SAEs; CheckpointError for other tensors"""
    if re.search(r"gemma-scope-[^/]*transcoder", place.name):
        raise ValueError(
            f"{place.name}: a transcoder, which reads before the MLP and writes what it adds: not opened here"
        )
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
    return opened(found, where, kind="jumprelu", apply_b_dec_to_input=False, **_at(place))


def _at(place: Place) -> dict[str, str]:
    """Model and hook point, as far as the name says them."""
    release = re.search(r"gemma-scope-(\d+b)-(pt|it)-(res|mlp|att)", place.name)
    layer = re.search(r"layer_(\d+)(?=/|$)", place.name)
    if not release:
        return {}
    size, tuning, site = release.groups()
    found = {"model_name": f"google/gemma-2-{size}" + "-it" * (tuning == "it")}
    if layer:
        found["hook_point"] = f"blocks.{layer[1]}.{_SITES[site]}"
        if site == "res":
            found["hf_module"] = f"model.layers.{layer[1]}"
    return found
