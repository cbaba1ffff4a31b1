"""Arrays as a page gets them: a safetensors file with what JSON says in its metadata, for a static page as
base64 of gzip."""

from __future__ import annotations

import base64
import json
import zlib
from typing import Any

import torch
from safetensors.numpy import save
from torch import Tensor

TOKENS = ("gist", "common", "promoted_ids", "demoted_ids", "far_tokens", "near_tokens")
"""Arrays of token ids, -1 for none; 0xFFFF for none where 16 bits are enough."""


def packed(arrays: dict[str, Tensor], wide: bool, said: Any = None) -> bytes:
    """wide: whether ids of tokens need 32 bits; said: JSON that goes with the arrays"""
    ready = {
        name: (array.to(torch.uint16) if name in TOKENS and not wide else array).contiguous().numpy()
        for name, array in arrays.items()
    }
    return save(ready, None if said is None else {"json": json.dumps(said)})


def as_text(content: bytes, level: int = 1) -> str:
    """Base64 of gzip, whose alphabet holds nothing that HTML or a script reads as more than text."""
    packer = zlib.compressobj(level, wbits=31)
    return base64.b64encode(packer.compress(content) + packer.flush()).decode("ascii")
