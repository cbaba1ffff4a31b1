"""Random numbers as pure functions of the seed and their purpose, so that none needs to be saved."""

from __future__ import annotations

import torch
from torch import Tensor

_BLOCK_ROWS = 256
"""Rows of noise that one generator draws: what a row gets depends on its place in the whole batch alone."""

NOISE, RESAMPLING, AUTOENCODER, READING = 2**40, 2**41, 2**42, 2**43
"""First numbers of keys, one a purpose."""


def generator(seed: int, *key: int, device: torch.device | str = "cpu") -> torch.Generator:
    """One that starts as (seed, key) say, mixed on its own: by hashing.py it would train other SAEs."""
    mixed = seed
    for part in key:
        mixed = (mixed * 6364136223846793005 + part + 1442695040888963407) % 2**63
    return torch.Generator(device).manual_seed(mixed)


def row_noise(like: Tensor, first_row: int, seed: int, step: int) -> Tensor:
    """Standard normal numbers for rows first_row … of the batch of a step; float[B d_model], as `like` in
    type and device.

    Drawn on the device, in float32: another kind of device draws others.
    """
    blocks = range(first_row // _BLOCK_ROWS, -(-(first_row + len(like)) // _BLOCK_ROWS))
    drawn = like.new_empty(len(blocks) * _BLOCK_ROWS, like.shape[1], dtype=torch.float32)
    for rows, block in zip(drawn.split(_BLOCK_ROWS), blocks, strict=True):
        rows.normal_(generator=generator(seed, NOISE, step, block, device=like.device))
    start = first_row % _BLOCK_ROWS
    return drawn[start : start + len(like)].to(like.dtype)
