"""Qwen-Scope, Qwen's SAEs of its own models: Qwen/SAE-Res-{model}-W{N}K-L0_{k}, one file a layer.

layer{i}.sae.pt   W_enc [n, d]  b_enc [n]  W_dec [d, n]  b_dec [d]

    latents = the k largest of acts @ W_encᵀ + b_enc, then ReLU        nothing is subtracted
    recons  = latents @ W_decᵀ + b_dec

Model and k stand in the repository's name alone, so a copy must keep it. Layer i is the stream after block i.
source: huggingface.co/collections/Qwen/qwen-scope
"""

from __future__ import annotations

import re

from saelens_lite.errors import CheckpointError
from saelens_lite.formats.opened import Opened, Place, named, opened
from saelens_lite.formats.tensor_files import read_tensors

NAME = "qwen_scope"
HOLDS = "layer{i}.sae.pt"
FILES = ()

_FILE = re.compile(r"layer(\d+)\.sae\.pt")


def recognises(place: Place) -> bool:
    return place.pickle is not None and bool(_FILE.fullmatch(place.pickle.name))


def read(place: Place) -> Opened:
    """raises: CheckpointError for other tensors, or where no name says k"""
    file = place.pickle
    release = re.search(r"SAE-Res-([^/]+)-W\d+K-L0_(\d+)", place.name)
    if file is None or release is None:
        raise CheckpointError(
            f"{place.name}: expected one file of a folder named as its repository, SAE-Res-{{model}}-W{{N}}K-"
            "L0_{k}: these SAEs say k in that name alone, so name the folder so"
        )
    where, (model, k) = str(file), release.groups()
    tensors = read_tensors(file)
    found = named(tensors, where, W_enc="W_enc.T", b_enc="b_enc", W_dec="W_dec.T", b_dec="b_dec")
    at = {"model_name": f"Qwen/{model}"}
    if layer := _FILE.fullmatch(file.name):
        at |= {"hook_point": f"blocks.{layer[1]}.hook_resid_post", "hf_module": f"model.layers.{layer[1]}"}
    return opened(found, where, kind="topk", k=int(k), apply_b_dec_to_input=False, **at)
