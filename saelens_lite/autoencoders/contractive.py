"""Codes that change little with the row."""

from __future__ import annotations

import torch
from torch import Tensor

from .network import Network
from .penalties import contraction, estimated_contraction


class Contractive(Network):
    """A network whose code is held steady.

        loss = error(x, y) + contractive_coeff · ‖∂h/∂x‖²_F + weight_decay · Σ_l ‖W_l‖²

    The penalty is exact for one layer; with hidden layers it is Hutchinson's estimate, one draw a row.
    source: Rifai et al. 2011, "Contractive Auto-Encoders: Explicit Invariance During Feature Extraction"
    """

    def penalty(self, x: Tensor, codes: Tensor, generator: torch.Generator | None) -> Tensor:
        if len(self.encoder) == 1:
            of_rows = contraction(codes, self.encoder[0].weight, self.config.activation)
        else:
            of_rows = estimated_contraction(self.code, x, generator)
        return self.config.contractive_coeff * of_rows.mean()


KIND = Contractive
