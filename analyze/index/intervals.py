"""How strongly a latent fires when it fires: intervals that each hold the same share of its firings.

The shares are of the *positive* activations. Equal widths would leave most intervals nearly empty.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from .tally import bin_edges

N_INTERVALS = 5


@dataclass(frozen=True, slots=True)
class Interval:
    """The sampled firings between two quantiles, low <= value < high (in the last high too), strongest
    first."""

    low: float
    high: float
    values: tuple[float, ...]
    rows: tuple[int, ...]

    def examples(self, n: int) -> list[tuple[float, int]]:
        """(activation, row) of at most n firings, spread evenly from the strongest on."""
        n, of = min(n, len(self.rows)), len(self.rows)
        return [(self.values[j * of // n], self.rows[j * of // n]) for j in range(n)]


def quantile_edges(histogram: Tensor, sample: Tensor, n_fired: int, largest: float, n: int) -> list[float]:
    """The n + 1 edges of n intervals of one latent, as `all_quantile_edges` of its sample float[m]."""
    fired, most = torch.tensor([n_fired]), torch.tensor([largest], dtype=torch.float64)
    return all_quantile_edges(histogram[None], sample[None], fired, most, n)[0].tolist()


def all_quantile_edges(histogram: Tensor, sample: Tensor, n_fired: Tensor, largest: Tensor, n: int) -> Tensor:
    """The n + 1 edges of n intervals of each latent: float64[l n + 1], ascending, from at most the smallest
    activation to the largest; 0 where it never fired.

    histogram: int[l N_BINS], exact; sample: float[l m], sampled activations, 0 in empty places; n_fired:
        int64[l], firings in all; largest: float64[l]
    Quantiles are exact where the sample holds all firings: floor(j/n · n_fired) firings are below the j/n
    quantile. Otherwise the exact histogram gives the bin, a quarter of an octave, the largest error, and the
    sampled activations in it are interpolated.
    """
    known = sample > 0
    n_known, share_below = known.sum(1), torch.arange(1, n, dtype=torch.float64) / n
    ascending = torch.where(known, sample.double(), torch.inf).sort(dim=1).values
    ascending = torch.nn.functional.pad(ascending, (0, 1), value=torch.inf)  # a place to look at where m is 0
    exact = ascending.gather(1, (torch.arange(n) * n_fired[:, None] // n).clamp_max(ascending.shape[1] - 1))

    counts = histogram.double()
    below, edges = counts.cumsum(1), torch.tensor(bin_edges(), dtype=torch.float64)
    lowest = (counts > 0).int().argmax(1)
    last = counts.shape[1] - 1 - (counts.flip(1) > 0).int().argmax(1)
    wanted = share_below * n_fired[:, None]
    bins = torch.searchsorted(below, wanted.contiguous()).minimum(last[:, None])
    here = counts.gather(1, bins)
    share = (wanted - (below.gather(1, bins) - here)) / here.clamp_min(1)
    low = edges[bins]
    high = torch.where(bins == last[:, None], largest[:, None], edges[bins + 1])  # the last bin ends there
    first = torch.searchsorted(ascending, low)
    inside = torch.searchsorted(ascending, high) - first
    place = torch.minimum((share * (inside + 1)).long(), inside)

    def knot(at: Tensor) -> Tensor:
        between = ascending.gather(1, (first + at - 1).clamp(0, ascending.shape[1] - 1))
        return torch.where(at == 0, low, torch.where(at == inside + 1, high, between))

    found = knot(place) + (knot(place + 1) - knot(place)) * (share * (inside + 1) - place)
    found = torch.cat([edges[lowest][:, None], found], 1).cummax(1).values.minimum(largest[:, None])
    whole = (n_known == n_fired)[:, None]
    quantiles = torch.cat([torch.where(whole, exact, found), largest[:, None]], 1)
    return quantiles.masked_fill(n_fired[:, None] == 0, 0)


def intervals(
    histogram: Tensor,
    sample_values: Tensor,
    sample_rows: Tensor,
    n_fired: int,
    largest: float,
    n: int = N_INTERVALS,
) -> tuple[Interval, ...]:
    """The intervals of one latent, weakest first; none where it never fired. See `quantile_edges`.

    sample_values, sample_rows: float[m], int64[m], row -1 in empty places
    """
    if n_fired == 0:
        return ()
    values, rows = sample_values[sample_rows >= 0], sample_rows[sample_rows >= 0]
    edges = quantile_edges(histogram, values, n_fired, largest, n)
    strongest = sorted(zip(values.tolist(), rows.tolist()), key=lambda firing: (-firing[0], firing[1]))
    found = []
    for j, (low, high) in enumerate(pairwise(edges)):
        inside = [(value, row) for value, row in strongest if low <= value and (value < high or j == n - 1)]
        values, rows = ([firing[i] for firing in inside] for i in (0, 1))
        found.append(Interval(low, high, tuple(values), tuple(rows)))
    return tuple(found)
