"""Activations whose features are known: sparse sums of planted directions, more of them than dimensions.

They give dictionaries the ground truth that text lacks. Feature i fires where a normal z exceeds a threshold
and its parent fires, with a magnitude |N(mean, std²)|, and a row is the sum of what fires:

    z       = f @ loadingsᵀ + sqrt(1 − ‖loading‖²) · e       f ~ N(0, I_rank) of the row, e ~ N(0, 1) of each
    feature fires_i = lower_i < z_i ≤ upper_i  and  fires_parent(i)
    acts    = Σ_i magnitude_i · directions_i

Rates follow a capped Zipf law, min(max_rate, c · rank^-exponent), where c gives the wanted mean l0. They hold
exactly for the rows, hierarchy included: thresholds are set for the rate given the parent, from which a
child's z is independent. Siblings that exclude each other share one z, of which each takes an interval.

source: the ingredients are those of SAELens' SyntheticModel (SynthSAEBench, arXiv:2602.14687). There,
magnitudes are rectified, siblings exclude each other by drawing among those that fired, and rates are
corrected for that approximately.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Annotated, NamedTuple

import numpy as np
import torch
from torch import Tensor

from saelens_lite.config import Above, AtLeast, Below, check_fields
from saelens_lite.kernels import dispatch as kernels
from saelens_lite.misfits import names_misfits
from saelens_lite.sae.latents import SparseLatents
from saelens_lite.store.reader import ActivationStore

BLOCK_ROWS = 256
"""Rows that share a random stream, and the document of a store that they make."""

_MAX_LOADING = 0.99


@dataclass(frozen=True, kw_only=True, slots=True)
class SyntheticConfig:
    """Everything that determines synthetic rows. The trees' features come first, level by level."""

    d_model: Annotated[int, AtLeast(1)] = 256
    """Width of a row."""
    n_features: Annotated[int, AtLeast(1)] = 4096
    """Planted directions; above d_model they are in superposition."""
    l0: Annotated[float, Above(0)] = 20.0
    """Features that fire on a row, on average."""
    zipf_exponent: Annotated[float, AtLeast(0)] = 0.5
    """How unequal rates are: feature r is wanted at a rate in proportion to (r + 1)^-exponent."""
    max_rate: Annotated[float, Above(0), Below(1)] = 0.4
    """No feature fires on a larger share of rows."""
    magnitude_mean: Annotated[float, Above(0)] = 1.0
    """A firing has the magnitude |N(mean, std²)|: mean of that normal."""
    magnitude_std: Annotated[float, AtLeast(0)] = 0.15
    """Standard deviation of that normal."""
    spread_steps: Annotated[int, AtLeast(0)] = 20
    """Steps that spread the directions apart (see `spread`); 0 leaves them random."""
    correlation_rank: int = 25
    """Common causes of firing; more make correlations more various."""
    correlation_scale: Annotated[float, AtLeast(0)] = 0.1
    """Standard deviation of a feature's loading on a cause; correlations of z are about scale² · sqrt(rank).
    0 for none."""
    n_trees: Annotated[int, AtLeast(0)] = 0
    """Trees of the planted hierarchy, in which a feature fires only where its parent does; 0 for none."""
    branching: Annotated[int, AtLeast(1)] = 4
    """Children of a feature that has any."""
    depth: Annotated[int, AtLeast(1)] = 3
    """Levels below the root of a tree."""
    exclusive_siblings: bool = True
    """Whether at most one child of a parent fires on a row."""
    max_child_share: Annotated[float, Above(0), Below(1)] = 0.8
    """The largest share of a parent's firings that a child takes; all its children together where siblings
    exclude each other. Zipf rates above that are cut. At 1 some parents would never be seen alone."""
    seed: Annotated[int, AtLeast(0)] = 0
    """Of directions, loadings and rows."""

    def __post_init__(self) -> None:
        def check(ok: bool, name: str, expected: str) -> None:
            if not ok:
                raise ValueError(f"SyntheticConfig.{name} expected {expected}, got {getattr(self, name)!r}")

        check_fields(self)
        needed = sum(self.levels)
        check(needed <= self.n_features, "n_features", f"at least the {needed} of {self.n_trees} trees")
        enough = self.depth + 1 if self.n_trees and self.correlation_scale else 1
        expected = f"at least {enough}: loadings are orthogonal down a branch"
        check(self.correlation_rank >= enough, "correlation_rank", expected)

    @property
    def levels(self) -> list[int]:
        """Features of each level of the hierarchy, roots first; empty without one."""
        n_levels = self.depth + 1 if self.n_trees else 0
        return [self.n_trees * self.branching**level for level in range(n_levels)]


class SyntheticRows(NamedTuple):
    """acts: float32[n d_model]; latents: SparseLatents of n rows over n_features, in order of the feature."""

    acts: Tensor
    latents: SparseLatents


class SyntheticActivations:
    """Planted directions and an endless sequence of rows made from them.

        synthetic = SyntheticActivations(SyntheticConfig(n_trees=32))
        store = synthetic.to_store("store/", 1_000_000)
        print(evaluate_recovery(train_sae(store, d_sae=1024, k=20), synthetic))

    directions: float32[n_features d_model], unit norm
    rates: float64[n_features], share of rows on which each feature fires
    parents: int64[n_features], -1 for a root or a free feature
    loadings: float32[n_features correlation_rank]; their products are the correlations of z between features

    Row r is a function of the configuration and r alone, so any span can be made anywhere, at any time.
    """

    def __init__(self, config: SyntheticConfig) -> None:
        self.config = config
        self._levels = _level_slices(config)
        self.parents = _parents(config, self._levels)
        self.rates = _rates(config, self._levels, self.parents)
        noise = self._stream(0).standard_normal((config.n_features, config.d_model), dtype=np.float32)
        self.directions = spread(torch.from_numpy(noise), config.spread_steps)
        self._own_z, lower, upper = _thresholds(config, self.rates, self.parents)
        self._lower, self._upper = lower.float().numpy(), upper.float().numpy()
        self.loadings = self._loadings()

    def _stream(self, *purpose: int) -> np.random.Generator:
        return np.random.Generator(np.random.PCG64DXSM(np.random.SeedSequence((self.config.seed, *purpose))))

    def _loadings(self) -> Tensor:
        """float32[n_features correlation_rank], orthogonal to those of all ancestors."""
        config = self.config
        noise = self._stream(1).standard_normal((config.n_features, config.correlation_rank))
        loadings = torch.from_numpy(noise) * config.correlation_scale
        norms = loadings.norm(dim=1, keepdim=True).clamp_max(_MAX_LOADING**0.5)
        for level in self._levels[1:]:
            ancestors, own = self.parents[level], loadings[level]
            while (ancestors >= 0).all():  # a level's features have equally many
                directions = torch.nn.functional.normalize(loadings[ancestors], dim=1)
                own = own - (own * directions).sum(1, keepdim=True) * directions
                ancestors = self.parents[ancestors]
            loadings[level] = own
            loadings = loadings[self._own_z]  # exclusive siblings are one z, with one loading
        return (torch.nn.functional.normalize(loadings, dim=1) * norms[self._own_z]).float()

    @names_misfits
    def rows(self, start_row: int, n_rows: int) -> SyntheticRows:
        """n_rows rows from start_row on, in memory: 4 · d_model bytes each and about 16 bytes a firing."""
        if start_row < 0 or n_rows < 0:
            raise ValueError(f"rows expected start_row and n_rows of 0 or more, got {start_row} and {n_rows}")
        end_row, parts = start_row + n_rows, []
        for block in range(start_row // BLOCK_ROWS, -(-end_row // BLOCK_ROWS) if n_rows else 0):
            first, end = max(start_row, block * BLOCK_ROWS), min(end_row, (block + 1) * BLOCK_ROWS)
            parts.append(self._part(block, first, end))
        parts = parts or [SparseLatents.from_dense(torch.zeros(0, self.config.n_features))]
        latents = SparseLatents.cat(parts, (n_rows,))
        acts = kernels.decode(latents.values, latents.indices, latents.offsets, self.directions)
        return SyntheticRows(acts, latents)

    @names_misfits
    def chunks(
        self, start_row: int, n_rows: int, chunk_rows: int = 16 * BLOCK_ROWS
    ) -> Iterator[SyntheticRows]:
        """The same rows, chunk_rows at a time."""
        for first_row in range(start_row, start_row + n_rows, chunk_rows):
            yield self.rows(first_row, min(chunk_rows, start_row + n_rows - first_row))

    @names_misfits
    def to_store(
        self,
        path: str | os.PathLike[str],
        n_rows: int,
        *,
        dtype: str = "float32",
        rows_per_shard: int = 65_536,
    ) -> ActivationStore:
        """Keep rows 0 to n_rows - 1 as a store, hook point "synthetic", a document for each BLOCK_ROWS.

        raises: as `ActivationStore.from_arrays`
        """
        return ActivationStore.from_arrays(
            path,
            (chunk.acts for chunk in self.chunks(0, n_rows)),
            hook_point="synthetic",
            dtype=dtype,
            rows_per_shard=rows_per_shard,
            documents=np.arange(n_rows) // BLOCK_ROWS,
        )

    def _part(self, block: int, first_row: int, end_row: int) -> SparseLatents:
        """Rows first_row to end_row - 1, which lie in the block."""
        config, stream = self.config, self._stream(2, block)
        z = stream.standard_normal((BLOCK_ROWS, config.n_features), dtype=np.float32)
        if config.correlation_scale:
            loadings = self.loadings.numpy()
            z *= np.sqrt(1 - np.square(loadings).sum(1))
            z += stream.standard_normal((BLOCK_ROWS, config.correlation_rank), dtype=np.float32) @ loadings.T
        if config.n_trees and config.exclusive_siblings:
            z = z[:, self._own_z]
            fires = (z > self._lower) & (z <= self._upper)
        else:
            fires = z > self._lower
        for level in self._levels[1:]:
            fires[:, level] &= fires[:, self.parents[level]]
        rows, features = np.nonzero(fires)
        noise = stream.standard_normal(len(rows), dtype=np.float32)
        magnitudes = np.abs(config.magnitude_mean + config.magnitude_std * noise)

        offsets = np.searchsorted(rows, np.arange(BLOCK_ROWS + 1))
        offsets = offsets[first_row - block * BLOCK_ROWS : end_row - block * BLOCK_ROWS + 1]
        pairs = slice(offsets[0], offsets[-1])
        arrays = (magnitudes[pairs], features[pairs], offsets - offsets[0])
        return SparseLatents(*map(torch.from_numpy, arrays), config.n_features, (end_row - first_row,))


def spread(directions: Tensor, n_steps: int) -> Tensor:
    """Unit rows, spread apart by alternating projection: to the nearest tight frame, then to norm 1.

    This lowers Σ (d_i · d_j)², the noise of superposition, towards n² / d, the least that n > d unit vectors
    can have; up to d vectors become orthogonal.
    directions: float[n d]; returns: float[n d]
    source: Tropp et al. 2005, "Designing structured tight frames via an alternating projection method".
        SAELens' generator lowers the same sum by Adam.
    """
    unit = torch.nn.functional.normalize(directions.double(), dim=1)
    for _ in range(n_steps):
        left, _, right = torch.linalg.svd(unit, full_matrices=False)
        unit = torch.nn.functional.normalize(left @ right, dim=1)
    return unit.to(directions.dtype)


def _level_slices(config: SyntheticConfig) -> list[slice]:
    ends = np.cumsum([0, *config.levels]).tolist()
    return [slice(start, end) for start, end in pairwise(ends)]


def _parents(config: SyntheticConfig, levels: list[slice]) -> Tensor:
    parents = torch.full((config.n_features,), -1)
    for above, level in pairwise(levels):
        parents[level] = above.start + torch.arange(level.stop - level.start) // config.branching
    return parents


def _rates(config: SyntheticConfig, levels: list[slice], parents: Tensor) -> Tensor:
    """Share of rows on which each feature fires, float64[n_features]: of sum l0."""
    zipf = torch.arange(1, config.n_features + 1, dtype=torch.float64) ** -config.zipf_exponent

    def at(scale: float) -> Tensor:
        rates = (scale * zipf).clamp_max(config.max_rate)
        for level in levels[1:]:
            wanted, allowed = rates[level], config.max_child_share * rates[parents[level]]
            if config.exclusive_siblings:
                together = wanted.view(-1, config.branching).sum(1).repeat_interleave(config.branching)
                rates[level] = wanted * (allowed / together).clamp_max(1)
            else:
                rates[level] = wanted.minimum(allowed)
        return rates

    low, high = 0.0, 1.0 / float(zipf[-1])  # there, every feature is at a cap
    if float(at(high).sum()) < config.l0:
        raise ValueError(
            f"SyntheticConfig.l0 expected at most {float(at(high).sum()):.1f} from {config.n_features} "
            f"features under max_rate={config.max_rate} and max_child_share={config.max_child_share}, got "
            f"{config.l0}"
        )
    for _ in range(100):
        middle = (low + high) / 2
        low, high = (middle, high) if float(at(middle).sum()) < config.l0 else (low, middle)
    return at(high)


def _thresholds(config: SyntheticConfig, rates: Tensor, parents: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Whose z each feature takes, int64[n_features], and the interval of it in which it fires, float64."""
    own_z = torch.arange(config.n_features)
    has_parent = parents >= 0
    share = torch.where(has_parent, rates / rates[parents], rates)  # of the rows on which the parent fires
    above = torch.zeros_like(share)  # share of the rows on which z is above the interval
    if config.exclusive_siblings and has_parent.any():
        siblings = share[has_parent].view(-1, config.branching)
        above[has_parent] = (siblings.cumsum(1) - siblings).reshape(-1)
        first = own_z[has_parent].view(-1, config.branching)[:, :1]
        own_z[has_parent] = first.expand_as(siblings).reshape(-1)
    return own_z, torch.special.ndtri(1 - above - share), torch.special.ndtri(1 - above)
