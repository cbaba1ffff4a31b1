"""dictionary_learning, the SAE trainer of Marks, Karvonen and Mueller: ae.pt beside config.json.

config.json   trainer {dict_class, activation_dim, dict_size, k, lm_name, layer, submodule_name, ...}
ae.pt         a state dict; checkpoints are ae_{step}.pt, often in checkpoints/ below config.json

dict_class               tensors                                      latents
AutoEncoder              bias, encoder.{weight, bias}, decoder.weight  ReLU of (acts - bias)
AutoEncoderNew           encoder.*, decoder.{weight, bias}             ReLU, nothing subtracted
AutoEncoderTopK          encoder.*, decoder.weight, b_dec              the k largest of ReLU, b_dec subtracted
BatchTopKSAE             the same                                      ReLU above threshold, b_dec subtracted
MatryoshkaBatchTopKSAE   W_enc, b_enc, W_dec, b_dec                    the same
GatedAutoEncoder         decoder_bias, encoder.weight, decoder.weight,
                         gate_bias, mag_bias, r_mag                    gated, decoder_bias subtracted
JumpReluAutoEncoder      W_enc, b_enc, W_dec, b_dec, threshold         above threshold, nothing subtracted

encoder.weight is [n, d] and decoder.weight [d, n]; W_enc [d, n] and W_dec [n, d]. What is saved is in the
units of the activations, whatever scale training used. A threshold of -1 was never set: every positive latent
stays, as there. source: github.com/saprmarks/dictionary_learning 0.1.0
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from saelens_lite.errors import CheckpointError
from saelens_lite.formats.opened import Opened, Place, check_widths, named, opened, read_json
from saelens_lite.formats.tensor_files import read_tensors
from saelens_lite.sae.biases import subtracting
from saelens_lite.sae.config import SAEConfig

NAME = "dictionary_learning"
HOLDS = "ae.pt, with a config.json that has a trainer"
FILES = ("ae.pt", "config.json")

_FORM = {"trainer": {"dict_class": str, "k?": int, "activation_dim?": int, "dict_size?": int, "layer?": int,
                     "lm_name?": str, "submodule_name?": str}}  # fmt: skip

_LINEAR = {"W_enc": "encoder.weight.T", "W_dec": "decoder.weight.T"}
_SHAPED = {name: name for name in ("W_enc", "b_enc", "W_dec", "b_dec")}
_NAMES: dict[str, dict[str, str]] = {
    "AutoEncoder": {**_LINEAR, "b_enc": "encoder.bias", "b_dec": "bias"},
    "AutoEncoderNew": {**_LINEAR, "b_enc": "encoder.bias", "b_dec": "decoder.bias"},
    "AutoEncoderTopK": {**_LINEAR, "b_enc": "encoder.bias", "b_dec": "b_dec"},
    "BatchTopKSAE": {**_LINEAR, "b_enc": "encoder.bias", "b_dec": "b_dec"},
    "MatryoshkaBatchTopKSAE": _SHAPED,
    "GatedAutoEncoder": {**_LINEAR, "b_gate": "gate_bias", "b_mag": "mag_bias", "r_mag": "r_mag",
                         "b_dec": "decoder_bias"},
    "JumpReluAutoEncoder": {**_SHAPED, "threshold": "threshold"},
}  # fmt: skip
_KINDS = {"AutoEncoderTopK": "topk", "GatedAutoEncoder": "gated", "JumpReluAutoEncoder": "jumprelu"}
_BATCHWISE = ("BatchTopKSAE", "MatryoshkaBatchTopKSAE")
_NOTHING_SUBTRACTED = ("AutoEncoderNew", "JumpReluAutoEncoder")


def recognises(place: Place) -> bool:
    file, config = _weights(place), _config(place)
    return file is not None and config is not None and "trainer" in read_json(config, {})


def read(place: Place) -> Opened:
    """raises: ValueError for another dict_class; CheckpointError for other tensors or contradictory sizes"""
    file, config = _weights(place), _config(place)
    if file is None or config is None:
        raise CheckpointError(f"{place.path}: expected {HOLDS}; without config.json its class is not known")
    trainer = read_json(config, _FORM)["trainer"]
    dict_class = re.sub(r"\W+$", "", trainer["dict_class"]).rpartition(".")[2]
    if dict_class not in _NAMES:
        raise ValueError(
            f"{config}: expected dict_class {', '.join(_NAMES)}, got {dict_class!r}, which has no "
            "counterpart here"
        )
    where, notes = str(file), ()
    tensors = read_tensors(file)
    k, threshold, _ = (tensors.pop(name, None) if name not in _NAMES[dict_class] else None
                       for name in ("k", "threshold", "group_sizes"))  # fmt: skip
    found = named(tensors, where, **_NAMES[dict_class])
    fields: dict[str, Any] = {"kind": _KINDS.get(dict_class, "relu")}
    if dict_class == "AutoEncoderTopK":
        fields["k"] = _number(k, trainer.get("k"), where)
    elif dict_class in _BATCHWISE:
        if not isinstance(threshold, Tensor) or threshold.numel() != 1:
            raise CheckpointError(
                f"{where}: expected a threshold for {dict_class}, got none: without it the latents of a row "
                "depend on the other rows of its batch"
            )
        if (value := float(threshold)) >= 0:
            fields["kind"] = "jumprelu"
            found["threshold"] = torch.full_like(found["b_enc"], value, dtype=torch.float32)
        else:
            notes = ("its threshold was never set: every positive latent stays, as in dictionary_learning",)
    fields["apply_b_dec_to_input"] = dict_class not in _NOTHING_SUBTRACTED
    sae = opened(found, where, notes, **fields, **_at(trainer))
    return check_widths(sae, trainer.get("activation_dim"), trainer.get("dict_size"), where, config)


def write(config: SAEConfig, tensors: Mapping[str, Tensor], folder: Path) -> None:
    """ae.pt and config.json of an SAE, in the class that computes the same.

    A jumprelu SAE becomes a JumpReluAutoEncoder, whose encoder subtracts nothing; TopK and gated ones are
    those that subtract; relu has a class for each.
    """
    subtracts = config.kind in ("topk", "gated") or (config.kind == "relu" and config.apply_b_dec_to_input)
    dict_class = {
        "topk": "AutoEncoderTopK",
        "gated": "GatedAutoEncoder",
        "jumprelu": "JumpReluAutoEncoder",
        "relu": "AutoEncoder" if subtracts else "AutoEncoderNew",
    }[config.kind]
    moved = subtracting(config, tensors, wanted=subtracts)
    theirs = {}
    for ours, name in _NAMES[dict_class].items():
        tensor = moved[ours].T if name.endswith(".T") else moved[ours]
        theirs[name.removesuffix(".T")] = tensor.detach().clone(memory_format=torch.contiguous_format)
    trainer: dict[str, Any] = {
        "dict_class": dict_class,
        "activation_dim": config.d_model,
        "dict_size": config.d_sae,
        "lm_name": config.model_name,
    }
    if config.kind == "topk":
        theirs |= {"k": torch.tensor(config.k, dtype=torch.int), "threshold": torch.tensor(-1.0)}
        trainer["k"] = config.k
    if layer := re.fullmatch(r"blocks\.(\d+)\.hook_resid_post", config.hook_point):
        trainer |= {"layer": int(layer[1]), "submodule_name": f"resid_post_layer_{layer[1]}"}
    elif config.trained_at:
        trainer["submodule_name"] = config.trained_at
    buffer = {"d_submodule": config.d_model, "io": "out", "ctx_len": config.metadata.get("context_size")}
    text = json.dumps({"trainer": trainer, "buffer": buffer})
    (folder / "config.json").write_text(text, encoding="utf-8")
    torch.save(theirs, folder / "ae.pt")


def _weights(place: Place) -> Path | None:
    if place.path.is_file():
        return place.path if re.fullmatch(r"ae(_\d+)?\.pt", place.path.name) else None
    file = place.path / "ae.pt"
    return file if file.is_file() else None


def _config(place: Place) -> Path | None:
    """Beside the weights, or one folder up for checkpoints."""
    beside = (folder / "config.json" for folder in (place.folder, place.folder.parent))
    return next((file for file in beside if file.is_file()), None)


def _number(saved: Any, told: int | None, where: str) -> int:
    """k by the weights' file or config.json. raises: CheckpointError where they differ, or neither has it"""
    found = int(saved) if isinstance(saved, Tensor) and saved.numel() == 1 else told
    if found is None or (told is not None and told != found):
        raise CheckpointError(f"{where}: expected k as in config.json, {told}, got {found}")
    return found


def _at(trainer: Mapping[str, Any]) -> dict[str, Any]:
    """Model and hook point, where the trainer's words for the place are known."""
    found: dict[str, Any] = {"model_name": trainer.get("lm_name") or ""}
    module = trainer.get("submodule_name") or ""
    if (layer := trainer.get("layer")) is not None and module.startswith("resid_post"):
        found["hook_point"] = f"blocks.{layer}.hook_resid_post"
    elif re.match(r"blocks\.\d+\.", module):
        found["hook_point"] = module
    elif module:
        found["metadata"] = {"saelens_lite": {"module": module}}
    return found
