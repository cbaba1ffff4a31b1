"""The SAELens inference folder, up to version 6, as a mapping to and from ours; sae/folder.py reads it.

cfg.json            d_in, d_sae, dtype, device, apply_b_dec_to_input, normalize_activations,
                    reshape_activations, [k, rescale_acts_by_decoder_norm for topk], metadata {...},
                    architecture
sae_weights         W_enc [d_in, d_sae]  b_enc [d_sae]  W_dec [d_sae, d_in]  b_dec [d_in]; jumprelu adds
                    threshold [d_sae]; gated has b_gate, b_mag, r_mag [d_sae] in place of b_enc; row vectors:
                    acts @ W_enc

A transcoder ("transcoder", "skip_transcoder", "jumprelu_transcoder", "jumprelu_skip_transcoder") has d_out,
which W_dec and b_dec are of, W_skip [d_out, d_in] with a skip, and metadata.hook_name_out. The first two have
a plain ReLU: per-token TopK has no form there and is saved under names of ours, which SAELens refuses.

A crosscoder (architecture "crosscoder", which SAELens does not open) is such a folder of rows side by side:
`sides` lists their blocks of d_in, and `latents` says which of these architectures its latents are of.

Of SAELens 6.54.12: `metadata.sae_lens_version` must be 6 or later, or its reader takes the file for an old
one and drops the nested metadata. Batch-wise kinds are for training only there and are saved as jumprelu.
topk may select by pre_acts · ‖W_dec row‖ and divide by it when decoding (`rescale_acts_by_decoder_norm`);
that is folded into the weights here, exactly.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from saelens_lite.errors import CheckpointError, nearest
from saelens_lite.formats.opened import Place, check_shapes
from saelens_lite.json_data import misfit
from saelens_lite.sae import centred
from saelens_lite.sae.config import SAEConfig, Side, Target

CFG, WEIGHTS, SPARSITY = "cfg.json", "sae_weights.safetensors", "sparsity.safetensors"
BEFORE, SAVING = f"before.{WEIGHTS}", ".saving-"

NAME = "saelens"
HOLDS = f"{CFG} and {WEIGHTS}"
FILES = (CFG, WEIGHTS, SPARSITY)

SAELENS_VERSION = "6.54.12"
"""The version whose folder this file writes and is tested against."""

KIND_OF_ARCHITECTURE = {"standard": "relu", "topk": "topk", "jumprelu": "jumprelu", "gated": "gated"}
ARCHITECTURE_OF_KIND = {kind: architecture for architecture, kind in KIND_OF_ARCHITECTURE.items()}
DTYPES = ("float32", "float64", "float16", "bfloat16")

_FOLD_FIRST = (
    "fold it in SAELens, `sae.{method}(...)`, save the SAE again with `sae.save_model` and load that folder"
)
_NORMALISATION_WAY_OUT = {
    "expected_average_only_in": "the scale it needs is not in the folder: "
    + _FOLD_FIRST.format(method="fold_activation_norm_scaling_factor"),
    "covariance_whitening": "the whitening it needs is not in the weights: "
    + _FOLD_FIRST.format(method="fold_activation_whitening"),
    "constant_scalar_rescale": "it belongs to temporal SAEs, which have no counterpart here",
}
_NORMALISATIONS = ("none", "layer_norm", "constant_norm_rescale")
_NORMALISED = "normalize_activations"
"""Key of our own facts: what SAELens has no word for."""
_TRANSCODERS = {
    "transcoder": ("relu", False),
    "skip_transcoder": ("relu", True),
    "jumprelu_transcoder": ("jumprelu", False),
    "jumprelu_skip_transcoder": ("jumprelu", True),
    "topk_transcoder": ("topk", False),
    "topk_skip_transcoder": ("topk", True),
}
"""architecture -> kind, and whether it has a skip; the last two are our own."""
_NOT_HERE = {
    "abstopk": "it keeps latents below zero too, chosen by their size",
    "matching_pursuit": "its latents are found one after another, each from what the others leave",
    "temporal": "its latents depend on the tokens before, by attention",
}
CROSSCODER = "crosscoder"
_TRAINING_ONLY = ("batchtopk", "matryoshka_batchtopk")
_PLACE = {"hook_name": "hook_point", "hf_hook_name": "hf_module", "model_name": "model_name"}
"""metadata key -> SAEConfig field, for where the SAE reads."""
_TARGET_PLACE = {"hook_name_out": "hook_point", "hf_hook_name_out": "hf_module"}
"""metadata key -> Target field, for where a transcoder writes."""

_OLD_NAMES = {
    "hook_point": "hook_name",
    "hook_point_head_index": "hook_head_index",
    "activation_fn_str": "activation_fn",
}
_OLD_METADATA = (
    "model_name hook_name model_class_name hook_head_index model_from_pretrained_kwargs prepend_bos "
    "exclude_special_tokens neuronpedia_id context_size seqpos_slice dataset_path sae_lens_version "
    "sae_lens_training_version hook_name_out hook_head_index_out hf_hook_name hf_hook_name_out"
).split()


_OF_SIDE = {"d_model": int, "scale": float, "hook_point": str, "hf_module": str, "model_name": str}

_OUR_FACTS = {
    "saelens_lite?": {
        "store?": str,
        "stores?": [{"store?": str}],
        "train?": {"held_out_fraction?": float},
        "normalize_activations?": str,
        "prune_above?": float,
    }
}
"""What is relied on of metadata's own part."""


def recognises(place: Place) -> bool:
    return all((place.folder / name).is_file() or found_aside(place.folder, name) for name in (CFG, WEIGHTS))


def found_aside(folder: Path, name: str) -> list[Path]:
    """Copies of a file of ours that a killed save left on its way into the folder."""
    names = (name, BEFORE) if name == WEIGHTS else (name,)
    return [path for of in names for path in folder.glob(f"{SAVING}????????/{of}")]


def to_cfg(config: SAEConfig) -> dict[str, Any]:
    """The cfg.json of an SAE, keys in the order of SAELens' own `save_model`.

    `config.metadata` becomes `metadata` (our own facts lie under its key "saelens_lite"), with hook point,
    module path and model name in SAELens' names; numbers that JSON lacks (nan, inf) become null.
    """
    metadata = dict(config.metadata)
    if not _is_v6(metadata.get("sae_lens_version")):
        metadata["sae_lens_version"] = SAELENS_VERSION
    metadata.setdefault("sae_lens_training_version", None)
    for key, field in _PLACE.items():
        metadata[key] = getattr(config, field)
    if config.target is not None:
        metadata |= {key: getattr(config.target, field) for key, field in _TARGET_PLACE.items()}
    normalised, ours = config.normalize_activations, dict(_ours(metadata))
    ours.pop(_NORMALISED, None)
    if normalised not in _NORMALISATIONS:
        ours[_NORMALISED] = normalised
        options = metadata.get("model_from_pretrained_kwargs")
        metadata["model_from_pretrained_kwargs"] = {**(options or {}), "center_writing_weights": True}
        normalised = "none"
    if ours or "saelens_lite" in metadata:
        metadata["saelens_lite"] = ours
    cfg: dict[str, Any] = {
        "d_in": config.d_model,
        "d_sae": config.d_sae,
        "dtype": config.dtype,
        "device": "cpu",
        "apply_b_dec_to_input": config.apply_b_dec_to_input,
        "normalize_activations": normalised,
        "reshape_activations": "hook_z" if config.hook_point.endswith(".hook_z") else "none",
        "metadata": _plain(metadata),
    }
    if config.kind == "topk":
        cfg |= {"k": config.k, "rescale_acts_by_decoder_norm": False}
    if config.target is not None:
        as_saved = (config.kind, config.target.skip)
        name = next(name for name, of in _TRANSCODERS.items() if of == as_saved)
        return cfg | {"d_out": config.d_out, "architecture": name}
    architecture = ARCHITECTURE_OF_KIND[config.kind]
    if config.sides:
        sides = [dataclasses.asdict(side) for side in config.sides]
        return cfg | {"architecture": CROSSCODER, "latents": architecture, "sides": sides}
    return cfg | {"architecture": architecture}


def from_cfg(cfg: Mapping[str, Any], where: str, dtype: str | None = None) -> SAEConfig:
    """The SAEConfig that a cfg.json describes, of SAELens 6 or before; as there, other keys are ignored.

    where: names the file in errors; dtype: overrides the file's
    raises: ValueError for an architecture, activation, normalisation, reshape or dtype that has no
        counterpart here; CheckpointError for a key that is missing or has the wrong type
    """
    if not isinstance(cfg, Mapping):
        got = type(cfg).__name__
        raise CheckpointError(f"{where}: expected a JSON object, got {got}; this is no SAE configuration")
    metadata = cfg.get("metadata") or {}
    if not isinstance(metadata, Mapping):
        got = type(metadata).__name__
        raise CheckpointError(f"{where}: expected metadata to be a JSON object, got {got}")
    if not _is_v6(cfg.get("sae_lens_version") or metadata.get("sae_lens_version")):
        cfg = _modernised(cfg, where)
        metadata = cfg["metadata"]

    architecture, sides = _required(cfg, "architecture", str, where), ()
    if architecture == CROSSCODER:
        if found := misfit(dict(cfg), {"latents": str, "sides": [_OF_SIDE]}):
            raise CheckpointError(f"{where}: {found}")
        architecture = cfg["latents"]
        sides = tuple(Side(**{name: side[name] for name in _OF_SIDE}) for side in cfg["sides"])
    kind, skip = _TRANSCODERS.get(architecture, (KIND_OF_ARCHITECTURE.get(architecture), None))
    if architecture in _TRAINING_ONLY:
        raise ValueError(
            f"{where}: architecture {architecture!r} is a training form without a fixed threshold; "
            "save it with SAELens' `save_inference_model`, which writes jumprelu, and load that folder"
        )
    if kind is None:
        if architecture in _NOT_HERE:
            raise ValueError(
                f"{where}: architecture {architecture!r} is not opened here: {_NOT_HERE[architecture]}; "
                "sae_lens itself opens it"
            )
        opened = (*KIND_OF_ARCHITECTURE, *_TRANSCODERS)
        raise ValueError(
            f"{where}: expected architecture {', '.join(opened)}, got {architecture!r}"
            f"{nearest(architecture, opened)}"
        )
    reshape = cfg.get("reshape_activations", "none")
    if reshape not in ("none", "hook_z", None):  # heads side by side, as attn.hook_z has them here anyway
        raise ValueError(
            f"{where}: reshape_activations {reshape!r} is not supported (expected 'none' or 'hook_z'): how "
            "rows are to be laid out is not known"
        )
    normalisation = cfg.get("normalize_activations", "none")
    if normalisation not in _NORMALISATIONS:
        way_out = _NORMALISATION_WAY_OUT.get(
            str(normalisation), "open it with sae_lens and fold its scale into the weights"
        )
        raise ValueError(
            f"{where}: normalize_activations {normalisation!r} is not supported (expected "
            f"{', '.join(_NORMALISATIONS)}): {way_out}"
        )
    if found := misfit(dict(metadata), _OUR_FACTS, "metadata"):
        raise CheckpointError(f"{where}: {found}")
    metadata = {key: value for key, value in metadata.items() if (key, value) != ("saelens_lite", None)}
    place = {field: metadata[key] for key, field in _PLACE.items() if metadata.get(key) is not None}
    target, known = None, {*_PLACE}
    if skip is not None:
        writes = {field: metadata[key] for key, field in _TARGET_PLACE.items() if metadata.get(key)}
        target = Target(d_model=_required(cfg, "d_out", int, where), skip=skip, **writes)
        known |= {*_TARGET_PLACE}
    return SAEConfig(
        d_model=_required(cfg, "d_in", int, where),
        d_sae=_required(cfg, "d_sae", int, where),
        kind=kind,
        apply_b_dec_to_input=bool(cfg.get("apply_b_dec_to_input", skip is None)),
        normalize_activations=_ours(metadata).get(_NORMALISED)
        or centred.normalisation(metadata, normalisation, where),
        dtype=dtype or dtype_name(_required(cfg, "dtype", str, where), where),
        metadata={key: value for key, value in metadata.items() if key not in known},
        k=_required(cfg, "k", int, where) if kind == "topk" else None,
        sides=sides,
        target=target,
        **place,
    )


def from_tensors(
    tensors: Mapping[str, Tensor], config: SAEConfig, where: str, rescaled_by_decoder_norm: bool = False
) -> dict[str, Tensor]:
    """The state dict for `SparseAutoencoder(config)`, every name and shape checked.

    Older files may have JumpReLU's `log_threshold`, and a `scaling_factor` of ones.
    rescaled_by_decoder_norm: cfg.json's `rescale_acts_by_decoder_norm`; latents stay as SAELens computes them
    raises: CheckpointError naming the tensor, the shape expected from cfg.json and the one received
    """
    tensors = dict(tensors)
    if "log_threshold" in tensors:
        tensors["threshold"] = tensors.pop("log_threshold").exp()
    if (scale := tensors.pop("scaling_factor", None)) is not None and not torch.allclose(
        scale, torch.ones_like(scale)
    ):
        raise CheckpointError(
            f"{where}: the tensor scaling_factor is not all ones: this SAE was finetuned with per-latent "
            "scales; open it with sae_lens < 6 and multiply them into the rows of W_dec"
        )
    check_shapes(tensors, config, where, f"cfg.json: d_in={config.d_model}, d_sae={config.d_sae}")
    return _with_norms_folded(tensors) if rescaled_by_decoder_norm else tensors


def _with_norms_folded(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """In float32 at least."""
    exact = {name: t.to(torch.promote_types(t.dtype, torch.float32)) for name, t in tensors.items()}
    norms = exact["W_dec"].norm(dim=1).clamp_min(1e-8)
    scaled = {name: exact[name] * norms for name in ("W_enc", "b_enc")}
    return exact | scaled | {"W_dec": exact["W_dec"] / norms[:, None]}


def _ours(metadata: Mapping[str, Any]) -> Mapping[str, Any]:
    ours = metadata.get("saelens_lite")
    return ours if isinstance(ours, Mapping) else {}


def with_overrides(cfg: Any, overrides: Mapping[str, Any]) -> Any:
    """A cfg.json with what a catalogue knows better; in version 6 the model's facts lie in its metadata."""
    if not isinstance(cfg, Mapping) or not overrides:
        return cfg
    metadata = cfg.get("metadata")
    if not isinstance(metadata, Mapping):
        return {**cfg, **overrides}
    facts = {key: value for key, value in overrides.items() if key in _OLD_METADATA}
    return {**cfg, **overrides, "metadata": {**metadata, **facts}}


def needs_scale(cfg: Any) -> bool:
    """Whether a factor of the input is left out of the folder."""
    return isinstance(cfg, Mapping) and cfg.get("normalize_activations") in ("expected_average_only_in", True)


def with_scale_folded(tensors: Mapping[str, Tensor], scale: float) -> dict[str, Tensor]:
    """The SAE that does to x what these tensors do to scale · x, with the same latents."""
    factor = {"W_enc": scale, "W_dec": 1 / scale, "b_dec": 1 / scale}
    wide = {name: t.to(torch.promote_types(t.dtype, torch.float32)) for name, t in tensors.items()}
    return {name: tensor * factor.get(name, 1) for name, tensor in wide.items()}


def _modernised(cfg: Mapping[str, Any], where: str) -> dict[str, Any]:
    """A configuration from before SAELens 6, in the words of version 6."""
    new = {_OLD_NAMES.get(key, key): value for key, value in cfg.items()}
    new.setdefault("architecture", "standard")
    new.setdefault("prepend_bos", True)
    new.setdefault("reshape_activations", "hook_z" if "hook_z" in (new.get("hook_name") or "") else "none")
    normalised = new.get("normalize_activations") or "none"
    new["normalize_activations"] = "expected_average_only_in" if normalised is True else normalised
    activation, arguments = new.get("activation_fn", "relu"), new.get("activation_fn_kwargs") or {}
    if activation == "topk":
        new |= {"architecture": "topk", "k": arguments.get("k", new.get("k"))}
    elif activation != "relu":
        raise ValueError(
            f"{where}: expected activation_fn relu or topk, got {activation!r}; it has no counterpart here"
        )
    new["metadata"] = {key: new[key] for key in _OLD_METADATA if key in new}
    return new


def _is_v6(version: Any) -> bool:
    major = str(version or "").split(".")[0]
    return major.isdigit() and int(major) >= 6


def _required(cfg: Mapping[str, Any], key: str, kind: type, where: str) -> Any:
    if cfg.get(key) is None:
        raise CheckpointError(
            f"{where}: expected a key {key!r}, got only {', '.join(cfg) or 'nothing'}; this is no SAELens "
            "cfg.json"
        )
    if not isinstance(cfg[key], kind) or isinstance(cfg[key], bool):
        raise CheckpointError(f"{where}: expected {key} to be {kind.__name__}, got {cfg[key]!r}")
    return cfg[key]


def dtype_name(name: str, where: str) -> str:
    """A dtype's name without "torch."; where: names the file in the ValueError for an unknown one."""
    bare = name.removeprefix("torch.")
    if bare not in DTYPES:
        raise ValueError(
            f"{where}: expected dtype {', '.join(DTYPES)}, got {name!r}; pass dtype= to choose one"
        )
    return bare


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value if isinstance(value, (str, int, bool, type(None))) else str(value)
