"""The common shape of foreign formats: where the files are, and the SAE that they hold in our terms.

A format is a file of this folder with
    NAME        its name, for `format=` and messages
    HOLDS       the files that it is recognised by, in words
    FILES       the files of one SAE in its folder, for a download
    recognises  whether the files at a place are of this format, by their names or by the keys in them
    read        the SAE at a place, whole
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from saelens_lite.errors import CheckpointError
from saelens_lite.json_data import Form, loads, misfit
from saelens_lite.sae.config import SAEConfig, Target


class Place(NamedTuple):
    """path: the folder of one SAE, or its file where a folder holds several.

    name: what it is called where it comes from, such as google/gemma-scope-2b-pt-res/layer_20/width_16k/...:
        some formats say model, layer or k in names alone
    """

    path: Path
    name: str

    @property
    def folder(self) -> Path:
        return self.path if self.path.is_dir() else self.path.parent

    def holds(self, *names: str) -> bool:
        """Whether these files are there; a path to one file is a folder of that file and those it needs."""
        return all((self.folder / name).is_file() for name in names)

    @property
    def pickle(self) -> Path | None:
        """The one .pt or .pth file that is meant, if there is one."""
        if self.path.is_file():
            return self.path if self.path.suffix in (".pt", ".pth") else None
        found = [file for file in self.path.iterdir() if file.suffix in (".pt", ".pth")]
        return found[0] if len(found) == 1 else None


class Opened(NamedTuple):
    """The SAE of a foreign file: what SparseAutoencoder(config) holds, and what a reader should be told."""

    config: SAEConfig
    tensors: dict[str, Tensor]
    notes: tuple[str, ...] = ()


class Format(Protocol):
    """What a file of this folder offers to be a format."""

    NAME: str
    HOLDS: str
    FILES: tuple[str, ...]
    recognises: Callable[[Place], bool]
    read: Callable[[Place], Opened]


def opened(
    tensors: Mapping[str, Tensor],
    where: str,
    notes: tuple[str, ...] = (),
    *,
    target: Mapping[str, str] | None = None,
    **fields: Any,
) -> Opened:
    """The SAE of tensors in our names; widths and dtype are theirs, the other facts are `fields`.

    target: where a transcoder writes, in fields of Target

    Nothing is allocated: what does not fit is refused by its shape.
    raises: CheckpointError for a tensor that is missing, not known, of another shape or of no float type
    """
    dtypes = {str(tensor.dtype) for tensor in tensors.values() if not tensor.is_floating_point()}
    if dtypes:
        raise CheckpointError(f"{where}: expected tensors of floats, got {', '.join(sorted(dtypes))}")
    if (decoder := tensors.get("W_dec")) is None or decoder.ndim != 2:
        got = "none" if decoder is None else f"shape {list(decoder.shape)}"
        raise CheckpointError(f"{where}: expected a decoder of two dimensions, got {got}")
    dtype = decoder.dtype
    for tensor in tensors.values():
        dtype = torch.promote_types(dtype, tensor.dtype)
    d_sae, d_model = decoder.shape
    if target is not None:
        if (encoder := tensors.get("W_enc")) is None or encoder.ndim != 2:
            raise CheckpointError(f"{where}: expected an encoder of two dimensions; a transcoder has one")
        fields |= {"target": Target(d_model=d_model, skip="W_skip" in tensors, **target)}
        fields |= {"apply_b_dec_to_input": False}
        d_model = encoder.shape[0]
    config = SAEConfig(d_model=d_model, d_sae=d_sae, dtype=str(dtype).removeprefix("torch."), **fields)
    check_shapes(tensors, config, where, f"by its decoder, d_model={d_model}, latents={d_sae}")
    return Opened(config, dict(tensors), notes)


def check_widths(sae: Opened, d_model: int | None, d_sae: int | None, where: str, file: Path) -> Opened:
    """The SAE, if its weights are as wide as a configuration says; None says nothing.

    raises: CheckpointError with both
    """
    found = (sae.config.d_sae, sae.config.d_model)
    told = (found[0] if d_sae is None else d_sae, found[1] if d_model is None else d_model)
    if told != found:
        raise CheckpointError(
            f"{where}: expected W_dec {list(told)} ({file.name}: d_model={told[1]}, latents={told[0]}), got "
            f"{list(found)}; the weights are not those of the configuration beside them"
        )
    return sae


def check_shapes(tensors: Mapping[str, Tensor], config: SAEConfig, where: str, told: str) -> None:
    """raises: CheckpointError naming the tensor, the shape expected of the config and the one received.

    told: where the widths come from
    """
    expected = config.shapes
    mismatch = "the weights are not those of the configuration beside them"
    for name, shape in expected.items():
        if name not in tensors:
            raise CheckpointError(
                f"{where}: expected a tensor {name} {list(shape)} for an SAE of kind {config.kind!r}, "
                f"got only {', '.join(sorted(tensors)) or 'none'}; {mismatch}"
            )
        if tuple(tensors[name].shape) != shape:
            raise CheckpointError(
                f"{where}: expected {name} {list(shape)} ({told}), got "
                f"{list(tensors[name].shape)}; {mismatch}"
            )
    if unknown := sorted(set(tensors) - set(expected)):
        raise CheckpointError(
            f"{where}: {', '.join(unknown)} not known for an SAE of kind {config.kind!r} (expected "
            f"{', '.join(expected)}); ignoring it could change what the SAE computes"
        )


def named(tensors: Mapping[str, Any], where: str, **names: str) -> dict[str, Tensor]:
    """Tensors by our names, from `ours="theirs"`; `ours="theirs.T"` is transposed.

    raises: CheckpointError where one is missing, or there are others than these
    """
    found: dict[str, Tensor] = {}
    for ours, theirs in names.items():
        key = theirs.removesuffix(".T")
        tensor = tensors.get(key)
        if not isinstance(tensor, Tensor):
            there = ", ".join(sorted(map(str, tensors))[:20]) or "nothing"
            raise CheckpointError(f"{where}: expected a tensor {key}, got only {there}")
        if key != theirs and tensor.ndim != 2:
            raise CheckpointError(f"{where}: expected {key} of two dimensions, got {list(tensor.shape)}")
        found[ours] = tensor.T if key != theirs else tensor
    known = {theirs.removesuffix(".T") for theirs in names.values()}
    if unknown := sorted(set(map(str, tensors)) - known):
        raise CheckpointError(
            f"{where}: {', '.join(unknown)} not known in this format (expected {', '.join(sorted(known))}); "
            "ignoring it could change what the SAE computes"
        )
    return found


def read_json(file: Path, form: Form) -> Any:
    """A JSON file of this form. raises: CheckpointError naming file and field"""
    try:
        value = loads(file.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise CheckpointError(
            f"{file}: expected JSON, got {error}; the file is damaged, copy the folder again"
        ) from error
    if found := misfit(value, form):
        raise CheckpointError(f"{file}: {found}")
    return value


def expect(value: Any, key: str, allowed: tuple[Any, ...], where: str, way_out: str) -> None:
    """raises: ValueError unless a setting is one that is computed here; None counts as absent"""
    if value is not None and value not in allowed:
        raise ValueError(
            f"{where}: {key} {value!r} is not supported (expected {', '.join(map(repr, allowed))}): {way_out}"
        )
