"""Crosscoders of science-of-finetuning/dictionary_learning, a fork: model_final.pt, or model.safetensors.

encoder.weight [L d n]  encoder.bias [n]  decoder.weight [L n d]  decoder.bias [L d]
code_normalization_id   how a latent's activation is weighed against the threshold: 1 by the sum of the L row
                        norms, 2 by the norm of all together, 3 mixed, 4 not at all, 5 each layer apart
activation_mean, activation_std [L d] (nan: none), activation_global_scale [L], target_rms
k, threshold            of a BatchTopK one; -1 was never set

    x' = (x − mean) · scale    f = ReLU(Σ_l x'_l W_enc,l + b)    x̂_l = (f W_dec,l + b_dec,l) / scale + mean

and with a threshold f stays where f · weight > threshold. Mean, scale and weight are folded here. Not opened:
5, whose latents differ from layer to layer; 3, whose two factors the file leaves out, with a threshold.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from einops import rearrange
from safetensors import SafetensorError, safe_open
from torch import Tensor

from saelens_lite.errors import CheckpointError
from saelens_lite.formats.opened import Opened, Place, opened
from saelens_lite.formats.tensor_files import contents, read_tensors
from saelens_lite.sae.config import Side

NAME = "dictionary_learning_crosscoder"
HOLDS = "a state dict with encoder.weight of three dimensions, such as model_final.pt"
FILES = ("model_final.pt", "model.safetensors", "config.json")

_NEEDED = ("encoder.weight", "encoder.bias", "decoder.weight", "decoder.bias")
_KNOWN = {
    *_NEEDED, "code_normalization_id", "activation_mean", "activation_std", "activation_global_scale",
    "target_rms", "k", "threshold",
}  # fmt: skip
_SUM, _TOGETHER, _MIXED, _NONE, _APART = range(1, 6)


def recognises(place: Place) -> bool:
    return _weights(place) is not None


def read(place: Place) -> Opened:
    """raises: ValueError for a code normalisation without a counterpart; CheckpointError for other tensors"""
    file = _weights(place)
    if file is None:
        raise CheckpointError(f"{place.path}: expected {HOLDS}")
    where, tensors = str(file), read_tensors(file)
    for name in _NEEDED:
        if not isinstance(tensors.get(name), Tensor):
            raise CheckpointError(f"{where}: expected a tensor {name}, got only {', '.join(sorted(tensors))}")
    if unknown := sorted(set(tensors) - _KNOWN):
        raise CheckpointError(f"{where}: {', '.join(unknown)} not known in this format")
    encoder, bias, decoder, b_dec = (tensors[name] for name in _NEEDED)
    n_sides, d_model, d_sae = encoder.shape
    for name, found, shape in (
        ("encoder.bias", bias, (d_sae,)),
        ("decoder.weight", decoder, (n_sides, d_sae, d_model)),
        ("decoder.bias", b_dec, (n_sides, d_model)),
    ):
        if tuple(found.shape) != shape:
            raise CheckpointError(f"{where}: expected {name} {list(shape)}, got {list(found.shape)}")
    scale, mean = _normalisation(tensors, b_dec, where)
    weight, notes = _weight(tensors, decoder, where)
    fields: dict[str, Any] = {"kind": "relu", "apply_b_dec_to_input": False}
    folded = {
        "W_enc": rearrange(encoder * scale[:, None, None], "l d n -> (l d) n"),
        "b_enc": bias - torch.einsum("ld,ldn->n", mean * scale[:, None], encoder),
        "W_dec": rearrange(decoder / scale[:, None, None], "l n d -> n (l d)"),
        "b_dec": rearrange(b_dec / scale[:, None] + mean, "l d -> (l d)"),
    }
    threshold = tensors.get("threshold")
    if threshold is not None:
        if threshold.numel() != 1:
            raise CheckpointError(f"{where}: expected one threshold, got {list(threshold.shape)}")
        if (value := float(threshold)) >= 0:
            fields["kind"] = "jumprelu"
            # a latent of weight 0 is never above it
            most = torch.finfo(weight.dtype).max
            folded["threshold"] = torch.where(weight > 0, value / weight, most).clamp_max(most)
        else:
            notes = (*notes, "its threshold was never set: every positive latent stays")
    sides = tuple(Side(d_model=d_model, scale=float(s)) for s in scale)
    return opened(folded, where, notes, sides=sides, **fields)


def _weights(place: Place) -> Path | None:
    """The file, if it holds an encoder of several layers."""
    if place.path.is_file() and place.path.suffix == ".safetensors":
        file = place.path
    else:
        file = place.pickle or place.folder / "model.safetensors"
    return file if file.is_file() and len(_shape_of_encoder(file)) == 3 else None


def _shape_of_encoder(file: Path) -> tuple[int, ...]:
    """() for a file without one, or that cannot be read."""
    if file.suffix != ".safetensors":
        encoder = contents(file).get(_NEEDED[0])
        return tuple(encoder.shape) if isinstance(encoder, Tensor) else ()
    try:
        with safe_open(file, framework="pt") as found:
            return tuple(found.get_slice(_NEEDED[0]).get_shape())
    except (OSError, SafetensorError):
        return ()


def _normalisation(tensors: dict[str, Any], like: Tensor, where: str) -> tuple[Tensor, Tensor]:
    """What rows are multiplied by, float[L], after what is subtracted, float[L d]; 1 and 0 for nothing."""
    mean, scale = tensors.get("activation_mean"), tensors.get("activation_global_scale")
    if mean is None or bool(mean.isnan().any()):
        return like.new_ones(len(like)), torch.zeros_like(like)
    if mean.shape != like.shape or scale is None or scale.numel() not in (1, len(like)):
        raise CheckpointError(
            f"{where}: expected activation_mean {list(like.shape)} with a scale for each layer, got "
            f"{list(mean.shape)} and {None if scale is None else list(scale.shape)}"
        )
    return scale.reshape(-1).expand(len(like)), mean


def _weight(tensors: dict[str, Any], decoder: Tensor, where: str) -> tuple[Tensor, tuple[str, ...]]:
    """float[n]: what a latent is multiplied by before it is compared with the threshold."""
    identity, notes = tensors.get("code_normalization_id"), ()
    kind = _SUM if identity is None else int(identity)
    if identity is None:
        notes = ("it does not say how latents are weighed: by the sum of their norms, as its code assumes",)
    if kind == _APART or (kind == _MIXED and "threshold" in tensors):
        apart = "latents that differ from layer to layer"
        what = apart if kind == _APART else "a mixture whose factors it lacks"
        raise ValueError(f"{where}: code_normalization_id {kind}, {what}, has no counterpart here")
    norms = decoder.norm(dim=2)
    weights = {_TOGETHER: norms.square().sum(0).sqrt(), _NONE: torch.ones_like(norms[0])}
    return weights.get(kind, norms.sum(0)), notes
