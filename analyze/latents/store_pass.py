"""The rows of a store in order, block by block, through an SAE that is checked to belong to them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from saelens_lite.sae.autoencoder import SparseAutoencoder
from saelens_lite.sae.latents import SparseLatents
from saelens_lite.store.reader import ActivationStore

from .compatibility import Coder

BLOCK_ROWS = 4096


class Block(NamedTuple):
    """Rows from first_row of the store on: float[n d_model] on the SAE's device."""

    first_row: int
    acts: Tensor


def blocks(sae: Coder, store: ActivationStore, hook_point: str, start_row: int = 0) -> Iterator[Block]:
    """The rows of the store in order, from start_row on. Blocks end at the edges of shards.

    raises: ValueError when a row holds nan or infinity, naming it
    """
    shard_row = 0
    for shard, n_rows in enumerate(store.shard_rows):
        yield from shard_blocks(sae, store, hook_point, shard, shard_row, start_row)
        shard_row += n_rows


def shard_blocks(
    sae: Coder,
    store: ActivationStore,
    hook_point: str,
    shard: int,
    shard_row: int,
    start_row: int = 0,
) -> Iterator[Block]:
    """`blocks` of one shard; shard_row: its first row in the store."""
    first_row = max(shard_row, start_row)
    for start in range(first_row - shard_row, store.shard_rows[shard], BLOCK_ROWS):
        acts = store.acts(shard, hook_point, slice(start, start + BLOCK_ROWS))
        if not acts.isfinite().all():
            row = first_row + int((~acts.isfinite().all(1)).nonzero()[0])
            raise ValueError(
                f"{store.path} {hook_point}: row {row} holds nan or infinity; harvest that store again"
            )
        yield Block(first_row, acts.to(sae.device, sae.dtype))
        first_row += len(acts)


def latent_blocks(
    sae: SparseAutoencoder, store: ActivationStore, hook_point: str, start_row: int = 0
) -> Iterator[tuple[int, SparseLatents]]:
    """(first row, latents) of every block from start_row on, without gradients, on the CPU."""
    return _encoded(sae, blocks(sae, store, hook_point, start_row))


def shard_latents(
    sae: SparseAutoencoder, store: ActivationStore, hook_point: str, shard: int, shard_row: int
) -> Iterator[tuple[int, SparseLatents]]:
    """`latent_blocks` of one shard."""
    return _encoded(sae, shard_blocks(sae, store, hook_point, shard, shard_row))


def _encoded(sae: SparseAutoencoder, rows: Iterator[Block]) -> Iterator[tuple[int, SparseLatents]]:
    for first_row, acts in rows:
        with torch.no_grad():
            latents = sae.encode(acts)
        yield first_row, to_cpu(latents)


def spans(starts: Tensor, sizes: Tensor) -> Tensor:
    """int64[sizes.sum()]: sizes[i] places from starts[i] on, one span behind the other."""
    return (starts - sizes.cumsum(0) + sizes).repeat_interleave(sizes) + torch.arange(int(sizes.sum()))


def to_cpu(latents: SparseLatents) -> SparseLatents:
    """The same latents on the CPU; values become float32, which holds them exactly, unless float64."""
    if latents.values.device.type == "cpu" and latents.values.dtype == torch.float32:
        return latents
    values = latents.values if latents.values.dtype == torch.float64 else latents.values.float()
    indices, offsets = latents.indices.cpu(), latents.offsets.cpu()
    return SparseLatents(values.cpu(), indices, offsets, latents.d_sae, latents.batch_shape, latents.k)
