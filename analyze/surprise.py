"""How surprising the code of a row is, against the codes of normal rows.

    latents of an SAE  Σ_silent −log(1 − p_i) + Σ_fires (−log p_i − log q_i), in nats
    dense codes        T² = (z − z̄)ᵀ S⁻¹ (z − z̄), z̄ and S the mean and covariance of n normal codes
    variational        −ELBO of the row, in nats of the scale of training

p_i = (c_i + ½) / (n + 1) is the rate of latent i on n normal rows of which c_i fire, with Jeffreys' prior;
latents count as independent, which they are not, so it ranks rows and is no likelihood of text. q_i is the
two-sided tail of the activation's magnitude in a log-normal with the moments of latent i's normal firings,
drawn towards those of all latents by PRIOR_FIRINGS; on normal rows −log q is 1 on average. T² is Hotelling's
(1931), on normal rows about the code's width; its S has no eigenvalue below LEAST_VARIANCE of their mean, so
that a unit which normal rows leave alone surprises when it moves, by a finite amount.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from saelens_lite.autoencoders.variational import Variational
from saelens_lite.device import in_float64
from saelens_lite.sae.autoencoder import SparseAutoencoder
from saelens_lite.sae.latents import SparseLatents
from saelens_lite.store.covariance import Covariance

from .latents.compatibility import Coder
from .latents.store_pass import to_cpu

Code = SparseLatents | Tensor
"""Of a block of rows: latents, or codes float[n code_size]."""

PRIOR_FIRINGS = 2.0
LEAST_VARIANCE = 1e-6
_LEAST_STD = 1e-6


@dataclass(frozen=True, slots=True, eq=False)
class OfLatents:
    """rates, log_mean, log_std: float64[d_sae], p_i and the moments of log activations of normal rows"""

    unit: ClassVar[str] = "nats"
    rates: Tensor
    log_mean: Tensor
    log_std: Tensor

    @classmethod
    def learn(cls, d_sae: int, codes: Iterable[SparseLatents]) -> OfLatents:
        n_rows, counts = 0, torch.zeros(d_sae, dtype=torch.float64)
        total, squared = torch.zeros_like(counts), torch.zeros_like(counts)
        for latents in codes:
            _, latent, value = _firings(latents)
            logs = value.log()
            for sums, terms in ((counts, torch.ones_like(logs)), (total, logs), (squared, logs.square())):
                sums.index_add_(0, latent, terms)
            n_rows += latents.batch
        n_firings = max(float(counts.sum()), 1.0)
        mean = total.sum() / n_firings
        variance = (squared.sum() / n_firings - mean.square()).clamp_min(_LEAST_STD**2)
        log_mean = (total + PRIOR_FIRINGS * mean) / (counts + PRIOR_FIRINGS)
        # Σ (log value − log_mean)² of each latent
        own = squared - 2 * log_mean * total + counts * log_mean.square()
        log_std = ((own.clamp_min(0) + PRIOR_FIRINGS * variance) / (counts + PRIOR_FIRINGS)).sqrt()
        return cls((counts + 0.5) / (n_rows + 1), log_mean, log_std)

    def __call__(self, acts: Tensor, latents: SparseLatents) -> Tensor:
        """float64[n], nats of each row: all latents as if silent, then what those that fire change."""
        row, latent, value = _firings(latents)
        p = self.rates[latent]
        distance = (value.log() - self.log_mean[latent]).abs() / self.log_std[latent]
        tail = math.log(2) + torch.special.log_ndtr(-distance)
        silent = -torch.log1p(-self.rates).sum()
        return silent.repeat(latents.batch).index_add_(0, row, torch.log1p(-p) - p.log() - tail)


@dataclass(frozen=True, slots=True, eq=False)
class OfDenseCodes:
    """mean: float64[code_size], z̄; whitening: float64[code_size code_size], with S⁻¹ its product with its
    transpose"""

    unit: ClassVar[str] = "T²"
    mean: Tensor
    whitening: Tensor

    @classmethod
    def learn(cls, code_size: int, codes: Iterable[Tensor]) -> OfDenseCodes:
        sums = Covariance(code_size)
        for block in codes:
            sums.update(block)
        variances, vectors = torch.linalg.eigh(sums.covariance)
        least = LEAST_VARIANCE * variances.mean().clamp_min(torch.finfo(torch.float32).tiny)
        return cls(sums.mean, vectors / torch.maximum(variances, least).sqrt())

    def __call__(self, acts: Tensor, codes: Tensor) -> Tensor:
        """float64[n], T² of each row."""
        return ((in_float64(codes).cpu() - self.mean) @ self.whitening).square().sum(1)


@dataclass(frozen=True, slots=True, eq=False)
class OfBound:
    """What a variational autoencoder says itself; nothing is learnt."""

    unit: ClassVar[str] = "nats"
    autoencoder: Variational

    def __call__(self, acts: Tensor, codes: Tensor) -> Tensor:
        """float64[n], −ELBO of each row; draws are those of seed 0."""
        return -self.autoencoder.elbo(acts).cpu().double()


Surprise = OfLatents | OfDenseCodes | OfBound


def learnt_surprise(autoencoder: Coder, codes: Iterable[Code]) -> Surprise:
    """Of the codes of normal rows, block by block."""
    if isinstance(autoencoder, SparseAutoencoder):
        return OfLatents.learn(autoencoder.d_sae, codes)  # type: ignore[arg-type]
    if isinstance(autoencoder, Variational):
        return OfBound(autoencoder)
    return OfDenseCodes.learn(autoencoder.code_size, codes)  # type: ignore[arg-type]


def _firings(latents: SparseLatents) -> tuple[Tensor, Tensor, Tensor]:
    """(row, latent, |value| float64) of what fires, on the CPU; a TopK survivor that ReLU cut does not."""
    latents = to_cpu(latents)
    fires = latents.values != 0
    return latents.row_ids()[fires], latents.indices[fires], latents.values[fires].double().abs()
