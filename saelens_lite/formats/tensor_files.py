"""Tensors from files of others: safetensors, .npz and .pt, without running code from any of them.

Sizes are read first. What a file claims to hold may not be larger than the file, so that a short file cannot
take the memory; of a compressed .npz, not more than 32 times as large.

.safetensors  a header of names, types and shapes, then the numbers
.npz          a zip of .npy arrays; arrays of Python objects are refused
.pt, .pth     what `torch.save` wrote: read by `weights_only=True` alone, which makes tensors, numbers,
              strings and containers of them, and calls nothing that the file names
"""

from __future__ import annotations

import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from saelens_lite.errors import CheckpointError

_COPY_AGAIN = "it is damaged or short, copy it again"
_MOST_COMPRESSED = 32
"""Weights hardly compress; zeros do, a thousandfold."""


def read_tensors(file: Path) -> dict[str, Any]:
    """What a file of tensors holds: tensors, and from .pt numbers and strings beside them.

    raises: CheckpointError for a file that is short, holds more than tensors and plain data, or claims more
        numbers than it has bytes
    """
    if file.suffix == ".npz":
        return _read_npz(file)
    if file.suffix in (".pt", ".pth"):
        contents(file)
        return _read_pt(file, "cpu")
    try:
        return load_file(file)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(
            f"{file}: expected a complete safetensors file, got {error}; {_COPY_AGAIN}"
        ) from error


def contents(file: Path) -> dict[str, Any]:
    """What a .pt file holds, with tensors that have a shape and no memory.

    raises: as read_tensors
    """
    found = _read_pt(file, "meta")
    claimed = sum(_bytes(tensor) for tensor in found.values() if isinstance(tensor, Tensor))
    _check_size(file, claimed, file.stat().st_size)
    return found


def _bytes(tensor: Tensor) -> int:
    """By its shape or by its storage, whichever is more: a view may repeat its numbers."""
    return max(tensor.numel() * tensor.element_size(), tensor.untyped_storage().nbytes())


def _check_size(file: Path, claimed: int, most: int) -> None:
    if claimed > most:
        raise CheckpointError(
            f"{file}: expected at most {most:,} bytes of numbers in a file of {file.stat().st_size:,}, got "
            f"tensors of {claimed:,}; it is damaged, or made to fill the memory"
        )


def _read_pt(file: Path, device: str) -> dict[str, Any]:
    try:
        if not zipfile.is_zipfile(file):
            raise CheckpointError(
                f"{file}: expected a complete file of torch.save, a zip archive, got another: it is short, "
                "or older than torch 1.6; copy it again, or load and save it once more with torch"
            )
        found = torch.load(file, map_location=device, mmap=device != "meta", weights_only=True)
    except (OSError, RuntimeError, ValueError, EOFError, KeyError) as error:
        first = str(error).partition("\n")[0]
        raise CheckpointError(
            f"{file}: expected a complete file of torch.save, got {first}; {_COPY_AGAIN}"
        ) from error
    except CheckpointError:
        raise
    except Exception as error:  # pickle.UnpicklingError, whose text offers to run the file's code
        what = next((line for line in str(error).splitlines() if "GLOBAL" in line), "objects").strip()
        raise CheckpointError(
            f"{file}: expected tensors, numbers and strings, got Python objects ({what}), which are not made "
            "here because a file could run any code by them. If you trust it, load it once elsewhere and "
            "save its tensors: torch.save({name: tensor, ...}, file)"
        ) from error
    if not isinstance(found, Mapping):
        raise CheckpointError(
            f"{file}: expected a dictionary of tensors by name, got {type(found).__name__}; save state_dict()"
        )
    return {str(name): value for name, value in found.items()}


def _read_npz(file: Path) -> dict[str, Tensor]:
    try:
        with zipfile.ZipFile(file) as archive:
            members = [member for member in archive.infolist() if member.filename.endswith(".npy")]
            _check_size(file, sum(m.file_size for m in members), _MOST_COMPRESSED * file.stat().st_size)
            return {member.filename.removesuffix(".npy"): _array(archive, member, file) for member in members}
    except (OSError, zipfile.BadZipFile, EOFError, ValueError, NotImplementedError) as error:
        raise CheckpointError(
            f"{file}: expected a complete .npz file of arrays, got {error}; {_COPY_AGAIN}"
        ) from error


def _array(archive: zipfile.ZipFile, member: zipfile.ZipInfo, file: Path) -> Tensor:
    """One array, its header held against its size in the archive before memory is taken."""
    with archive.open(member) as stream:
        version = np.lib.format.read_magic(stream)
        read_header = {
            (1, 0): np.lib.format.read_array_header_1_0,
            (2, 0): np.lib.format.read_array_header_2_0,
        }.get(version)
        if read_header is None:
            raise CheckpointError(f"{file}: {member.filename} expected .npy version 1 or 2, got {version}")
        shape, _, dtype = read_header(stream)
    if dtype.hasobject:
        raise CheckpointError(
            f"{file}: {member.filename} expected numbers, got Python objects, which are not made here "
            "because a file could run any code by them; save the array as float32"
        )
    n_values = int(np.prod(shape, dtype=object))
    _check_size(file, n_values * dtype.itemsize, member.file_size)
    with archive.open(member) as stream:
        array = np.lib.format.read_array(stream, allow_pickle=False)
    return torch.from_numpy(np.ascontiguousarray(array))
