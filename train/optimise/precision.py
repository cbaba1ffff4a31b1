"""How float32 products are computed while training: on CUDA by its tensor cores unless told otherwise."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from ..run_config import RunConfig


def matmul_precision(config: RunConfig, device: torch.device) -> str:
    """ "highest", "high" or "medium", as torch.set_float32_matmul_precision knows them.

    What the configuration asks for, or what torch is set to; but on CUDA "high" (tf32) where torch still has
    its default, "highest", which leaves the tensor cores idle.
    """
    as_torch = torch.get_float32_matmul_precision()
    if config.matmul_precision is not None:
        return config.matmul_precision
    return "high" if device.type == "cuda" and as_torch == "highest" else as_torch


@contextmanager
def multiplying(precision: str) -> Iterator[None]:
    """torch's setting for float32 products, inside."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(precision)
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)
