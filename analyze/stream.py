"""The rows of a store in order, block by block, through an SAE that is checked to belong to them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from saelens_lite.sae import SparseAutoencoder
from saelens_lite.sparse import SparseLatents
from saelens_lite.store import ActivationStore

from .belonging import bare_model_name, check_finite_weights

BLOCK_ROWS = 4096


class Block(NamedTuple):
    """first_row: row of the store that the block begins with; acts: float[n d_model] on the SAE's device."""

    first_row: int
    acts: Tensor


def matching_hook_point(sae: SparseAutoencoder, store: ActivationStore, hook_point: str | None) -> str:
    """The hook point of the store that the SAE reads.

    hook_point: None takes the one that the SAE was trained on, and checks that it is of the store's model; a name is the
        caller's word that the SAE reads this one, and only the width is checked
    raises: ValueError naming both sides when they do not fit, or for an SAE whose weights are not finite
    """
    of_model = f" of {store.model_name}" if store.model_name else ""
    trained = f"the SAE was trained on {sae.config.model_name or 'a model it does not name'} {sae.config.hook_point}".strip()
    if hook_point is None:
        if sae.config.hook_point and sae.config.hook_point not in store.hook_points:
            raise ValueError(
                f"{trained}, but {store.path} holds {', '.join(store.hook_points)}{of_model}; "
                "harvest that hook point, or pass hook_point= to use the SAE on another one"
            )
        names = [name for name in (sae.config.model_name, store.model_name) if name]
        if len(set(map(bare_model_name, names))) > 1:
            raise ValueError(
                f"{trained}, but {store.path} holds activations of {store.model_name}; harvest the SAE's model, or pass "
                f"hook_point= ({', '.join(store.hook_points)}) if the two are one model or the SAE is to be transferred"
            )
    check_finite_weights(sae)
    point = store.hook_point(hook_point or sae.config.hook_point or None)
    if store.d_model(point) != sae.d_model:
        raise ValueError(
            f"{trained} with d_model={sae.d_model}, but {point} in {store.path}{of_model} has width "
            f"{store.d_model(point)}; choose the SAE of this model, or another hook point"
        )
    return point


def blocks(sae: SparseAutoencoder, store: ActivationStore, hook_point: str, start_row: int = 0) -> Iterator[Block]:
    """The rows of the store in order, from start_row on. Blocks end at the edges of shards.

    raises: ValueError when a row holds nan or infinity, naming it
    """
    shard_row = 0
    for shard, n_rows in enumerate(store.shard_rows):
        yield from shard_blocks(sae, store, hook_point, shard, shard_row, start_row)
        shard_row += n_rows


def shard_blocks(
    sae: SparseAutoencoder, store: ActivationStore, hook_point: str, shard: int, shard_row: int, start_row: int = 0
) -> Iterator[Block]:
    """The rows of one shard in order, from start_row of the store on; shard_row: its first row in the store.

    raises: ValueError when a row holds nan or infinity, naming it
    """
    first_row = max(shard_row, start_row)
    for start in range(first_row - shard_row, store.shard_rows[shard], BLOCK_ROWS):
        acts = store.acts(shard, hook_point, slice(start, start + BLOCK_ROWS))
        if not acts.isfinite().all():
            row = first_row + int((~acts.isfinite().all(1)).nonzero()[0])
            raise ValueError(f"{store.path} {hook_point}: row {row} holds nan or infinity; harvest that store again")
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
    """(first row, latents) of every block of one shard, as `latent_blocks` gives them."""
    return _encoded(sae, shard_blocks(sae, store, hook_point, shard, shard_row))


def _encoded(sae: SparseAutoencoder, rows: Iterator[Block]) -> Iterator[tuple[int, SparseLatents]]:
    for first_row, acts in rows:
        with torch.no_grad():
            latents = sae.encode(acts)
        yield first_row, to_cpu(latents)


def to_cpu(latents: SparseLatents) -> SparseLatents:
    """The same latents in host memory; values that are not float64 become float32, which holds them exactly."""
    if latents.values.device.type == "cpu" and latents.values.dtype == torch.float32:
        return latents
    values = latents.values if latents.values.dtype == torch.float64 else latents.values.float()
    return SparseLatents(
        values.cpu(), latents.indices.cpu(), latents.offsets.cpu(), latents.d_sae, latents.batch_shape, latents.k
    )


def checked_latents(sae: SparseAutoencoder, latents: int | Sequence[int] | Tensor | None) -> Tensor:
    """int64[m] of valid latents; None gives all. raises: ValueError for one out of range, or what is no index."""
    if latents is None:
        return torch.arange(sae.d_sae)
    given = torch.as_tensor(latents).reshape(-1).cpu()
    if len(given) and (given.is_floating_point() or given.dtype == torch.bool):
        raise ValueError(f"latents expected indices, got {given.dtype}; of a mask, mask.nonzero() gives them")
    chosen = given.long()
    if (beyond := (chosen < 0) | (chosen >= sae.d_sae)).any():
        raise ValueError(f"latents expected indices from 0 to {sae.d_sae - 1}, got {chosen[beyond].tolist()[:8]}")
    return chosen
