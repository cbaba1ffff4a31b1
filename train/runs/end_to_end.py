"""TODO clause of train/runs/end_to_end.py."""

from __future__ import annotations

from torch import nn

from saelens_lite.sae.autoencoder import SparseAutoencoder

from ..config import TrainConfig
from ..kinds.end_to_end import EndToEnd
from ..kinds.gradients import StepStats
from ..kinds.kind import kind_class
from ..optimise.trainer import Trainer
from ..rows.store_contexts import Contexts, StoreContexts
from .run import Run


class EndToEndRun(Run):
    """A run whose batches are contexts, and whose gradients come through the model."""

    rows: StoreContexts

    def __init__(self, rows: StoreContexts, config: TrainConfig, model: nn.Module) -> None:
        rows.check_model(model)
        super().__init__(rows, config, model)

    def _trainer(self, sae: SparseAutoencoder) -> Trainer:
        assert self._model is not None
        kind = kind_class(self.config.kind)(sae, self.config)
        return Trainer(
            sae, self.config, self.n_steps, EndToEnd(kind, self._model, self.rows.hook_point, self.rows.scale)
        )

    def step(self, batch: Contexts) -> StepStats:
        """One optimiser step."""
        return self.trainer.update(batch)
