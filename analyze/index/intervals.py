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
    """The n + 1 edges of n intervals, ascending, from at most the smallest activation to the largest.

    histogram: int[N_BINS], exact; sample: float[m], sampled activations; n_fired: firings in all
    Quantiles are exact where the sample holds all firings: floor(j/n · n_fired) firings are below the j/n
    quantile. Otherwise the exact histogram gives the bin, a quarter of an octave, the largest error, and the
    sampled activations in it are interpolated.
    """
    if len(sample) == n_fired:
        ascending = sample.sort().values.tolist()
        return [ascending[j * n_fired // n] for j in range(n)] + [ascending[-1]]
    below, filled = histogram.double().cumsum(0), histogram.nonzero().flatten().tolist()
    edges = [*bin_edges()[: filled[-1] + 1], largest]  # the last bin ends at the largest activation
    quantiles = [edges[filled[0]]]
    for j in range(1, n):
        wanted = j / n * n_fired
        b = int(torch.searchsorted(below, wanted))
        share = (wanted - float(below[b] - histogram[b])) / float(histogram[b])
        known = sample[(sample >= edges[b]) & (sample < edges[b + 1])].sort().values.tolist()
        knots = [edges[b], *known, edges[b + 1]]
        place = min(int(share * (len(knots) - 1)), len(knots) - 2)
        inside = knots[place] + (knots[place + 1] - knots[place]) * (share * (len(knots) - 1) - place)
        quantiles.append(min(max(inside, quantiles[-1]), largest))
    return [*quantiles, largest]


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
