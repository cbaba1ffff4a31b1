"""What is known of when chosen latents fire: from the index alone, or from the SAE and the store as well."""

from __future__ import annotations

import torch
from torch import Tensor

from saelens_lite.sae.autoencoder import SparseAutoencoder
from saelens_lite.store.reader import ActivationStore

from ..index.feature_index import FeatureIndex
from ..latents.store_pass import BLOCK_ROWS, to_cpu


class KnownFirings:
    """Firings by latent and row: keys int64[n], latent · n_rows + row, ascending, and values float32[n].

    An index knows the strongest firings of each latent, a sample of them, and all firings on the rows of its
    token sample.
    """

    def __init__(self, index: FeatureIndex) -> None:
        self.n_rows = index.tokens.n_rows
        sample = index.token_sample
        order = sample.latents.argsort(stable=True)
        self._latents = sample.latents[order].long()
        self._keys = self._latents * self.n_rows + sample.rows[sample.row_ids()[order]]
        self._values, self._index = sample.values[order].float(), index

    def __call__(self, latents: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
        """(keys, values) of the firings of latents int64[m] that the index knows, on any row."""
        starts, ends = (torch.searchsorted(self._latents, latents, right=end) for end in (False, True))
        parts = [(self._keys[a:b], self._values[a:b]) for a, b in zip(*_runs(starts, ends))]
        for name in ("top", "sample"):
            rows = self._index.column(f"{name}_rows")[latents]
            there = rows >= 0
            parts.append(
                (
                    (latents[:, None] * self.n_rows + rows)[there],
                    self._index.column(f"{name}_values")[latents][there].float(),
                )
            )
        return _once(torch.cat([part[0] for part in parts]), torch.cat([part[1] for part in parts]))


def encoded_firings(
    sae: SparseAutoencoder, store: ActivationStore, hook_point: str, latents: Tensor, rows: Tensor
) -> tuple[Tensor, Tensor]:
    """(keys, values) of all firings of latents int64[m] on rows int64[n] of a store, each encoded once."""
    chosen = torch.zeros(sae.d_sae, dtype=torch.bool)
    chosen[latents] = True
    keys, values = [torch.zeros(0, dtype=torch.int64)], [torch.zeros(0)]
    for part in rows[rows >= 0].unique().split(BLOCK_ROWS):
        with torch.no_grad():
            found = to_cpu(sae.encode(store.gather(part, hook_point).to(sae.device)))
        fires = (found.values > 0) & chosen[found.indices]
        keys.append(found.indices[fires] * store.n_rows + part[found.row_ids()[fires]])
        values.append(found.values[fires].float())
    return _once(torch.cat(keys), torch.cat(values))


def _runs(starts: Tensor, ends: Tensor) -> tuple[list[int], list[int]]:
    """Spans that follow each other, joined: neighbouring latents are one slice."""
    starts, ends = starts[ends > starts], ends[ends > starts]
    if not len(starts):
        return [], []
    begins = torch.cat([starts.new_ones(1, dtype=torch.bool), starts[1:] != ends[:-1]])
    closes = torch.cat([begins[1:], begins.new_ones(1)])
    return starts[begins].tolist(), ends[closes].tolist()


def _once(keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
    """Each firing once, by key."""
    order = keys.argsort(stable=True)
    keys, values = keys[order], values[order]
    first = torch.ones_like(keys, dtype=torch.bool)
    first[1:] = keys[1:] != keys[:-1]
    return keys[first], values[first]
