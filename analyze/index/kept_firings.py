"""A bounded number of firings of every latent: the strongest, or a uniform sample.

Both keep the n firings with the smallest key, at equal keys the lower row. What is kept is therefore a
function of the set of firings alone: blocks, shards, processes and their order cannot matter.
"""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor

from saelens_lite.hashing import firing_hash
from saelens_lite.sae.latents import SparseLatents

_EMPTY = torch.iinfo(torch.int64).max
_MERGE_LATENTS = 65_536


class KeptFirings(ABC):
    """The n firings of every latent with the smallest key, by key, then row.

    values, rows: float[d_sae n], int64[d_sae n]; 0 and -1 in empty places
    """

    def __init__(self, d_sae: int, n: int, dtype: torch.dtype = torch.float32) -> None:
        self.values = torch.zeros(d_sae, n, dtype=dtype)
        self.rows = torch.full((d_sae, n), -1, dtype=torch.int64)

    @abstractmethod
    def keys(self, latents: Tensor, values: Tensor, rows: Tensor) -> Tensor:
        """int64[...], below 2^63 - 1; of latents int64[...], values float[...] above 0, rows int64[...]."""

    def update(self, latents: SparseLatents, first_row: int) -> None:
        """Add a block whose rows, from first_row on, come after all earlier ones."""
        n = self.values.shape[1]
        fires = latents.values > 0
        indices, values = latents.indices[fires], latents.values[fires]
        rows = latents.row_ids()[fires] + first_row
        keys = self.keys(indices, values, rows)
        # Only what comes before a latent's last kept firing can enter; at equality the earlier row stays.
        last = self._kept_keys(torch.arange(len(self.rows)), self.values[:, -1], self.rows[:, -1])
        enters = keys < last[indices]
        indices, values, rows, keys = indices[enters], values[enters], rows[enters], keys[enters]
        if not len(values):
            return
        order = keys.argsort(stable=True)
        order = order[indices[order].argsort(stable=True)]  # by (latent, key, row)
        indices, values, rows = indices[order], values[order], rows[order]
        touched, group, sizes = indices.unique_consecutive(return_inverse=True, return_counts=True)
        rank = torch.arange(len(indices)) - (sizes.cumsum(0) - sizes)[group]
        best = rank < n
        block_values = self.values.new_zeros(len(touched), n)
        block_rows = self.rows.new_full((len(touched), n), -1)
        block_values[group[best], rank[best]] = values[best]
        block_rows[group[best], rank[best]] = rows[best]
        self._put(touched, block_values, block_rows)

    def merge(self, other: KeptFirings) -> None:
        """Add what another one kept, of other rows, with the same n; its tensors may be memory-mapped."""
        for latents in torch.arange(len(self.rows)).split(_MERGE_LATENTS):
            span = slice(int(latents[0]), int(latents[-1]) + 1)
            self._put(latents, other.values[span], other.rows[span])

    def _put(self, latents: Tensor, values: Tensor, rows: Tensor) -> None:
        """Merge firings [m n] into those of the latents int64[m]."""
        rows, by_row = torch.cat([self.rows[latents], rows], dim=1).sort(dim=1, stable=True)
        values = torch.cat([self.values[latents], values], dim=1).gather(1, by_row)
        keys = self._kept_keys(latents[:, None].expand_as(rows), values, rows)
        best = keys.argsort(dim=1, stable=True)[:, : self.values.shape[1]]
        self.values[latents], self.rows[latents] = values.gather(1, best), rows.gather(1, best)

    def _kept_keys(self, latents: Tensor, values: Tensor, rows: Tensor) -> Tensor:
        return self.keys(latents, values, rows).masked_fill(rows < 0, _EMPTY)


class StrongestFirings(KeptFirings):
    """The n strongest firings of every latent, strongest first, equal ones by row."""

    def keys(self, latents: Tensor, values: Tensor, rows: Tensor) -> Tensor:
        # The bits of positive floats have the order of the floats.
        return -values.contiguous().view(torch.int64 if values.dtype == torch.float64 else torch.int32).long()


class SampledFirings(KeptFirings):
    """A uniform sample of n of every latent's firings, without replacement: those of smallest hash."""

    def __init__(self, d_sae: int, n: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> None:
        super().__init__(d_sae, n, dtype)
        self.seed = seed

    def keys(self, latents: Tensor, values: Tensor, rows: Tensor) -> Tensor:
        return firing_hash(self.seed, latents, rows)
