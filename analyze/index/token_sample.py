"""A bounded sample of rows with all latents that fire on them, for what belongs to rows.

A row is in the sample when its hash is below a bound, so the samples of disjoint rows make that of all of
them. It serves co-firing, rows on which a latent does not fire, and search by token.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from saelens_lite.hashing import firing_hash
from saelens_lite.sae.latents import SparseLatents

from ..latents.store_pass import spans

CONTRAST_DRAWS = 8
"""Rows drawn for each row of contrast; those on which the latent fires are passed over."""


class TokenSample:
    """Rows int64[n] and their firings.

    offsets: int64[n + 1], the span of each row in latents int32[n_pairs], ascending, and values float32
    """

    def __init__(self, rows: Tensor, offsets: Tensor, latents: Tensor, values: Tensor) -> None:
        self.rows, self.offsets, self.latents, self.values = rows, offsets, latents, values

    @classmethod
    def empty(cls) -> TokenSample:
        no_rows = torch.zeros(0, dtype=torch.int64)
        return cls(no_rows, torch.zeros(1, dtype=torch.int64), no_rows.int(), no_rows.float())

    @classmethod
    def of_block(cls, block: SparseLatents, first_row: int, share: float, seed: int = 0) -> TokenSample:
        rows = torch.arange(first_row, first_row + block.batch)
        chosen = firing_hash(seed, -1, rows) < bound(share)
        pairs = torch.repeat_interleave(chosen, block.offsets.diff()) & (block.values > 0)
        row_ids, latents, values = block.row_ids()[pairs], block.indices[pairs], block.values[pairs].float()
        order = (row_ids * block.d_sae + latents).argsort()  # encoders leave the order within a row open
        sizes = torch.bincount(row_ids, minlength=block.batch)[chosen]
        return cls(rows[chosen], _offsets(sizes), latents[order].int(), values[order])

    @classmethod
    def cat(cls, parts: Sequence[TokenSample]) -> TokenSample:
        """Samples of disjoint rows as one, by row."""
        whole = [torch.cat([getattr(part, name) for part in parts]) for name in ("rows", "latents", "values")]
        sizes = torch.cat([part.offsets.diff() for part in parts])
        return cls(whole[0], _offsets(sizes), whole[1], whole[2])._at(whole[0].argsort())

    def smallest(self, n: int, seed: int = 0) -> TokenSample:
        """At most n of the rows, by hash."""
        if len(self.rows) <= n:
            return self
        return self._at(firing_hash(seed, -1, self.rows).argsort()[:n].sort().values)

    def shared(self, other: TokenSample) -> tuple[TokenSample, TokenSample]:
        """Both samples, of the rows that both have."""
        ours, theirs = torch.isin(self.rows, other.rows), torch.isin(other.rows, self.rows)
        return self._at(ours.nonzero().flatten()), other._at(theirs.nonzero().flatten())

    def row_ids(self) -> Tensor:
        """int64[n_pairs]: the place among `rows` of each pair."""
        sizes = self.offsets.diff()
        return torch.arange(len(self.rows)).repeat_interleave(sizes, output_size=len(self.latents))

    def counts(self, d_sae: int) -> Tensor:
        """int64[d_sae], sampled rows on which each latent fires."""
        return torch.bincount(self.latents, minlength=d_sae)

    def contrast(self, d_sae: int, n: int, seed: int = 0) -> Tensor:
        """Random rows on which a latent does not fire: int64[d_sae n], -1 where fewer were found.

        Drawn among the sampled rows by hash(seed, latent, draw), CONTRAST_DRAWS · n at most, no row twice: a
        latent that fires nearly always may have fewer.
        """
        found = torch.full((d_sae, n), -1, dtype=torch.int64)
        if not len(self.rows) or n == 0:
            return found
        fires = self.row_ids() * d_sae + self.latents  # one number a pair, ascending
        draws = torch.arange(CONTRAST_DRAWS * n)
        for latents in torch.arange(d_sae).split(max(1, 2**22 // len(draws) ** 2)):
            places = firing_hash(seed + 1, latents[:, None], draws) % len(self.rows)
            again = (places[:, :, None] == places[:, None, :]).tril(-1).any(2)
            keys = places * d_sae + latents[:, None]
            at = torch.searchsorted(fires, keys).clamp_max(max(len(fires) - 1, 0))
            silent = (fires[at] != keys if len(fires) else torch.ones_like(again)) & ~again
            order = (~silent).int().argsort(dim=1, stable=True)[:, :n]
            rows = self.rows[places.gather(1, order)].masked_fill(~silent.gather(1, order), -1)
            found[latents, : rows.shape[1]] = rows
        return found

    def tensors(self) -> dict[str, Tensor]:
        names = ("rows", "offsets", "latents", "values")
        return {f"token_sample_{name}": getattr(self, name) for name in names}

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor]) -> TokenSample:
        return cls(*(tensors[f"token_sample_{name}"] for name in ("rows", "offsets", "latents", "values")))

    def _at(self, places: Tensor) -> TokenSample:
        """The rows at these places, in this order."""
        sizes = self.offsets.diff()[places]
        pairs = spans(self.offsets[places], sizes)
        return TokenSample(self.rows[places], _offsets(sizes), self.latents[pairs], self.values[pairs])


def bound(share: float) -> int:
    """The number below which a hash of 63 bits lies with this probability."""
    return min(int(share * 2.0**63), 2**63 - 1)


def _offsets(sizes: Tensor) -> Tensor:
    return torch.cat([sizes.new_zeros(1), sizes.cumsum(0)])
