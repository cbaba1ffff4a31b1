"""Goodfire's SAEs of Llama 3, and others saved as two linear layers: one .pth or .pt file.

Goodfire/Llama-3.1-8B-Instruct-SAE-l19, Goodfire/Llama-3.3-70B-Instruct-SAE-l50
    encoder_linear.{weight [n, d], bias [n]}  decoder_linear.{weight [d, n], bias [d]}
qresearch/DeepSeek-R1-Distill-Llama-8B-SAE-l19
    the same as encoder.* and decoder.*

    latents = ReLU(acts @ encoder.weightᵀ + encoder.bias)        nothing is subtracted
    recons  = latents @ decoder.weightᵀ + decoder.bias

Model and layer stand in the name: l19 is the stream after block 19.
"""

from __future__ import annotations

import re

from saelens_lite.errors import CheckpointError
from saelens_lite.formats import dictionary_learning
from saelens_lite.formats.opened import Opened, Place, named, opened
from saelens_lite.formats.tensor_files import contents, read_tensors

NAME = "goodfire"
HOLDS = "a .pt or .pth file of two linear layers, encoder[_linear] and decoder[_linear]"
FILES = ()

_OWNERS = {"Llama": "meta-llama", "DeepSeek": "deepseek-ai"}


def recognises(place: Place) -> bool:
    if place.pickle is None or dictionary_learning.recognises(place):
        return False
    names = contents(place.pickle).keys()
    return any(_names(linear).keys() == names for linear in ("_linear", ""))


def read(place: Place) -> Opened:
    """raises: CheckpointError for other tensors"""
    file = place.pickle
    if file is None:
        raise CheckpointError(f"{place.path}: expected {HOLDS}, got none or several; name the file itself")
    tensors = read_tensors(file)
    linear = "_linear" if "encoder_linear.weight" in tensors else ""
    ours = {our: name for name, our in _names(linear).items()}
    transposed = {our: name + ".T" if our.startswith("W_") else name for our, name in ours.items()}
    found = named(tensors, str(file), **transposed)
    return opened(found, str(file), kind="relu", apply_b_dec_to_input=False, **_at(place))


def _names(linear: str) -> dict[str, str]:
    """Their names -> ours."""
    return {
        f"encoder{linear}.weight": "W_enc",
        f"encoder{linear}.bias": "b_enc",
        f"decoder{linear}.weight": "W_dec",
        f"decoder{linear}.bias": "b_dec",
    }


def _at(place: Place) -> dict[str, str]:
    found = re.search(r"(\w+)(-[\w.-]+?)-SAE-l(\d+)", place.name)
    if not found or found[1] not in _OWNERS:
        return {}
    owner, (family, rest, layer) = _OWNERS[found[1]], found.groups()
    return {
        "model_name": f"{owner}/{family}{rest}",
        "hook_point": f"blocks.{layer}.hook_resid_post",
        "hf_module": f"model.layers.{layer}",
    }
