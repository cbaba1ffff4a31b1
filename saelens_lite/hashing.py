"""Stateless draws: what is held out and what is sampled, as hashes that are the same everywhere.

All go through the finaliser of splitmix64 (Steele, Lea and Flood 2014, doi:10.1145/2660193.2660195), on int64
read as 64 bits; kernels/tally.c has `firing_hash` too. Generators' seeds: train/random_streams.py.
"""

from __future__ import annotations

from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

ArrayOrTensor = TypeVar("ArrayOrTensor", np.ndarray, Tensor)


def is_held_out(doc_ids: ArrayOrTensor, fraction: float = 0.05, seed: int = 0) -> ArrayOrTensor:
    """Which documents are held out: the one split used for rows and for text alike.

    A hash of the global index decides, so a document is on the same side whatever the order, the sharding or
    the number of documents.

    doc_ids: int64[...], global document indices; returns: bool[...]
    fraction: expected share of documents held out, 0 to 1
    """
    if not 0 <= fraction <= 1:
        raise ValueError(f"fraction is a share of documents from 0 to 1, got {fraction}")
    if isinstance(doc_ids, Tensor):
        return torch.from_numpy(is_held_out(doc_ids.cpu().numpy(), fraction, seed)).to(doc_ids.device)
    return hashed_uniform(np.asarray(doc_ids), seed) < fraction


def hashed_uniform(indices: np.ndarray, *keys: int) -> np.ndarray:
    """A number for each index, uniform in [0, 1): a hash of the index and the keys.

    indices: int64[...]; returns: float64[...], multiples of 2^-53
    keys: other ones, and other numbers of them, give independent numbers
    """
    stream = torch.zeros((), dtype=torch.int64, device="cpu")
    for key in keys:
        stream = splitmix64(stream ^ key)
    hashed = splitmix64(torch.from_numpy(indices.astype(np.int64)) ^ stream)
    return (_shifted(hashed, 11).double() * 2.0**-53).numpy()


def firing_hash(seed: int, latents: Tensor | int, rows: Tensor) -> Tensor:
    """63 bits for each (latent, row), as good as random; latent -1 gives the hash of a row alone.

    latents, rows: int64[...]; returns: int64[...], from 0 to below 2^63
    """
    latents = torch.as_tensor(latents, dtype=torch.int64)
    return _shifted(_mixed((latents + 1) * _GOLDEN + rows * _signed(0xD1B54A32D192ED03) + seed), 1)


def splitmix64(x: Tensor) -> Tensor:
    """One output of splitmix64 for each state in x: int64[...]."""
    return _mixed(x + _GOLDEN)


def _mixed(x: Tensor) -> Tensor:
    x = (x ^ _shifted(x, 30)) * _signed(0xBF58476D1CE4E5B9)
    x = (x ^ _shifted(x, 27)) * _signed(0x94D049BB133111EB)
    return x ^ _shifted(x, 31)


def _shifted(x: Tensor, bits: int) -> Tensor:
    """A logical shift to the right."""
    return (x >> bits) & ((1 << (64 - bits)) - 1)


def _signed(x: int) -> int:
    """The int64 with the bits of a uint64."""
    return x - (1 << 64) if x >= 1 << 63 else x


_GOLDEN = _signed(0x9E3779B97F4A7C15)
"""Added to a state of splitmix64 for the next one."""
