"""What one pass leaves of every latent: counts, histograms, first and last row, and some firings.

A block's firings stay sparse (token, latent, value): no tokens × latents matrix, no loop over latents. Two
tallies of different rows merge exactly, in any order. The torch code is the definition; float32 on a CPU goes
through tally.c, which does the same in one sweep.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from saelens_lite.kernels import tally as kernel
from saelens_lite.sae.autoencoder import SparseAutoencoder
from saelens_lite.sae.latents import SparseLatents
from saelens_lite.store.reader import ActivationStore

from ..latents.store_pass import shard_latents
from .kept_firings import SampledFirings, StrongestFirings
from .token_sample import TokenSample

N_BINS, BINS_PER_OCTAVE, FIRST_OCTAVE = 96, 4, -8
N_POSITION_BINS = 16
_NEVER = torch.iinfo(torch.int64).max


def activation_bins(values: Tensor) -> Tensor:
    """The histogram bin of each activation: int64[...], 0 to N_BINS - 1.

    Bin b holds edge b <= value < edge b + 1 of `bin_edges`, the last what lies beyond too, read off the bits
    of a float, so that no rounding can put a value beside its bin.
    values: float32 or float64[...] above 0
    """
    if values.dtype == torch.float64:
        bits, mantissa, bias = values.contiguous().view(torch.int64), 52, 1023
    else:
        bits, mantissa, bias = values.contiguous().view(torch.int32).long(), 23, 127
    return ((bits >> (mantissa - 2)) - (bias + FIRST_OCTAVE) * BINS_PER_OCTAVE).clamp(0, N_BINS - 1)


def bin_edges() -> list[float]:
    """The N_BINS + 1 edges, in activations: 0, then four equal steps an octave, from 1.25 · 2^-8 to 2^16."""
    places = (divmod(b, BINS_PER_OCTAVE) for b in range(1, N_BINS + 1))
    return [0.0, *(2.0 ** (octave + FIRST_OCTAVE) * (1 + step / 4) for octave, step in places)]


def position_bins(positions: Tensor) -> Tensor:
    """The bin of each position in a context, its number of binary digits, at most 15: uint8[...]."""
    edges = 2 ** torch.arange(N_POSITION_BINS - 1)
    return torch.bucketize(positions, edges, right=True).to(torch.uint8)


class Tally:
    """The counts of one pass.

    n_top, n_sample: firings kept of each latent, the strongest and a uniform sample, drawn by seed
    dtype: of kept values, float32 or float64

    n_tokens: rows seen
    counts: int64[d_sae], rows on which each latent fired (was above 0)
    first_fired, last_fired: int64[d_sae], the first and the last such row of the store; -1 for never
    histogram, positions: int32[d_sae N_BINS], int32[d_sae N_POSITION_BINS], firings by activation and by
        position in the context, all 0 for rows without positions
    token_positions: int64[N_POSITION_BINS], rows by position
    """

    def __init__(
        self, d_sae: int, n_top: int, n_sample: int = 0, seed: int = 0, dtype: torch.dtype = torch.float32
    ) -> None:
        self.d_sae, self.seed, self.n_tokens = d_sae, seed, 0
        self.counts = torch.zeros(d_sae, dtype=torch.int64)
        self._first = torch.full((d_sae,), _NEVER, dtype=torch.int64)
        self.last_fired = torch.full((d_sae,), -1, dtype=torch.int64)
        self.histogram = torch.zeros(d_sae, N_BINS, dtype=torch.int32)
        self.positions = torch.zeros(d_sae, N_POSITION_BINS, dtype=torch.int32)
        self.token_positions = torch.zeros(N_POSITION_BINS, dtype=torch.int64)
        self.top = StrongestFirings(d_sae, n_top, dtype)
        self.sample = SampledFirings(d_sae, n_sample, dtype, seed)

    def update(self, latents: SparseLatents, first_row: int, row_bins: Tensor | None = None) -> None:
        """Add a block whose rows come after all rows seen so far.

        latents: on the CPU; row_bins: uint8[rows], see `position_bins`; None for rows without positions
        raises: ValueError for values that are not finite
        """
        if not latents.values.isfinite().all():
            bad = first_row + int(latents.row_ids()[~latents.values.isfinite()][0])
            raise ValueError(
                f"expected finite latents, got nan or infinity on row {bad}: the SAE's weights are broken"
            )
        if row_bins is not None:
            self.token_positions += torch.bincount(row_bins, minlength=N_POSITION_BINS)
        if not kernel.tally_(
            latents.values, latents.indices, latents.offsets, latents.k, first_row, row_bins, self.seed,
            self.counts, self._first, self.last_fired, self.histogram, self.positions,
            self.top.values, self.top.rows, self.sample.values, self.sample.rows,
        ):  # fmt: skip
            self._update(latents, first_row, row_bins)
        self.n_tokens += latents.batch

    def _update(self, latents: SparseLatents, first_row: int, row_bins: Tensor | None) -> None:
        """The definition of kernel.tally_, in plain torch."""
        fires = latents.values > 0
        indices, rows = latents.indices[fires], latents.row_ids()[fires]
        once = torch.ones_like(indices)
        self.counts.index_add_(0, indices, once)
        self._first.scatter_reduce_(0, indices, rows + first_row, reduce="amin")
        self.last_fired.scatter_reduce_(0, indices, rows + first_row, reduce="amax")
        at = indices * N_BINS + activation_bins(latents.values[fires])
        self.histogram.view(-1).index_add_(0, at, once.int())
        if row_bins is not None:
            self.positions.view(-1).index_add_(0, indices * N_POSITION_BINS + row_bins[rows], once.int())
        for kept in (self.top, self.sample):
            if kept.values.shape[1]:
                kept.update(latents, first_row)

    def merge(self, other: Tally) -> None:
        """Add what another one saw, of any other rows, with the same settings."""
        self.n_tokens += other.n_tokens
        self.counts += other.counts
        self._first = torch.minimum(self._first, other._first)
        self.last_fired = torch.maximum(self.last_fired, other.last_fired)
        self.histogram += other.histogram
        self.positions += other.positions
        self.token_positions += other.token_positions
        for kept, others in ((self.top, other.top), (self.sample, other.sample)):
            if kept.values.shape[1]:
                kept.merge(others)

    @property
    def first_fired(self) -> Tensor:
        return self._first.masked_fill(self._first == _NEVER, -1)

    @property
    def density(self) -> Tensor:
        """Share of rows on which each latent fires: float64[d_sae]."""
        return self.counts.double() / max(self.n_tokens, 1)

    @property
    def l0(self) -> float:
        return int(self.counts.sum()) / max(self.n_tokens, 1)

    def tensors(self) -> dict[str, Tensor]:
        """Everything, by name; all but token_positions and n_tokens have one row a latent."""
        names = ("counts", "first_fired", "last_fired", "histogram", "positions", "token_positions")
        tensors = {name: getattr(self, name) for name in names}
        tensors["n_tokens"] = torch.tensor([self.n_tokens])
        for name, kept in (("top", self.top), ("sample", self.sample)):
            tensors |= {f"{name}_values": kept.values, f"{name}_rows": kept.rows}
        return tensors

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor], seed: int = 0) -> Tally:
        """From what `tensors` gave, which may be mapped from a file: it is then read, not written."""
        tally = cls(0, 0, seed=seed)
        tally.d_sae, tally.n_tokens = len(tensors["counts"]), int(tensors["n_tokens"])
        for name in ("counts", "last_fired", "histogram", "positions", "token_positions"):
            setattr(tally, name, tensors[name])
        first = tensors["first_fired"]
        tally._first = first.masked_fill(first < 0, _NEVER)
        for name in ("top", "sample"):
            kept = getattr(tally, name)
            kept.values, kept.rows = tensors[f"{name}_values"], tensors[f"{name}_rows"]
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
    """Encode the rows of one shard, which begins at first_row of the store, into the tally.

    returns: the sampled rows of each block
    """
    bins = position_bins(store.row_positions(shard)[1]) if store.has_tokens else None
    samples = []
    for row, latents in shard_latents(sae, store, hook_point, shard, first_row):
        at = row - first_row
        tally.update(latents, row, None if bins is None else bins[at : at + latents.batch])
        if sample_share > 0:
            samples.append(TokenSample.of_block(latents, row, sample_share, tally.seed))
    return samples


def kept_dtype(sae: SparseAutoencoder) -> torch.dtype:
    return torch.float64 if sae.dtype == torch.float64 else torch.float32
