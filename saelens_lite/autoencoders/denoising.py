"""Rows restored from spoilt ones."""

from __future__ import annotations

import torch
from torch import Tensor

from .network import Network


class Denoising(Network):
    """The encoder sees a spoilt row x̃, the error is of the row without it.

        gaussian  x̃ = x + noise_level · ε,  ε ~ N(0, I)
        masking   x̃ = x ⊙ m,  m_i = 0 with probability noise_level
        loss = error(x, y(x̃)) + weight_decay · Σ_l ‖W_l‖²

    In the scale of training, where a masked coordinate is 0. `denoise` takes rows that are spoilt already.
    source: Vincent et al. 2008, "Extracting and Composing Robust Features with Denoising Autoencoders"
    """

    def spoilt(self, x: Tensor, generator: torch.Generator | None) -> Tensor:
        if self.config.noise == "gaussian":
            return x + self.config.noise_level * torch.empty_like(x).normal_(generator=generator)
        kept = torch.empty_like(x).uniform_(generator=generator) >= self.config.noise_level
        return x * kept


KIND = Denoising
