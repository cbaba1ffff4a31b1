"""One pass over a store for all latents, in memory, and the table of strongest firings that it gives.

What is kept of each latent is in tally.py; the index on disk, with everything else, in build.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from saelens_lite.arguments import takes_folders
from saelens_lite.misfits import names_misfits
from saelens_lite.sae.autoencoder import SparseAutoencoder
from saelens_lite.store.reader import ActivationStore

from ..latents.compatibility import checked_latents, fits
from ..latents.text_windows import Contexts
from .feature_table import FeatureTable
from .tally import Tally, add_shard, kept_dtype


def index_latents(
    sae: SparseAutoencoder, store: ActivationStore, n: int, *, hook_point: str | None = None
) -> Tally:
    """One pass over the store for all latents, in memory.

    n: strongest firings kept a latent
    raises: ValueError when SAE and store do not belong together
    """
    if n < 1:
        raise ValueError(f"expected n >= 1 firings a latent, got {n}")
    point = fits(sae, store, hook_point)
    tally, first_row = Tally(sae.d_sae, n, dtype=kept_dtype(sae)), 0
    for shard, n_rows in enumerate(store.shard_rows):
        add_shard(tally, sae, store, point, shard, first_row)
        first_row += n_rows
    return tally


@takes_folders
@names_misfits
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
    tally = index_latents(sae, store, n, hook_point=hook_point)
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
