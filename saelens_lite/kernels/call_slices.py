"""A small part of a call of a kernel that Triton compiles as it compiles the whole.

Triton specialises on integers that are 1 or multiples of 16 and on pointers that are multiples of 16 bytes.
A slice keeps both, has at most 256 tokens and 2,048 latents, and 16 MiB of decoder rows.
"""

from __future__ import annotations

from collections.abc import Hashable
from typing import NamedTuple

import torch
from torch import Tensor

from saelens_lite.kernels.reference import bags_of_each

TOKENS, LATENTS, ROW_BYTES = 256, 2048, 2**24
_GROUP, _GROUPS_A_PAIR = 32, 4
"""As triton_select.py deals latents out, and how many groups it wants for each pair selected."""


def number_kind(number: int) -> int:
    """What Triton sees in an integer; 0 apart, as a call without anything shows nothing."""
    return number if number < 2 else 16 if number % 16 == 0 else 2


def tensor_kind(tensor: Tensor) -> Hashable:
    """What Triton sees in a pointer."""
    return tensor.dtype, tensor.data_ptr() % 16 == 0


def like(number: int, limit: int) -> int:
    """The largest integer of the same kind up to number and limit, 0 if there is none."""
    return next((n for n in range(min(number, limit), 0, -1) if number_kind(n) == number_kind(number)), 0)


def placed_as(part: Tensor, whole: Tensor) -> Tensor:
    """part, contiguous, aligned to 16 bytes just where whole is."""
    if whole.data_ptr() % 16 == 0:
        return part.contiguous()
    memory = part.new_empty(part.numel() + 1)[1:]
    return memory.view(part.shape).copy_(part)


class SmallSelection(NamedTuple):
    """tokens, n latents and m values to select, a token or of all."""

    tokens: int
    n: int
    m: int


def small_topk(tokens: int, n: int, k: int) -> SmallSelection:
    """m a token; tokens · m is of the kind of tokens · k."""
    groups = like(n // _GROUP, LATENTS // _GROUP)
    return next(
        SmallSelection(few, groups * _GROUP, m)
        for few in range(min(tokens, TOKENS), 0, -1)
        for m in range(min(k, groups // _GROUPS_A_PAIR), 0, -1)
        if number_kind(few) == number_kind(tokens) and number_kind(few * m) == number_kind(tokens * k)
    )


def small_batch_topk(tokens: int, n: int, n_pairs: int) -> SmallSelection:
    """m in all, of the kind of n_pairs."""
    few, groups = like(tokens, TOKENS), like(n // _GROUP, LATENTS // _GROUP)
    return SmallSelection(few, groups * _GROUP, like(n_pairs, few * groups // _GROUPS_A_PAIR))


class SmallPairs(NamedTuple):
    """The first pairs of the first tokens, over a table of the rows that they name.

    values, indices: as the call has them, uniform [tokens k] or flat [P]; offsets: int64 or None
    pairs: which of the call's pairs these are: int64[P]
    bags: how many there are, tokens · J
    table: float[at most 2,048, d]
    """

    tokens: int
    bags: int
    pairs: Tensor
    values: Tensor
    indices: Tensor
    offsets: Tensor | None
    table: Tensor


def small_pairs(
    n_tokens: int, values: Tensor, indices: Tensor, offsets: Tensor | None, table: Tensor
) -> SmallPairs:
    """Of pairs in any of the three forms of reference.py."""
    most = max(1, min(LATENTS, ROW_BYTES // (table.shape[1] * table.element_size())))
    if offsets is None:
        k = values.numel() // n_tokens
        few_k = like(k, most)
        tokens = bags = max(1, min(n_tokens, TOKENS, most // max(few_k, 1)))
        pairs = torch.arange(tokens * k, device=values.device).view(tokens, k)[:, :few_k].flatten()
    else:
        nested, tokens = bags_of_each(offsets, n_tokens), min(n_tokens, TOKENS)
        bags = tokens * nested
        offsets = placed_as(offsets[: bags + 1].clamp(max=most), offsets)
        pairs = torch.arange(int(offsets[-1]), device=values.device)
    shape = (-1,) if offsets is not None or values.dim() == 1 else (tokens, -1)
    rows, places = indices.reshape(-1)[pairs].unique(return_inverse=True)
    return SmallPairs(
        tokens,
        bags,
        pairs,
        placed_as(values.reshape(-1)[pairs], values).view(shape),
        placed_as(places, indices).view(shape),
        offsets,
        placed_as(table[rows], table),
    )
