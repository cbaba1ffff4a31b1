"""Principal components from one pass: mean and covariance summed in float64, exact for any batches."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from saelens_lite.autoencoders.autoencoder import Autoencoder, Loss
from saelens_lite.autoencoders.pca import PCA
from saelens_lite.device import in_float64

from .learner import AutoencoderLearner


class PCALearner(AutoencoderLearner):
    """Sums of the rows in place of gradients; the components are solved for when they are asked for.

    The scatter Σ (x − x̄)(x − x̄)ᵀ is taken about the running mean and merged exactly.
    source: Chan, Golub & LeVeque 1983, "Algorithms for computing the sample variance"
    """

    autoencoder: PCA

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self._fitted = -1

    def _optimiser(self) -> Any:
        d = self.rows.d_model
        self.n, self.mean = 0, torch.zeros(d, dtype=torch.float64)
        self.scatter = torch.zeros(d, d, dtype=torch.float64)

    def update(self, batch: Tensor) -> Loss:
        x = in_float64(batch)
        n, mean = len(x), x.mean(0)
        centred = x - mean
        shift, whole = mean.cpu() - self.mean, self.n + n
        self.scatter += (centred.T @ centred).cpu() + torch.outer(shift, shift) * (self.n * n / whole)
        self.mean += shift * (n / whole)
        self.n, self.steps_done = whole, self.steps_done + 1
        variance = self.scatter.trace() / max(1, whole - 1)
        return Loss(variance, variance, variance.new_zeros(()))

    def numbers(self, stats: Loss, tokens: int) -> dict[str, float | None]:
        self.finite.check_loss(float(stats.total))
        return {"variance": float(stats.total)}

    def weights(self) -> Iterable[Tensor]:
        return [self.scatter]

    def score(self) -> dict[str, float | None]:
        self._fit()
        return super().score()

    def state(self) -> dict[str, Tensor | int]:
        return {"steps_done": self.steps_done, "n": self.n, "mean": self.mean, "scatter": self.scatter}

    def save(self, *args: Any) -> Autoencoder:
        self._fit()
        return super().save(*args)

    def _fit(self) -> None:
        if self._fitted != self.steps_done:
            self.check()
            self.autoencoder.fit_(self.mean, self.scatter / max(1, self.n - 1))
            self._fitted = self.steps_done

    def _load_state(self, state: Mapping[str, Any]) -> None:
        self.n, self.steps_done = int(state["n"]), int(state["steps_done"])
        self.mean, self.scatter = state["mean"].clone(), state["scatter"].clone()
