"""One pass over a store for all latents, in memory, and the table of strongest firings that it gives.

What is kept of each latent is in tally.py; the index on disk, with everything else, in build.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from saelens_lite.sae import SparseAutoencoder
from saelens_lite.store import ActivationStore

from .context import Contexts
from .stream import checked_latents, matching_hook_point, shard_latents
from .table import FeatureTable
from .tally import Tally, position_bins
from .tokensample import TokenSample


def index_latents(sae: SparseAutoencoder, store: ActivationStore, n: int, hook_point: str | None = None) -> Tally:
    """One pass over the store for all latents, in memory.

    n: strongest firings kept a latent
    raises: ValueError when SAE and store do not belong together
    """
    if n < 1:
        raise ValueError(f"expected n >= 1 firings a latent, got {n}")
    point = matching_hook_point(sae, store, hook_point)
    tally, first_row = Tally(sae.d_sae, n, dtype=kept_dtype(sae)), 0
    for shard, n_rows in enumerate(store.shard_rows):
        add_shard(tally, sae, store, point, shard, first_row)
        first_row += n_rows
    return tally


def add_shard(
    tally: Tally,
    sae: SparseAutoencoder,
    store: ActivationStore,
    hook_point: str,
    shard: int,
    first_row: int,
    sample_share: float = 0.0,
) -> list[TokenSample]:
    """Encode the rows of one shard, each once, and add their firings to the tally.

    first_row: of the shard, in the store
    sample_share: the share of rows to sample
    returns: the sampled rows of each block
    """
    bins = position_bins(store.row_positions(shard)[1]) if store.has_tokens else None
    samples = []
    for row, latents in shard_latents(sae, store, hook_point, shard, first_row):
        tally.update(latents, row, None if bins is None else bins[row - first_row : row - first_row + latents.batch])
        if sample_share > 0:
            samples.append(TokenSample.of_block(latents, row, sample_share, tally.seed))
    return samples


def kept_dtype(sae: SparseAutoencoder) -> torch.dtype:
    """The type that holds the SAE's latents exactly: float32, or float64 for weights of that type."""
    return torch.float64 if sae.dtype == torch.float64 else torch.float32


def max_activating_tokens(
    sae: SparseAutoencoder,
    store: ActivationStore,
    n: int = 20,
    latents: Sequence[int] | Tensor | None = None,
    *,
    hook_point: str | None = None,
    tokenizer: Any = None,
    context_tokens: int = 16,
) -> FeatureTable:
    """The n tokens on which each latent fires most strongly, with the text around them.

        table = max_activating_tokens(sae, store)
        table.latent(1234)

    latents: None for all, which costs the same pass
    hook_point: None takes the one that the SAE was trained on
    tokenizer: None loads the store's own when text is first shown
    context_tokens: tokens shown before the firing one; half as many after it, never beyond its context
    raises: ValueError when SAE and store do not belong together, or for a latent out of range
    """
    chosen = checked_latents(sae, latents)
    tally = index_latents(sae, store, n, hook_point)
    contexts = Contexts(store, tokenizer, context_tokens, context_tokens // 2)
    return feature_table(tally, chosen, contexts)


def feature_table(tally: Tally, latents: Tensor, contexts: Contexts) -> FeatureTable:
    """The chosen latents (int64[m]) of a pass as a table."""
    return FeatureTable(
        latents=latents,
        values=tally.top.values[latents],
        rows=tally.top.rows[latents],
        n_fired=tally.counts[latents],
        n_tokens=tally.n_tokens,
        contexts=contexts,
    )
