"""OpenAI's SAEs of GPT-2 small, {location}_v5_{32k,128k}/autoencoders/{layer}.pt, and what its code saved.

{layer}.pt   pre_bias [d]  encoder.weight [n, d]  latent_bias [n]  decoder.weight [d, n]
             activation "TopK" or "ReLU", activation_state_dict {k, postact_fn}; statistics of latents

    TopK  normal  = (acts - mean) / (std + 1e-5), std unbiased
          latents = the k largest of (normal - pre_bias) @ encoder.weightᵀ + latent_bias, then ReLU
          recons  = (latents @ decoder.weightᵀ + pre_bias) · std + mean
    ReLU  the same without mean and std, and every positive latent stays; so where no activation is saved

source: Gao et al. 2024, arXiv:2406.04093; github.com/openai/sparse_autoencoder
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from saelens_lite.errors import CheckpointError
from saelens_lite.formats.opened import Opened, Place, expect, named, opened
from saelens_lite.formats.tensor_files import contents, read_tensors

NAME = "openai"
HOLDS = "a .pt file of pre_bias, latent_bias, encoder.weight and decoder.weight"
FILES = ()

_STATISTICS = ("stats_last_nonzero", "latents_activation_frequency", "latents_mean_square")
_LOCATIONS = {
    "resid_post_mlp": "hook_resid_post",
    "resid_post_attn": "hook_resid_mid",
    "resid_delta_mlp": "hook_mlp_out",
    "resid_delta_attn": "hook_attn_out",
    "mlp_post_act": "mlp.hook_post",
}


def recognises(place: Place) -> bool:
    return place.pickle is not None and {"pre_bias", "latent_bias"} <= contents(place.pickle).keys()


def read(place: Place) -> Opened:
    """raises: ValueError for another activation; CheckpointError for other tensors"""
    file = place.pickle
    if file is None:
        raise CheckpointError(f"{place.path}: expected {HOLDS}, got none or several; name the file itself")
    where = str(file)
    saved = {name: value for name, value in read_tensors(file).items() if name not in _STATISTICS}
    activation, state = str(saved.pop("activation", "ReLU")), saved.pop("activation_state_dict", {})
    state = state if isinstance(state, Mapping) else {}
    expect(activation, "activation", ("TopK", "ReLU"), where, "it has no counterpart here")
    fields: dict[str, Any] = {"kind": "relu"}
    if activation == "TopK":
        expect(state.get("postact_fn"), "postact_fn", ("ReLU",), where, "latents below zero have none here")
        if not isinstance(state.get("k"), int):
            raise CheckpointError(f"{where}: expected activation_state_dict to have a number k, got {state}")
        fields = {"kind": "topk", "k": state["k"], "normalize_activations": "layer_norm"}
    found = named(
        saved,
        where,
        W_enc="encoder.weight.T",
        b_enc="latent_bias",
        W_dec="decoder.weight.T",
        b_dec="pre_bias",
    )
    return opened(found, where, **fields, **_at(place))


def _at(place: Place) -> dict[str, str]:
    """GPT-2 small's layer and location, by the names of folder and file."""
    found = re.search(r"(\w+?)(?:_v\d+\w*)?/autoencoders/(\d+)\.pt$", place.name)
    if not found or found[1] not in _LOCATIONS:
        return {}
    return {"model_name": "openai-community/gpt2", "hook_point": f"blocks.{found[2]}.{_LOCATIONS[found[1]]}"}
