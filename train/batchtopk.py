"""BatchTopK: the k · B largest pre-activations of a batch, whichever tokens they belong to.

Bussmann et al. 2024, arXiv:2412.06410. A token alone has no batch to compete in, so what is saved is a JumpReLU SAE with one
threshold for all latents, where k latents a token are above it. The paper takes the mean, over training batches, of the
least value selected. Here that is a running estimate for evaluation on the way, and the threshold saved is the one that lets
exactly k latents a token through on held-out rows.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from saelens_lite import kernels
from saelens_lite.sae import SparseAutoencoder

from .config import TrainConfig
from .step import Pairs, ProductChunks
from .topk import TopK

_THRESHOLD_RATE = 0.1
"""Weight of the newest batch in the running threshold. The least of k · B values varies little between batches, and weights
move fast in a short run."""


class BatchTopK(TopK):
    """TopK's step over pairs of which a token may have any number."""

    sae_kind = "jumprelu"
    calibrates = True

    def __init__(self, sae: SparseAutoencoder, config: TrainConfig) -> None:
        super().__init__(sae, config)
        self.threshold = torch.full((), math.nan, dtype=sae.dtype, device=sae.device)

    def parameters(self) -> dict[str, torch.nn.Parameter]:
        """All but the threshold, which has no gradient."""
        return {name: p for name, p in super().parameters().items() if name != "threshold"}

    def select(self, inputs: Tensor) -> Pairs:
        """The k · B largest positive pre-activations of the batch; the running threshold follows the least of them."""
        pairs = self._largest(inputs, self.workspace.products)
        least = _just_below(pairs.values)
        self.threshold = torch.where(self.threshold.isnan(), least, self.threshold.lerp(least, _THRESHOLD_RATE))
        self.sae.threshold.copy_(self.threshold)
        return pairs

    @torch.no_grad()
    def calibrate(self, acts: Tensor) -> None:
        """The SAE's threshold becomes the one above which these rows have k latents each, on average."""
        self.sae.threshold.copy_(_just_below(self._largest(acts - self.sae.b_dec).values))

    def _largest(self, inputs: Tensor, workspace: Tensor | None = None) -> Pairs:
        sae, n_pairs = self.sae, self.config.k * len(inputs)
        guess = 0.9 * float(self.threshold) if self.threshold.isfinite() else 0.0
        if (screened := kernels.screened_batch_topk(inputs, sae.W_enc.T, sae.b_enc, n_pairs, guess)) is not None:
            return Pairs(*screened)
        return Pairs(*kernels.select_batch_topk(ProductChunks(sae, inputs, workspace), sae.b_enc, n_pairs, guess))

    def state(self) -> dict[str, Tensor]:
        return {"threshold": self.threshold}

    def load_state(self, state: dict[str, Tensor]) -> None:
        self.threshold = state["threshold"]


def _just_below(values: Tensor) -> Tensor:
    """The largest number that all of these positive values exceed, as JumpReLU asks for; 0 for none; float[""]."""
    if not values.numel():
        return values.new_zeros(())
    least = values.min()
    return torch.nextafter(least, torch.zeros_like(least))


KIND = BatchTopK
