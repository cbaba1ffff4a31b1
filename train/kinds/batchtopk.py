"""BatchTopK: the k · B largest pre-activations of a batch, whichever tokens they belong to.

Bussmann et al. 2024, arXiv:2412.06410. A token alone has no batch to compete in, so what is saved is a
JumpReLU SAE with one threshold for all latents. The paper takes the mean, over training batches, of the least
value selected. Here a running mean of it serves evaluations on the way, and the threshold that is saved lets
k latents a token through on held-out rows.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from saelens_lite.kernels import dispatch as kernels
from saelens_lite.sae.autoencoder import SparseAutoencoder

from ..comm import ALONE, Alone, Ragged
from ..config import TrainConfig
from .topk import TopK
from .workspace import Pairs, ProductChunks

_THRESHOLD_RATE = 0.1
"""Weight of the newest batch in the running threshold. The least of k · B values varies little between
batches, and weights move fast in a short run."""


class BatchTopK(TopK):
    """TopK's step, with any number of pairs a token."""

    sae_kind = "jumprelu"
    fields = TopK.fields - {"multi_topk_coeff"}
    calibrates = True
    encoder_scale = 0.1
    """A small encoder turns faster under Adam, and what it learns is not random directions with corrections:
    in short runs fvu is 4 to 10 % lower than with 1, and 2 % of the latents stay dead instead of none
    (tests/bench/RESULTS.md)."""

    def __init__(self, sae: SparseAutoencoder, config: TrainConfig, comm: Alone = ALONE) -> None:
        super().__init__(sae, config, comm)
        self.threshold = torch.full((), math.nan, dtype=sae.dtype, device=sae.device)

    def parameters(self) -> dict[str, torch.nn.Parameter]:
        """All but the threshold, which has no gradient."""
        return {name: p for name, p in super().parameters().items() if name != "threshold"}

    def select(self, inputs: Tensor) -> Pairs:
        """The k · B largest positive pre-activations of the batch, as far as they are this process's.

        The running threshold follows the least of them all.
        """
        n_pairs, workspace = self.k * len(inputs) * self.comm.n_parts, self.workspace.products
        found, of_all = self.comm.largest_of_batch(lambda n: self._largest(inputs, n, workspace), n_pairs)
        least = just_below(of_all)
        running = self.threshold.lerp(least, _THRESHOLD_RATE)
        self.threshold = torch.where(self.threshold.isnan(), least, running)
        self.sae.threshold.copy_(self.threshold)
        return Pairs(*found)

    @torch.no_grad()
    def calibrate(self, acts: Tensor) -> None:
        inputs, n_pairs = self.centred(acts), self.config.k * len(acts)
        _, of_all = self.comm.largest_of_batch(lambda n: self._largest(inputs, n), n_pairs, same_rows=True)
        self.sae.threshold.copy_(just_below(of_all))

    def _largest(self, inputs: Tensor, n_pairs: int, workspace: Tensor | None = None) -> Ragged:
        sae = self.sae
        # A tensor: whoever needs the number on the host has to wait for it.
        guess = 0.9 * self.threshold.nan_to_num(nan=0.0)
        screened = kernels.screened_batch_topk(inputs, sae.W_enc.T, sae.b_enc, n_pairs, guess)
        if screened is not None:
            return screened
        return kernels.select_batch_topk(ProductChunks(sae, inputs, workspace), sae.b_enc, n_pairs, guess)

    def state(self) -> dict[str, Tensor]:
        return {"threshold": self.threshold}

    def load_state(self, state: dict[str, Tensor]) -> None:
        self.threshold = state["threshold"]


def just_below(values: Tensor) -> Tensor:
    """The largest number below all positive values, float[""], as JumpReLU lets through what exceeds it."""
    if not values.numel():
        return values.new_zeros(())
    least = torch.where(values > 0, values, torch.inf).min()
    return torch.where(least.isfinite(), torch.nextafter(least, torch.zeros_like(least)), 0.0)


KIND = BatchTopK
