"""The parts that an SAE sees in the stream, or a transcoder at its target, and what each contributes along
a vector.

    acts = Σ_i latent_acts_i · scale · W_dec[i] + constant + error

scale is the row's own where the SAE normalises at run time, else 1; constant is b_dec in the scale of acts,
with the mean that a layer_norm took away, and with what a skip-transcoder's skip adds. What is linear in acts
divides among these parts.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from saelens_lite.sae.autoencoder import SparseAutoencoder
from saelens_lite.sae.latents import SparseLatents

_CHUNK_VALUES = 2**22


class Contributions(NamedTuple):
    """What each part of acts adds to acts · vector, row by row: float32[...], of latents in place of
    activations."""

    latents: SparseLatents
    b_dec: Tensor
    error: Tensor


class StreamParts:
    """Rows of the stream, float[... d_out], taken apart by an SAE; without gradients.

    read: float[... d_model], what a transcoder reads; None for an SAE, which reads `acts`
    """

    def __init__(self, sae: SparseAutoencoder, acts: Tensor, read: Tensor | None = None) -> None:
        with torch.no_grad():
            acts = acts.detach().to(sae.device)
            read = acts if read is None else read.detach().to(sae.device)
            recons, self.latents = sae(read)
            _, self._scale, shift = sae.normalize(read)
            constant = sae.b_dec.detach() if self._scale is None else sae.b_dec.detach() * self._scale
            if sae.config.target is not None and sae.config.target.skip:
                constant = constant + read.to(sae.dtype) @ sae.W_skip.T
            self._constant = (constant if shift is None else constant + shift).float()
            self._error = acts.float() - recons.float()
        self._sae = sae

    def along(self, vectors: Tensor) -> Contributions:
        """Contributions to (acts · vectors).sum(-1); vectors: float[... d_out], one for each row."""
        with torch.no_grad():
            vectors = vectors.to(self._sae.device, torch.float32)
            flat = vectors.reshape(-1, self._sae.config.d_out)
            # a reconstruction adds scale · value · W_dec[i] to the row
            read = flat if self._scale is None else flat * self._scale.reshape(-1, 1).float()
            pairs = zip(
                *(part.split(max(1, _CHUNK_VALUES // flat.shape[1])) for part in (
                    self.latents.row_ids(), self.latents.indices, self.latents.values
                ))
            )  # fmt: skip
            values = [
                value.float() * (self._sae.W_dec[i].float() * read[row]).sum(-1) for row, i, value in pairs
            ]
            of_latents = torch.cat(values) if values else self.latents.values.float()
            b_dec, error = ((part * vectors).sum(-1) for part in (self._constant, self._error))
            return Contributions(self.latents.with_values(of_latents), b_dec, error)
