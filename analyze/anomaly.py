"""How unlike the normal rows a row is: what an autoencoder leaves unexplained, how surprising its code is.

    error     ‖acts − recons‖
    surprise  of the code: nats of an SAE's latents, T² of dense codes, −ELBO of a variational (surprise.py)
    combined  (z(error) + z(surprise)) / √2,    z(v) = (v − median) / (1.4826 · MAD), both of the normal rows

The error sees directions that the dictionary lacks, the surprise known directions in strange company or
strength.
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
from saelens_lite.store.reader import ActivationStore

from .latents.compatibility import Coder, fits
from .latents.store_pass import BLOCK_ROWS, blocks
from .surprise import Code, Surprise, learnt_surprise

Rows = Tensor | np.ndarray | ActivationStore
"""float[n d_model], for a relative of images or series float[n c h w] or [n c length] too, or a store."""

_MAD_TO_STD = 1.4826
_LEAST_SCALE = 1e-6


@dataclass(frozen=True, slots=True, eq=False)
class AnomalyScores:
    """Scores of rows float64[n], larger for odder ones: ‖acts − recons‖ in units of the rows, the surprise in
    its own unit, and the robust z of both against the normal rows."""

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

    surprise: what it learnt of their codes
    error_center, error_scale, …: median and 1.4826 · MAD of the normal rows
    """

    autoencoder: Coder
    surprise: Surprise
    n_rows: int = 0
    error_center: float = 0.0
    error_scale: float = 1.0
    surprise_center: float = 0.0
    surprise_scale: float = 1.0

    def __repr__(self) -> str:
        return (
            f"AnomalyDetector of {self.n_rows:,} normal rows: "
            f"error {self.error_center:.4g} ± {self.error_scale:.2g}, "
            f"surprise {self.surprise_center:.4g} ± {self.surprise_scale:.2g} {self.surprise.unit}"
        )

    @names_misfits
    def scores(self, rows: Rows, *, hook_point: str | None = None) -> AnomalyScores:
        """Error and surprise of every row.

        raises: ValueError for rows of another width or hook point, none at all, or nan and infinity in them
        """
        parts = [
            ((acts - recons).norm(dim=1).cpu().double(), self.surprise(acts, code))
            for acts, recons, code in _coded(self.autoencoder, rows, hook_point)
        ]
        error, surprise = (torch.cat([part[i] for part in parts]) for i in range(2))
        error_z = (error - self.error_center) / self.error_scale
        surprise_z = (surprise - self.surprise_center) / self.surprise_scale
        return AnomalyScores(error, surprise, error_z, surprise_z)


@takes_folders
@names_misfits
def fit_anomaly(autoencoder: Coder, normal: Rows, *, hook_point: str | None = None) -> AnomalyDetector:
    """Learn what is normal, in two passes: of the codes, then the spread of both scores.

    The rows' own scores are a little low, since what is learnt is theirs: compare odd rows with others, as in
    `auroc(detector.scores(held_out).combined, detector.scores(odd).combined)`.

    autoencoder: an SAE or a relative of it, or its folder
    raises: ValueError as `AnomalyDetector.scores`, and for fewer than 2 rows
    """
    learnt = learnt_surprise(autoencoder, (code for _, _, code in _coded(autoencoder, normal, hook_point)))
    found = AnomalyDetector(autoencoder, learnt).scores(normal, hook_point=hook_point)
    if (n_rows := len(found.error)) < 2:
        raise ValueError(f"fit_anomaly expected at least 2 normal rows, got {n_rows}")
    spreads = *_spread(found.error), *_spread(found.surprise)
    return AnomalyDetector(autoencoder, learnt, n_rows, *spreads)


def _spread(values: Tensor) -> tuple[float, float]:
    """Median, and 1.4826 · median distance from it: in a normal distribution, its standard deviation."""
    center = values.median()
    scale = _MAD_TO_STD * (values - center).abs().median()
    return float(center), float(torch.maximum(scale, _LEAST_SCALE * center.abs().clamp_min(1)))


@torch.no_grad()
def _coded(autoencoder: Coder, rows: Rows, hook_point: str | None) -> Iterator[tuple[Tensor, Tensor, Code]]:
    """(acts, recons, code) of every block of rows, on the autoencoder's device."""
    n_rows = 0
    for acts in _blocks(autoencoder, rows, hook_point):
        yield acts, *autoencoder(acts)
        n_rows += len(acts)
    if not n_rows:
        raise ValueError("anomaly scores expected rows, got none")


def _blocks(autoencoder: Coder, rows: Rows, hook_point: str | None) -> Iterator[Tensor]:
    """float[n d_model] in the autoencoder's dtype, on its device."""
    if isinstance(rows, ActivationStore):
        point = fits(autoencoder, rows, hook_point)
        yield from (block.acts for block in blocks(autoencoder, rows, point))
        return
    if hook_point is not None:
        raise ValueError(
            f"hook_point= chooses among a store's, got {hook_point!r} with a {type(rows).__name__}"
        )
    given = torch.as_tensor(rows)
    if not isinstance(autoencoder, SparseAutoencoder) and tuple(given.shape[1:]) == autoencoder.shape:
        given = given.flatten(1)
    if given.ndim != 2:
        raise ValueError(
            f"anomaly scores expected rows [n d_model={autoencoder.d_model}], or a store, got "
            f"{list(given.shape)}"
        )
    for start in range(0, len(given), BLOCK_ROWS):
        acts = given[start : start + BLOCK_ROWS].detach().to(autoencoder.device, autoencoder.dtype)
        if not acts.isfinite().all():
            row = start + int((~acts.isfinite().all(1)).nonzero()[0])
            raise ValueError(f"anomaly scores expected finite rows, got nan or infinity in row {row}")
        yield acts
