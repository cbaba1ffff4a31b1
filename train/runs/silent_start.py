"""A warning where most latents are silent from the first step, as b_dec lies far from the mean of rows."""

from __future__ import annotations

import logging

import torch
from torch import Tensor

from saelens_lite.sae.autoencoder import SparseAutoencoder

log = logging.getLogger(__name__)

ROWS = 10_000
_FAR, _MOST = 2.0, 0.5


@torch.no_grad()
def warn_of_silence(sae: SparseAutoencoder, rows: Tensor) -> None:
    """Warn where ‖μ − b_dec‖ / ‖σ‖ is above 2 and more than half of the latents fire on none of the rows.

    rows: float32[n d_model], in the scale of the SAE
    source: arXiv:2605.31518
    """
    mean, centre = rows.mean(0), sae.b_dec.cpu()
    spread = (rows - mean).square().sum(1).mean().sqrt()
    away = float((mean - centre).norm() / spread)
    if not away > _FAR:
        return
    fired = torch.zeros(sae.d_sae, dtype=torch.bool)
    for part in rows.split(1024):
        latents = sae.encode_normalized(sae.normalize(part.to(sae.device))[0])
        fired[latents.indices[latents.values > 0].cpu()] = True
    silent = 1 - fired.double().mean().item()
    if silent > _MOST:
        log.warning(
            "%.0f%% of the latents fire on none of %d rows before the first step: the mean of rows is %.1f "
            "times their spread away from b_dec. Start from other weights, with a b_dec near the mean",
            100 * silent,
            len(rows),
            away,
        )
