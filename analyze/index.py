"""One pass over a store, all latents: the strongest firings of each, exact counts, a histogram of activations.

A block's firings stay sparse (token, latent, value): no tokens × latents matrix, no loop over latents, no second encoding.
Equal values are ordered by row, so how rows were cut into blocks, shards or processes cannot matter.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from saelens_lite.metrics import FiringSums
from saelens_lite.sae import SparseAutoencoder
from saelens_lite.sparse import SparseLatents
from saelens_lite.store import ActivationStore

from .context import Contexts
from .stream import checked_latents, latent_blocks, matching_hook_point
from .table import FeatureTable


class TopFirings:
    """The n strongest firings of every latent, kept while blocks pass by.

    values: float[d_sae n], strongest first, equal ones by row; 0 in empty places
    rows: int64[d_sae n]; -1 in empty places
    """

    def __init__(self, d_sae: int, n: int, dtype: torch.dtype = torch.float32) -> None:
        self.values = torch.zeros(d_sae, n, dtype=dtype)
        self.rows = torch.full((d_sae, n), -1, dtype=torch.int64)

    def update(self, latents: SparseLatents, first_row: int) -> None:
        """Add a block whose rows come after all rows seen so far."""
        n = self.values.shape[1]
        # Only what beats a latent's weakest kept firing can enter; at equality the earlier row stays.
        enters = latents.values > self.values[latents.indices, n - 1]
        values, indices = latents.values[enters], latents.indices[enters]
        rows = latents.row_ids()[enters] + first_row
        if not len(values):
            return
        order = values.argsort(descending=True, stable=True)
        order = order[indices[order].argsort(stable=True)]  # by (latent, -value, row)
        indices, values, rows = indices[order], values[order], rows[order]
        touched, group, sizes = indices.unique_consecutive(return_inverse=True, return_counts=True)
        rank = torch.arange(len(indices)) - (sizes.cumsum(0) - sizes)[group]
        best = rank < n
        block_values = self.values.new_zeros(len(touched), n)
        block_rows = self.rows.new_full((len(touched), n), -1)
        block_values[group[best], rank[best]] = values[best]
        block_rows[group[best], rank[best]] = rows[best]
        values = torch.cat([self.values[touched], block_values], dim=1)
        rows = torch.cat([self.rows[touched], block_rows], dim=1)
        self.values[touched], self.rows[touched] = self._best(values, rows)

    def merge(self, other: TopFirings) -> None:
        """Add what another one saw, of any other rows, with the same n."""
        rows, by_row = torch.cat([self.rows, other.rows], dim=1).sort(dim=1, stable=True)
        values = torch.cat([self.values, other.values], dim=1).gather(1, by_row)
        self.values, self.rows = self._best(values, rows)

    def _best(self, values: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
        """The best n of firings [m, more than n] whose equal values stand in the order of their rows."""
        best = values.argsort(dim=1, descending=True, stable=True)[:, : self.values.shape[1]]
        return values.gather(1, best), rows.gather(1, best)


class ActivationHistogram:
    """How often each latent fires how strongly, in bins whose width is a quarter of an octave, the same for every latent.

    counts: int32[d_sae N_BINS]; bin b holds 2^(b/4 - 8) <= value < 2^((b + 1)/4 - 8), the ends take in what lies beyond
    """

    N_BINS = 96
    BINS_PER_OCTAVE = 4
    FIRST_OCTAVE = -8

    def __init__(self, d_sae: int) -> None:
        self.counts = torch.zeros(d_sae, self.N_BINS, dtype=torch.int32)

    def update(self, latents: SparseLatents) -> None:
        fires = latents.values > 0
        octaves = latents.values[fires].log2() - self.FIRST_OCTAVE
        bins = (octaves * self.BINS_PER_OCTAVE).floor().long().clamp(0, self.N_BINS - 1)
        at = latents.indices[fires] * self.N_BINS + bins
        self.counts.view(-1).index_add_(0, at, torch.ones_like(at, dtype=torch.int32))

    def merge(self, other: ActivationHistogram) -> None:
        self.counts += other.counts

    @classmethod
    def edges(cls) -> list[float]:
        """The N_BINS + 1 edges, in units of activation."""
        return [2.0 ** (b / cls.BINS_PER_OCTAVE + cls.FIRST_OCTAVE) for b in range(cls.N_BINS + 1)]


@dataclass(frozen=True, slots=True)
class LatentIndex:
    """What one pass over a store leaves of every latent."""

    top: TopFirings
    firing: FiringSums
    histogram: ActivationHistogram


def index_latents(sae: SparseAutoencoder, store: ActivationStore, n: int, hook_point: str | None = None) -> LatentIndex:
    """One pass over the store for all latents.

    n: firings kept a latent
    raises: ValueError when SAE and store do not belong together
    """
    if n < 1:
        raise ValueError(f"expected n >= 1 firings a latent, got {n}")
    dtype = torch.float64 if sae.dtype == torch.float64 else torch.float32
    index = LatentIndex(TopFirings(sae.d_sae, n, dtype), FiringSums(sae.d_sae), ActivationHistogram(sae.d_sae))
    for first_row, latents in latent_blocks(sae, store, matching_hook_point(sae, store, hook_point)):
        index.top.update(latents, first_row)
        index.firing.update(latents)
        index.histogram.update(latents)
    return index


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
    index = index_latents(sae, store, n, hook_point)
    contexts = Contexts(store, tokenizer, context_tokens, context_tokens // 2)
    return feature_table(index, chosen, contexts)


def feature_table(index: LatentIndex, latents: Tensor, contexts: Contexts) -> FeatureTable:
    """The chosen latents (int64[m]) of an index as a table."""
    return FeatureTable(
        latents=latents,
        values=index.top.values[latents],
        rows=index.top.rows[latents],
        n_fired=index.firing.counts[latents],
        n_tokens=index.firing.n_tokens,
        contexts=contexts,
    )
