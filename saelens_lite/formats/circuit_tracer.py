"""circuit-tracer's sets of transcoders: a file for every layer, from which it draws attribution graphs.

config.yaml             model_name, model_kind: transcoder_set, scan, feature_input_hook and
                        feature_output_hook (hook points without blocks.{i}.); activation relu, or topk with
                        k; absent: JumpReLU where the file has a threshold, else ReLU
layer_{i}.safetensors   W_enc [n, d]  W_dec [n, d]  b_enc [n]  b_dec [d]; activation_function.threshold [n];
                        W_skip [d, d]

    latents = activation(acts @ W_encᵀ + b_enc)        nothing is subtracted
    recons  = latents @ W_dec + b_dec (+ acts @ W_skipᵀ)

Its TopK keeps the k largest below zero too; here, as everywhere, ReLU follows. ReLU follows JumpReLU
here, too: a threshold below zero is written as 0, which computes the same.
source: github.com/safety-research/circuit-tracer 0.4.1
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import Tensor

from saelens_lite.atomic import appearing_folder
from saelens_lite.errors import CheckpointError
from saelens_lite.formats.opened import Opened, Place, named, opened
from saelens_lite.formats.tensor_files import read_tensors
from saelens_lite.json_data import misfit
from saelens_lite.sae.config import SAEConfig

Layer = tuple[SAEConfig, Mapping[str, Tensor]]

NAME = "circuit_tracer"
HOLDS = "layer_{i}.safetensors"
FILES = ("config.yaml",)
TARGET = "circuit-tracer"
"""Its name as a target of `convert`."""

_FILE = re.compile(r"layer_(\d+)\.safetensors")
_NAMES = {"W_enc": "W_enc.T", "b_enc": "b_enc", "W_dec": "W_dec", "b_dec": "b_dec"}
_MORE = {"threshold": "activation_function.threshold", "W_skip": "W_skip"}
_FORM = {"model_name?": str, "feature_input_hook?": str, "feature_output_hook?": str, "activation?": str,
         "k?": int}  # fmt: skip
_HOOK_POINT = re.compile(r"blocks\.(\d+)\.(.+)")
_TOPK_NOTE = "circuit-tracer's TopK keeps the k largest below zero too; here ReLU follows"


def recognises(place: Place) -> bool:
    return bool(_FILE.fullmatch(place.path.name)) and place.path.is_file()


def read(place: Place) -> Opened:
    """One layer. raises: ValueError for an activation that is not known; CheckpointError for other tensors"""
    if (layer := _FILE.fullmatch(place.path.name)) is None:
        raise CheckpointError(f"{place.path}: expected {HOLDS}, one file of a set")
    where, config = str(place.path), _config(place.folder / "config.yaml")
    tensors = read_tensors(place.path)
    found = named(tensors, where, **_NAMES, **{ours: of for ours, of in _MORE.items() if of in tensors})
    activation = config.get("activation")
    if activation not in (None, "relu", "topk"):
        raise ValueError(f"{where}: config.yaml: activation expected relu, topk or none, got {activation!r}")
    kind = activation or ("jumprelu" if "threshold" in found else "relu")
    reads, writes = (config.get(f"feature_{end}_hook") for end in ("input", "output"))
    block = f"blocks.{layer[1]}"
    return opened(
        found,
        where,
        (_TOPK_NOTE,) if kind == "topk" else (),
        kind=kind,
        k=config.get("k") if kind == "topk" else None,
        model_name=config.get("model_name") or "",
        hook_point=f"{block}.{reads or 'mlp.hook_in'}",
        target={"hook_point": f"{block}.{writes or 'hook_mlp_out'}"},
    )


def write(layers: Sequence[Layer], folder: Path) -> Path:
    """A set of transcoders, one for each block from 0, as a folder; it appears whole or not at all.

    layers: configuration and parameters of each, in any order
    returns: the folder, which must be new or empty
    raises: ValueError for blocks that are missing or there twice, or for transcoders that differ in model,
        place, kind, k, width or skip; FileExistsError for a folder with files
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise FileExistsError(f"{folder} expected a new or empty folder, got one with files; choose another")
    by_block, config = _checked(layers)
    with appearing_folder(folder) as staged:
        for block, tensors in by_block.items():
            state = {name: tensor.detach().cpu() for name, tensor in tensors.items()}
            theirs = {"W_enc": state.pop("W_enc").T} | {_MORE.get(name, name): t for name, t in state.items()}
            if "threshold" in state:
                theirs[_MORE["threshold"]] = state["threshold"].clamp_min(0)
            whole = {name: tensor.contiguous() for name, tensor in theirs.items()}
            save_file(whole, staged / f"layer_{block}.safetensors")
        lines = [f"{key}: {json.dumps(value)}\n" for key, value in config.items()]  # JSON's values are YAML's
        (staged / "config.yaml").write_text("".join(lines), encoding="utf-8")
    return folder


def _checked(layers: Sequence[Layer]) -> tuple[dict[int, Mapping[str, Tensor]], dict[str, Any]]:
    """Parameters by block, and config.yaml. raises: as `write`"""
    by_block: dict[int, Mapping[str, Tensor]] = {}
    facts: dict[int, dict[str, Any]] = {}
    for config, tensors in layers:
        told = _HOOK_POINT.fullmatch(config.hook_point)
        if told is None:
            at = config.hook_point or "no hook point"
            raise ValueError(f"{TARGET} expected transcoders of blocks.{{i}}, got one of {at}")
        if (block := int(told[1])) in by_block:
            raise ValueError(f"{TARGET} expected one transcoder for each block, got two of block {block}")
        by_block[block], facts[block] = tensors, _facts(block, config)
    if missing := sorted({*range(max(by_block, default=0) + 1)} - {*by_block}):
        raise ValueError(
            f"{TARGET} expected a transcoder for every block from 0, got none of block "
            f"{', '.join(map(str, missing))}: it replaces the MLP of every layer"
        )
    for block, found in facts.items():
        for key, value in found.items():
            if value != facts[0][key]:
                raise ValueError(
                    f"{TARGET} expected one {key} in all blocks, got {facts[0][key]!r} in block 0 and "
                    f"{value!r} in block {block}"
                )
    first = facts[0]
    told = {"model_name": first["model_name"], "model_kind": "transcoder_set", "scan": None}
    told |= {key: first[key] for key in ("feature_input_hook", "feature_output_hook")}
    if first["kind"] != "jumprelu":
        told |= {"activation": first["kind"]} | ({"k": first["k"]} if first["kind"] == "topk" else {})
    return by_block, told


def _facts(block: int, config: SAEConfig) -> dict[str, Any]:
    """What all transcoders of a set have in common. raises: ValueError for a target in another block"""
    place, target = f"blocks.{block}.", config.target
    if target is None or not target.hook_point.startswith(place):
        at = (target and target.hook_point) or "no place"
        raise ValueError(f"{TARGET} expected a transcoder of block {block} to write in it, got {at}")
    return {
        "model_name": config.model_name,
        "feature_input_hook": config.hook_point.removeprefix(place),
        "feature_output_hook": target.hook_point.removeprefix(place),
        "kind": config.kind,
        "k": config.k,
        "skip": target.skip,
        "d_model": config.d_model,
        "d_out": config.d_out,
        "d_sae": config.d_sae,
    }


def _config(file: Path) -> dict[str, Any]:
    """config.yaml; {} where there is none. raises: CheckpointError for one that cannot be read"""
    if not file.is_file():
        return {}
    import yaml

    try:
        config = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise CheckpointError(f"{file}: expected YAML, got {error}; copy it again") from error
    if not isinstance(config, dict):
        raise CheckpointError(f"{file}: expected keys and values, got {type(config).__name__}")
    if found := misfit({key: value for key, value in config.items() if value is not None}, _FORM):
        raise CheckpointError(f"{file}: {found}")
    return config
