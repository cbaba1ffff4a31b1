"""Data files mapped into memory: as many stay mapped as the system allows, of all stores together.

A file's size is looked at whenever it is given: reading what was cut off since would end the process by a
signal.
"""

from __future__ import annotations

import functools
import json
import math
import os
import weakref
from collections import OrderedDict
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from saelens_lite.errors import ShardError
from saelens_lite.store.codecs import DTYPES
from saelens_lite.store.folder import Folder, LocalFolder
from saelens_lite.store.layout import check_size

Tensors = dict[str, Tensor]

try:
    _MOST = int(Path("/proc/sys/vm/max_map_count").read_text()) // 2
except (OSError, ValueError):  # not Linux
    _MOST = 16_384
"""Files that stay mapped: beyond its limit the system maps no more."""
_KEPT: OrderedDict[tuple[int, str], Tensors] = OrderedDict()
"""By id of a MappedFiles and name; the last used is the last to go. Threads share it, a use is one call."""
_FIRST_BYTES = 4096
_LONGEST_HEADER = 100_000


class MappedFiles:
    """The safetensors files of one store.

    cache_key: names the content of the folder, see Folder.local
    """

    def __init__(self, folder: Folder, cache_key: str) -> None:
        self._folder, self._cache_key = folder, cache_key
        self._root = f"{folder.root}/" if isinstance(folder, LocalFolder) else None
        self._names: set[str] = set()
        weakref.finalize(self, _forget, id(self), self._names).atexit = False

    def tensors(self, name: str, size_bytes: int) -> Tensors:
        """The tensors of a file, mapped anew. raises: ShardError unless it has that size and is readable"""
        path = self._folder.local(name, self._cache_key) if self._root is None else self._root + name
        check_size(self._folder, name, _size(path), size_bytes)
        try:
            if (tensors := mapped(path, size_bytes)) is None:
                with safe_open(path, framework="pt") as file:
                    tensors = {tensor: file.get_tensor(tensor) for tensor in file.keys()}  # noqa: SIM118
        except SafetensorError as error:
            raise ShardError(
                f"{path} is no readable safetensors file ({error}): the file was altered"
            ) from error
        return tensors

    def kept(self, name: str, size_bytes: int) -> Tensors | None:
        """The tensors of a file if it stayed mapped, also where it was removed since.

        raises: ShardError if it has another size now
        """
        key = (id(self), name)
        if (tensors := _KEPT.pop(key, None)) is not None:
            if self._root is not None and (found := _size(self._root + name)) is not None:
                check_size(self._folder, name, found, size_bytes)
            _KEPT[key] = tensors
        return tensors

    def keep(self, name: str, tensors: Tensors) -> None:
        """Let a file stay mapped, in place of those that were not used for longest."""
        while len(_KEPT) >= _MOST:
            _KEPT.popitem(last=False)
        self._names.add(name)
        _KEPT[id(self), name] = tensors


def _size(path: str | os.PathLike[str]) -> int | None:
    try:
        return os.stat(path).st_size
    except FileNotFoundError:
        return None


def _forget(of: int, names: set[str]) -> None:
    for name in names:
        _KEPT.pop((of, name), None)


def mapped(path: str | os.PathLike[str], size_bytes: int) -> Tensors | None:
    """The tensors of a data file of that size in one mapping: in half the time that safetensors takes, which
    counts where shards are many. None for anything but a plain file, of which safetensors says what it is.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        head = os.pread(descriptor, _FIRST_BYTES, 0)
        n_header = int.from_bytes(head[:8], "little")
        if n_header > min(size_bytes - 8, _LONGEST_HEADER):
            return None
        if 8 + n_header > len(head):
            head = os.pread(descriptor, 8 + n_header, 0)
    finally:
        os.close(descriptor)
    if (places := _places(head[8 : 8 + n_header], size_bytes)) is None:
        return None
    storage = torch.UntypedStorage.from_file(os.fspath(path), False, size_bytes)
    return {
        name: torch.empty(0, dtype=dtype).set_(storage, start // dtype.itemsize, shape)
        for name, dtype, shape, start in places
    }


@functools.lru_cache(64)  # shards of equal size have equal heads
def _places(header: bytes, size_bytes: int) -> list[tuple[str, torch.dtype, list[int], int]] | None:
    """Name, dtype, shape and first byte of each tensor; None unless all lie whole and aligned in the file."""
    try:
        entries = json.loads(header)
        entries.pop("__metadata__", None)
        return [(name, *_place(of, 8 + len(header), size_bytes)) for name, of in entries.items()]
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return None


def _place(of: dict[str, Any], first: int, size_bytes: int) -> tuple[torch.dtype, list[int], int]:
    """dtype, shape and first byte of a tensor, by its entry in a head that ends at `first`.

    raises: ValueError unless it lies whole and aligned in the file
    """
    dtype, shape, (start, end) = DTYPES[of["dtype"]], of["shape"], of["data_offsets"]
    whole = all(type(n) is int and n >= 0 for n in (*shape, start, end)) and first + end <= size_bytes
    if not whole or end - start != math.prod(shape) * dtype.itemsize or (first + start) % dtype.itemsize:
        raise ValueError
    return dtype, shape, first + start
