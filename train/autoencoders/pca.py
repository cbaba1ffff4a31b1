"""Principal components from one pass: mean and covariance summed in float64, exact for any batches."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from torch import Tensor

from saelens_lite.autoencoders.autoencoder import Autoencoder, Loss
from saelens_lite.autoencoders.pca import PCA
from saelens_lite.store.covariance import Covariance

from .learner import AutoencoderLearner


class PCALearner(AutoencoderLearner):
    """Sums of the rows in place of gradients; the components are solved for when they are asked for."""

    autoencoder: PCA

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self._fitted = -1

    def _optimiser(self) -> Any:
        self.sums = Covariance(self.rows.d_model)

    def update(self, batch: Tensor) -> Loss:
        self.sums.update(batch)
        self.steps_done += 1
        variance = self.sums.scatter.trace() / max(1, self.sums.n - 1)
        return Loss(variance, variance, variance.new_zeros(()))

    def numbers(self, stats: Loss, tokens: int) -> dict[str, float | None]:
        self.finite.check_loss(float(stats.total))
        return {"variance": float(stats.total)}

    def weights(self) -> Iterable[Tensor]:
        return [self.sums.scatter]

    def score(self) -> dict[str, float | None]:
        self._fit()
        return super().score()

    def state(self) -> dict[str, Tensor | int]:
        return {"steps_done": self.steps_done, **vars(self.sums)}

    def save(self, *args: Any) -> Autoencoder:
        self._fit()
        return super().save(*args)

    def _fit(self) -> None:
        if self._fitted != self.steps_done:
            self.check()
            self.autoencoder.fit_(self.sums.mean, self.sums.covariance)
            self._fitted = self.steps_done

    def _load_state(self, state: Mapping[str, Any]) -> None:
        self.steps_done, self.sums.n = int(state["steps_done"]), int(state["n"])
        self.sums.mean, self.sums.scatter = state["mean"].clone(), state["scatter"].clone()
