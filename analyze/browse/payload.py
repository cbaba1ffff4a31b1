"""Arrays as a page gets them: a safetensors file with what JSON says in its metadata, for a static page as
base64 of gzip."""

from __future__ import annotations

import base64
import json
import zlib
from typing import Any

import numpy as np
import torch
from safetensors.numpy import save
from torch import Tensor

TOKENS = ("gist", "common", "promoted_ids", "demoted_ids", "far_tokens", "near_tokens")
"""Arrays of token ids, -1 for none; 0xFFFF for none where 16 bits are enough."""


def packed(arrays: dict[str, Tensor], wide: bool, said: Any = None, *, planes: bool = False) -> bytes:
    """wide: whether ids of tokens need 32 bits; said: JSON that goes with the arrays

    planes: the first bytes of all numbers of an array, then their second ones, …, which compresses better
    """
    ready = {
        name: (array.to(torch.uint16) if name in TOKENS and not wide else array).contiguous().numpy()
        for name, array in arrays.items()
    }
    facts = {} if said is None else {"json": json.dumps(said)}
    if planes:
        ready, facts = {name: _in_planes(array) for name, array in ready.items()}, facts | {"planes": "yes"}
    return save(ready, facts or None)


def _in_planes(array: np.ndarray) -> np.ndarray:
    bytes_ = array.reshape(-1, 1).view(np.uint8)
    return np.ascontiguousarray(bytes_.T).reshape(-1).view(array.dtype).reshape(array.shape)


def as_text(content: bytes) -> str:
    """Base64 of gzip, whose alphabet holds nothing that HTML or a script reads as more than text."""
    packer = zlib.compressobj(1, wbits=31)
    return base64.b64encode(packer.compress(content) + packer.flush()).decode("ascii")
