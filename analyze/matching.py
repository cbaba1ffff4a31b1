"""Latents of two indexes over one store matched one to one, by decoder cosine and by co-firing.

Two latents that stand for the same thing point along one direction and fire on the same tokens. Each pair has
both numbers; what has no partner in the other index is listed.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from saelens_lite.arguments import opened_sae
from saelens_lite.kernels import tally as kernel
from saelens_lite.misfits import names_misfits
from saelens_lite.sae.autoencoder import SparseAutoencoder
from saelens_lite.text_table import Tabular

from .index.cofiring import MIN_TOGETHER
from .index.feature_index import FeatureIndex
from .index.token_sample import TokenSample
from .latents.direction_pairing import unit
from .latents.store_pass import spans

if TYPE_CHECKING:
    from pandas import DataFrame

SAME = 0.999
_CANDIDATES = 16
_BLOCK_CELLS, _BLOCK_PAIRS = 2**22, 2**18


@dataclass(frozen=True, slots=True)
class IndexMatch(Tabular):
    """Which latents of index a and index b are one, each at most once.

    latents_a, latents_b: int64[n_pairs], by latent of a
    cosine: float32[n_pairs], of the decoder rows; nan where no SAEs were given
    correlation: float32[n_pairs], Pearson's, of the activations on the sampled rows of both indexes; nan for
        two latents that met on fewer than 5 of them
    unmatched_a, unmatched_b: int64[...], the other latents of either index, ascending
    n_rows: sampled rows that both indexes have
    """

    latents_a: Tensor
    latents_b: Tensor
    cosine: Tensor
    correlation: Tensor
    unmatched_a: Tensor
    unmatched_b: Tensor
    n_rows: int

    def __len__(self) -> int:
        return len(self.latents_a)

    @property
    def same(self) -> Tensor:
        """Pairs that are one latent twice, bool[n_pairs]: of decoder cosine SAME or more, or, where no cosine
        is known, of that correlation."""
        return torch.where(self.cosine.isnan(), self.correlation, self.cosine) >= SAME

    def in_words(self) -> str:
        """How many latents are the same in both, under which number, and how many have no partner."""
        n, n_a, n_b = int(self.same.sum()), len(self.unmatched_a), len(self.unmatched_b)
        moved = int((self.same & (self.latents_a != self.latents_b)).sum())
        by = "correlation" if self.cosine.isnan().all() else "decoder cosine"
        text = f"{n:,} of {len(self) + n_a:,} latents are the same in both ({by} {SAME} or more)"
        if moved:
            text += f", {'all' if moved == n else f'{moved:,}'} of them under another number: shuffled"
        if n_a or n_b:
            replaced = ": replaced" if n_a == n_b and n == len(self) else ""
            text += f"; {n_a:,} and {n_b:,} have no partner in the other{replaced}"
        return f"{text}."

    def _records(self) -> list[dict[str, Any]]:
        columns = (of.tolist() for of in (self.latents_a, self.latents_b, self.cosine, self.correlation))
        rows = [*zip(*columns, strict=True)]
        rows += [(latent, None, math.nan, math.nan) for latent in self.unmatched_a.tolist()]
        rows += [(None, latent, math.nan, math.nan) for latent in self.unmatched_b.tolist()]
        names = ("latent_a", "latent_b", "cosine", "correlation")
        return [dict(zip(names, row, strict=True)) for row in rows]

    def to_frame(self) -> DataFrame:
        """A pandas DataFrame: latent_a, latent_b, cosine, correlation; a row a pair, then a row for each
        latent without a partner, which is <NA>."""
        return super(IndexMatch, self).to_frame().astype({"latent_a": "Int64", "latent_b": "Int64"})

    def __repr__(self) -> str:
        n, n_a, n_b = len(self), len(self.unmatched_a), len(self.unmatched_b)
        medians = [
            f"{name} {float(known.median()):.3f}"
            for name in ("cosine", "correlation")
            if len(known := (numbers := getattr(self, name))[~numbers.isnan()])
        ]
        of = f", median {' and '.join(medians)}" if medians else ""
        return f"IndexMatch({n:,} pairs{of}; {n_a:,} of {n + n_a:,} and {n_b:,} of {n + n_b:,} unmatched)"


@names_misfits
def match_indexes(
    a: FeatureIndex | str | os.PathLike[str],
    b: FeatureIndex | str | os.PathLike[str],
    sae_a: SparseAutoencoder | str | os.PathLike[str] | None = None,
    sae_b: SparseAutoencoder | str | os.PathLike[str] | None = None,
    *,
    min_cosine: float = 0.7,
    min_correlation: float = 0.7,
) -> IndexMatch:
    """Match the latents of two indexes over the same store one to one.

    A pair is possible where the decoder cosine or the correlation of activations reaches its bound. Of the
    possible pairs those with the largest mean of the two are taken first, so no two latents would both rather
    have each other than the partners they got.

    a, b: indexes or their folders
    sae_a, sae_b: their SAEs or the folders of these, for the cosines; without them the correlation decides
    min_cosine: 0.7 counts directions as the same in arXiv:2501.16615 (Paulo and Belrose 2025)
    min_correlation: of activations on the sampled rows of both indexes, as arXiv:2410.06981 (Lan et al. 2024)
        pairs latents; a latent that never fires there has none
    raises: ValueError for indexes of two stores, for one SAE without the other or of another index, for SAEs
        of two widths, or where neither cosines nor sampled rows are there to match by
    """
    a, b = (FeatureIndex.open(of) if isinstance(of, str | os.PathLike) else of for of in (a, b))
    stores = [index.plan["store"]["sha256"] for index in (a, b)]
    if stores[0] != stores[1]:
        raise ValueError(
            f"match_indexes expected two indexes over one store, got {a.path} over {stores[0][:8]} and "
            f"{b.path} over {stores[1][:8]}: make both over the same store"
        )
    decoders = _decoders(a, b, sae_a, sae_b)
    sample_a, sample_b = a.token_sample.shared(b.token_sample)
    if decoders is None and not len(sample_a.rows):
        raise ValueError(
            f"{a.path} and {b.path} have no sampled rows in common: give their SAEs, or make both with the "
            "same seed and sample_tokens above 0"
        )
    found = [
        _candidates(*block, min_cosine, min_correlation)
        for block in _blocks(decoders, sample_a, sample_b, len(a), len(b))
    ]
    one, other, cosine, correlation = (torch.cat(parts) for parts in zip(*found, strict=True))
    known = torch.stack([cosine, correlation.nan_to_num(0)]) if decoders else correlation.nan_to_num(0)[None]
    taken = _best_first(one, other, known.mean(0), len(a), len(b))
    of_a, of_b = one[taken], other[taken]
    unmatched = [
        torch.ones(len(index), dtype=torch.bool).index_fill_(0, matched, False).nonzero().flatten()
        for index, matched in ((a, of_a), (b, of_b))
    ]
    return IndexMatch(of_a, of_b, cosine[taken], correlation[taken], *unmatched, n_rows=len(sample_a.rows))


def _decoders(
    a: FeatureIndex,
    b: FeatureIndex,
    sae_a: SparseAutoencoder | str | os.PathLike[str] | None,
    sae_b: SparseAutoencoder | str | os.PathLike[str] | None,
) -> tuple[Tensor, Tensor] | None:
    """The decoder rows of both at unit norm; None where no SAE was given."""
    if sae_a is None and sae_b is None:
        return None
    if sae_a is None or sae_b is None:
        raise ValueError("match_indexes expected both SAEs or none, got one: a cosine is of two decoders")
    one = opened_sae("match_indexes expected sae_a", sae_a)
    other = opened_sae("match_indexes expected sae_b", sae_b)
    a.check(one)
    b.check(other)
    if one.d_model != other.d_model:
        raise ValueError(
            f"match_indexes expected SAEs of one width, got d_model={one.d_model} and {other.d_model}: leave "
            "them out, and the correlation of activations matches"
        )
    return unit(one.W_dec).cpu(), unit(other.W_dec).cpu()


def _blocks(
    decoders: tuple[Tensor, Tensor] | None, a: TokenSample, b: TokenSample, d_a: int, d_b: int
) -> Iterator[tuple[int, Tensor, Tensor]]:
    """(first latent of a, cosines, correlations) of a few latents of a with all of b: float32[n d_b]."""
    for first, correlation, _ in correlations(a, b, d_a, d_b):
        cosine = torch.full(correlation.shape, torch.nan)
        if decoders is not None:
            cosine = decoders[0][first : first + len(correlation)] @ decoders[1].T
        yield first, cosine, correlation


def correlations(a: TokenSample, b: TokenSample, d_a: int, d_b: int) -> Iterator[tuple[int, Tensor, Tensor]]:
    """(first latent of a, Pearson correlations, cosines) of the activations of a few latents of a with all of
    b over two samples of the same rows: float32[n d_b]; nan for two that met on fewer than MIN_TOGETHER rows.
    """
    n_rows = len(a.rows)
    by_latent = a.latents.argsort(stable=True)
    places, values = a.row_ids()[by_latent], a.values[by_latent]
    starts = torch.cat([torch.zeros(1, dtype=torch.int64), a.counts(d_a).cumsum(0)])
    moments = [_mean_spread_norm(sample, d) for sample, d in ((a, d_a), (b, d_b))]
    for latents in torch.arange(d_a).split(max(1, _BLOCK_CELLS // d_b)):
        first, n = int(latents[0]), len(latents)
        together = torch.zeros(n, d_b, dtype=torch.int32)
        dot = torch.zeros(n, d_b, dtype=torch.float64)
        if not kernel.meetings_(b.offsets, b.latents, b.values, starts, places, values, first, together, dot):
            _meetings_(b, starts, places, values, first, together, dot)
        (mean_a, spread_a, norm_a), (mean_b, spread_b, norm_b) = moments[0][:, latents, None], moments[1]
        seldom = together < MIN_TOGETHER
        correlation = ((dot - n_rows * mean_a * mean_b) / (spread_a * spread_b)).float()
        cosine = (dot / (norm_a * norm_b)).float()
        yield first, correlation.masked_fill(seldom, torch.nan), cosine.masked_fill(seldom, torch.nan)


def _meetings_(
    b: TokenSample, starts: Tensor, places: Tensor, values: Tensor, first: int, together: Tensor, dot: Tensor
) -> None:
    """The definition of kernel.meetings_, in plain torch."""
    n, d_b = together.shape
    sizes = b.offsets.diff()
    of_latent = torch.arange(n).repeat_interleave(starts[first : first + n + 1].diff())
    begin = int(starts[first])
    for pairs in torch.arange(begin, begin + len(of_latent)).split(_BLOCK_PAIRS):
        met = sizes[places[pairs]]
        at = spans(b.offsets[places[pairs]], met)
        cells = of_latent[pairs - begin].repeat_interleave(met) * d_b + b.latents[at]
        together.view(-1).index_add_(0, cells, torch.ones_like(cells, dtype=torch.int32))
        products = values[pairs].double().repeat_interleave(met) * b.values[at]
        dot.view(-1).index_add_(0, cells, products)


def _mean_spread_norm(sample: TokenSample, d_sae: int) -> Tensor:
    """Of each latent, over all sampled rows: mean, norm of the deviations, norm: float64[3 d_sae]."""
    latents, values, n_rows = sample.latents, sample.values.double(), len(sample.rows)
    total, square = (torch.bincount(latents, weights=w, minlength=d_sae) for w in (values, values**2))
    mean = total / max(n_rows, 1)
    return torch.stack([mean, (square - n_rows * mean**2).clamp_min(0).sqrt(), square.sqrt()])


def _candidates(
    first: int, cosine: Tensor, correlation: Tensor, min_cosine: float, min_correlation: float
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The best possible pairs of a block, some of each latent: (of a, of b, cosine, correlation)."""
    possible = (cosine >= min_cosine) | (correlation >= min_correlation)  # nan reaches no bound
    score = (cosine.nan_to_num(0) + correlation.nan_to_num(0)).masked_fill(~possible, -torch.inf)
    best = score.topk(min(_CANDIDATES, score.shape[1]), dim=1)
    at, column = (best.values > -torch.inf).nonzero(as_tuple=True)
    other = best.indices[at, column]
    return at + first, other, cosine[at, other], correlation[at, other]


def _best_first(one: Tensor, other: Tensor, score: Tensor, n: int, m: int) -> Tensor:
    """Which pairs are taken when the best comes first and a latent is taken once: int64[...], by `one`.

    In each round every pair is taken that is the best left for both of its latents; at equal scores the lower
    latents come first.
    """
    order = (one * m + other).argsort()
    order = order[score[order].argsort(descending=True, stable=True)]
    taken = []
    while len(order):
        place, of_one, of_other = torch.arange(len(order)), one[order], other[order]
        best_one, best_other = (
            torch.full((size,), len(order)).scatter_reduce(0, of, place, reduce="amin")
            for size, of in ((n, of_one), (m, of_other))
        )
        best = (best_one[of_one] == place) & (best_other[of_other] == place)
        taken.append(order[best])
        free_one, free_other = torch.ones(n, dtype=torch.bool), torch.ones(m, dtype=torch.bool)
        free_one[of_one[best]], free_other[of_other[best]] = False, False
        order = order[free_one[of_one] & free_other[of_other]]
    found = torch.cat(taken) if taken else one.new_zeros(0)
    return found[one[found].argsort()]
