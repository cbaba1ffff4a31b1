"""Crosscoders: one code for rows side by side, with a decoder for each side."""

from __future__ import annotations

import dataclasses
from itertools import accumulate

import torch
from torch import Tensor

from saelens_lite.misfits import names_misfits
from saelens_lite.sae.autoencoder import SparseAutoencoder
from saelens_lite.sae.config import SAEConfig, Side

EXCLUSIVE = 0.9
"""`lean` beyond which, or below 1 minus which, a latent is called exclusive: the other side's row has at most
a fifth of the norm. Minder et al. 2025, arXiv:2504.02922."""


class Crosscoder(SparseAutoencoder):
    """An SAE of rows [x_0, x_1, …] of several models, or of several places of one.

        pre_acts    = Σ_m (x_m − b_dec,m) @ W_enc,m + b_enc
        latent_acts = JumpReLU | TopK | ReLU (pre_acts)
        recons_m    = latent_acts @ W_dec,m + b_dec,m

    Encoding, decoding, scores and the feature index are those of an SAE of d_model = Σ d_m on rows side by
    side, which `sl.store.paired_store` gives. Weights are in the units of each side.

    source: Lindsey et al. 2024, "Sparse Crosscoders for Cross-Layer Features and Model Diffing"
    """

    @names_misfits
    def __init__(self, config: SAEConfig) -> None:
        self.check_opens(config, "Crosscoder")
        super().__init__(config)

    @classmethod
    @names_misfits
    def check_opens(cls, config: SAEConfig, name: str) -> None:
        """raises: ValueError for a transcoder, and for an SAE, which has no sides"""
        if config.target is not None:
            super().check_opens(config, name)
        if len(config.sides) < 2:
            raise ValueError(
                f"{name}: expected a crosscoder, got an SAE of d_model={config.d_model}: "
                "sl.SparseAutoencoder.load opens it"
            )

    @property
    def sides(self) -> tuple[Side, ...]:
        return self.config.sides

    @names_misfits
    def block(self, side: int) -> slice:
        """Which of the d_model columns a side has. raises: ValueError for a side that there is not"""
        if not 0 <= side < len(self.sides):
            raise ValueError(f"side expected 0 to {len(self.sides) - 1}, got {side}")
        ends = [0, *accumulate(one.d_model for one in self.sides)]
        return slice(ends[side], ends[side + 1])

    @names_misfits
    def decoder(self, side: int) -> Tensor:
        """A side's rows of W_dec, float[d_sae d_m], in its own units; a view."""
        return self.W_dec[:, self.block(side)]

    @torch.no_grad()
    def decoder_norms(self) -> Tensor:
        """Norms of latents' rows, float[d_sae n_sides], times the scale of the side: so sides compare."""
        norms = [self.decoder(i).norm(dim=1) * side.scale for i, side in enumerate(self.sides)]
        return torch.stack(norms, dim=1)

    @names_misfits
    def lean(self, side: int = 1, against: int = 0) -> Tensor:
        """How far latents lean to one of two sides, float[d_sae]: ½ ((n − n') / max(n, n') + 1) of the norms.

        0: of the other side alone; ½: of both alike; 1: of this side alone; nan: a latent with no row
        source: Minder et al. 2025, arXiv:2504.02922, equation 3
        """
        norms = self.decoder_norms()
        mine, other = norms[:, side], norms[:, against]
        return ((mine - other) / torch.maximum(mine, other) + 1) / 2

    @classmethod
    @torch.no_grad()
    @names_misfits
    def of_scaled(cls, sae: SparseAutoencoder, sides: tuple[Side, ...]) -> Crosscoder:
        """The crosscoder in the units of each side, of an SAE on the sides' rows times their scales."""
        found = cls(dataclasses.replace(sae.config, sides=sides)).to(sae.device)
        scale = torch.cat([sae.b_dec.new_full((side.d_model,), side.scale) for side in sides])
        for name, parameter in sae.named_parameters():
            found.get_parameter(name).copy_(parameter)
        found.W_enc *= scale[:, None]
        found.W_dec /= scale
        found.b_dec /= scale
        return found
