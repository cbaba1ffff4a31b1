"""How unlike the normal rows a row is: what an SAE leaves unexplained, and how surprising its latents are.

    error     ‖acts − recons‖
    surprise  Σ_silent −log(1 − p_i) + Σ_fires (−log p_i − log q_i), in nats
    combined  (z(error) + z(surprise)) / √2,    z(v) = (v − median) / (1.4826 · MAD), both of the normal rows

p_i = (c_i + ½) / (n + 1) is the rate of latent i on n normal rows of which c_i fire, with Jeffreys' prior;
latents count as independent, which they are not, so surprise ranks rows and is no likelihood of text. q_i is
the two-sided tail of the activation's magnitude in a log-normal with the moments of latent i's normal
firings, drawn towards those of all latents by PRIOR_FIRINGS; on normal rows −log q is 1 on average. The error
sees directions that the dictionary lacks, the surprise known directions in strange company or strength.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from saelens_lite.arguments import takes_folders
from saelens_lite.misfits import names_misfits
from saelens_lite.sae.autoencoder import SparseAutoencoder
from saelens_lite.sae.latents import SparseLatents
from saelens_lite.store.reader import ActivationStore

from .latents.compatibility import fits
from .latents.store_pass import BLOCK_ROWS, blocks, to_cpu

Rows = Tensor | np.ndarray | ActivationStore
"""float[n d_model], or a store."""

PRIOR_FIRINGS = 2.0
_MAD_TO_STD = 1.4826
_LEAST_SCALE = 1e-6


@dataclass(frozen=True, slots=True, eq=False)
class AnomalyScores:
    """Scores of rows float64[n], larger for odder ones: ‖acts − recons‖ in units of the rows, nats, and the
    robust z of both against the normal rows."""

    error: Tensor
    surprise: Tensor
    error_z: Tensor
    surprise_z: Tensor

    @property
    def combined(self) -> Tensor:
        """float64[n], (error_z + surprise_z) / √2."""
        return (self.error_z + self.surprise_z) / math.sqrt(2)

    def __repr__(self) -> str:
        names = ("error_z", "surprise_z", "combined")
        medians = ", ".join(f"{name} {float(getattr(self, name).median()):.2f}" for name in names)
        return f"AnomalyScores of {len(self.error):,} rows; medians {medians}"


@dataclass(frozen=True, slots=True, eq=False)
class AnomalyDetector:
    """What the normal rows were like; `fit_anomaly` makes it.

    rates, log_mean, log_std: float64[d_sae], p_i and the moments of log activations
    error_center, error_scale, …: median and 1.4826 · MAD of the normal rows
    """

    sae: SparseAutoencoder
    n_rows: int
    rates: Tensor
    log_mean: Tensor
    log_std: Tensor
    error_center: float = 0.0
    error_scale: float = 1.0
    surprise_center: float = 0.0
    surprise_scale: float = 1.0

    def __repr__(self) -> str:
        return (
            f"AnomalyDetector of {self.n_rows:,} normal rows: "
            f"error {self.error_center:.4g} ± {self.error_scale:.2g}, "
            f"surprise {self.surprise_center:.4g} ± {self.surprise_scale:.2g} nats"
        )

    @names_misfits
    def scores(self, rows: Rows, *, hook_point: str | None = None) -> AnomalyScores:
        """Error and surprise of every row.

        raises: ValueError for rows of another width or hook point, none at all, or nan and infinity in them
        """
        parts = [(error, self._surprise(latents)) for error, latents in _encoded(self.sae, rows, hook_point)]
        error, surprise = (torch.cat([part[i] for part in parts]) for i in range(2))
        error_z = (error - self.error_center) / self.error_scale
        surprise_z = (surprise - self.surprise_center) / self.surprise_scale
        return AnomalyScores(error, surprise, error_z, surprise_z)

    def _surprise(self, latents: SparseLatents) -> Tensor:
        """float64[n], nats of each row: all latents as if silent, then what those that fire change."""
        row, latent, value = _firings(latents)
        p = self.rates[latent]
        distance = (value.log() - self.log_mean[latent]).abs() / self.log_std[latent]
        tail = math.log(2) + torch.special.log_ndtr(-distance)
        silent = -torch.log1p(-self.rates).sum()
        return silent.repeat(latents.batch).index_add_(0, row, torch.log1p(-p) - p.log() - tail)


@takes_folders
@names_misfits
def fit_anomaly(sae: SparseAutoencoder, normal: Rows, *, hook_point: str | None = None) -> AnomalyDetector:
    """Learn what is normal, in two passes: rates and magnitudes of latents, then the spread of both scores.

    The rows' own scores are a little low, since the rates are theirs: compare odd rows with others, as in
    `auroc(detector.scores(held_out).combined, detector.scores(odd).combined)`.

    raises: ValueError as `AnomalyDetector.scores`, and for fewer than 2 rows
    """
    n_rows, counts = 0, torch.zeros(sae.d_sae, dtype=torch.float64)
    total, squared = torch.zeros_like(counts), torch.zeros_like(counts)
    for _, latents in _encoded(sae, normal, hook_point):
        _, latent, value = _firings(latents)
        logs = value.log()
        for sums, terms in ((counts, torch.ones_like(logs)), (total, logs), (squared, logs.square())):
            sums.index_add_(0, latent, terms)
        n_rows += latents.batch
    if n_rows < 2:
        raise ValueError(f"fit_anomaly expected at least 2 normal rows, got {n_rows}")
    n_firings = max(float(counts.sum()), 1.0)
    mean = total.sum() / n_firings
    variance = (squared.sum() / n_firings - mean.square()).clamp_min(_LEAST_SCALE**2)
    log_mean = (total + PRIOR_FIRINGS * mean) / (counts + PRIOR_FIRINGS)
    # Σ (log value − log_mean)² of each latent
    own = squared - 2 * log_mean * total + counts * log_mean.square()
    log_std = ((own.clamp_min(0) + PRIOR_FIRINGS * variance) / (counts + PRIOR_FIRINGS)).sqrt()
    rates = (counts + 0.5) / (n_rows + 1)

    learned = (sae, n_rows, rates, log_mean, log_std)
    found = AnomalyDetector(*learned).scores(normal, hook_point=hook_point)
    return AnomalyDetector(*learned, *_spread(found.error), *_spread(found.surprise))


def _spread(values: Tensor) -> tuple[float, float]:
    """Median, and 1.4826 · median distance from it: in a normal distribution, its standard deviation."""
    center = values.median()
    scale = _MAD_TO_STD * (values - center).abs().median()
    return float(center), float(torch.maximum(scale, _LEAST_SCALE * center.abs().clamp_min(1)))


def _encoded(
    sae: SparseAutoencoder, rows: Rows, hook_point: str | None
) -> Iterator[tuple[Tensor, SparseLatents]]:
    """(‖acts − recons‖ float64[n], latents) of every block of rows, on the CPU."""
    n_rows = 0
    for acts in _blocks(sae, rows, hook_point):
        with torch.no_grad():
            recons, latents = sae(acts)
        n_rows += len(acts)
        yield (acts - recons).norm(dim=1).cpu().double(), to_cpu(latents)
    if not n_rows:
        raise ValueError("anomaly scores expected rows, got none")


def _blocks(sae: SparseAutoencoder, rows: Rows, hook_point: str | None) -> Iterator[Tensor]:
    """float[n d_model] in the SAE's dtype, on its device."""
    if isinstance(rows, ActivationStore):
        yield from (block.acts for block in blocks(sae, rows, fits(sae, rows, hook_point)))
        return
    if hook_point is not None:
        raise ValueError(
            f"hook_point= chooses among a store's, got {hook_point!r} with a {type(rows).__name__}"
        )
    given = torch.as_tensor(rows)
    if given.ndim != 2:
        raise ValueError(
            f"anomaly scores expected rows [n d_model={sae.d_model}], or a store, got {list(given.shape)}"
        )
    for start in range(0, len(given), BLOCK_ROWS):
        acts = given[start : start + BLOCK_ROWS].detach().to(sae.device, sae.dtype)
        if not acts.isfinite().all():
            row = start + int((~acts.isfinite().all(1)).nonzero()[0])
            raise ValueError(f"anomaly scores expected finite rows, got nan or infinity in row {row}")
        yield acts


def _firings(latents: SparseLatents) -> tuple[Tensor, Tensor, Tensor]:
    """(row, latent, |value| float64) of what fires; a TopK survivor that ReLU cut does not."""
    fires = latents.values != 0
    return latents.row_ids()[fires], latents.indices[fires], latents.values[fires].double().abs()
