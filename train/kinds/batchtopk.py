"""BatchTopK: the k · B largest pre-activations of a batch, whichever tokens they belong to.

Bussmann et al. 2024, arXiv:2412.06410. A token alone has no batch to compete in, so what is saved is a
JumpReLU SAE with one threshold for all latents, where k latents a token are above it. The paper takes the
mean, over training batches, of the least value selected. Here that is a running estimate for evaluation on
the way, and the threshold saved is the one that lets exactly k latents a token through on held-out rows.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from saelens_lite import distributed
from saelens_lite.kernels import dispatch as kernels
from saelens_lite.sae.autoencoder import SparseAutoencoder

from ..config import TrainConfig
from .topk import TopK
from .workspace import Pairs, ProductChunks

_THRESHOLD_RATE = 0.1
"""Weight of the newest batch in the running threshold. The least of k · B values varies little between
batches, and weights move fast in a short run."""


class BatchTopK(TopK):
    """TopK's step over pairs of which a token may have any number."""

    sae_kind = "jumprelu"
    calibrates = True
    encoder_scale = 0.1
    """A small encoder turns faster under Adam, and what it learns is not random directions with corrections:
    in short runs fvu is 4 to 10 % lower than with 1, and 2 % of the latents stay dead instead of none
    (tests/bench/RESULTS.md)."""

    def __init__(self, sae: SparseAutoencoder, config: TrainConfig) -> None:
        super().__init__(sae, config)
        self.threshold = torch.full((), math.nan, dtype=sae.dtype, device=sae.device)

    def parameters(self) -> dict[str, torch.nn.Parameter]:
        """All but the threshold, which has no gradient."""
        return {name: p for name, p in super().parameters().items() if name != "threshold"}

    def select(self, inputs: Tensor) -> Pairs:
        """The k · B largest positive pre-activations of the batch; the running threshold follows the least of
        them.

        Of several processes each gets those in its rows of the batch, and of its latents.
        """
        n_pairs = self.k * len(inputs) * distributed.world_size("data")
        pairs, least = self._largest_of_all(inputs, n_pairs, self.workspace.products)
        self.threshold = torch.where(
            self.threshold.isnan(), least, self.threshold.lerp(least, _THRESHOLD_RATE)
        )
        self.sae.threshold.copy_(self.threshold)
        return pairs

    @torch.no_grad()
    def calibrate(self, acts: Tensor) -> None:
        """The SAE's threshold becomes the one above which these rows have k latents each, on average."""
        _, least = self._largest_of_all(acts - self.sae.b_dec, self.config.k * len(acts), axis="latents")
        self.sae.threshold.copy_(least)

    def _largest_of_all(
        self,
        inputs: Tensor,
        n_pairs: int,
        workspace: Tensor | None = None,
        axis: distributed.Axis | None = None,
    ) -> tuple[Pairs, Tensor]:
        """Of the n_pairs largest positive pre-activations in all processes, those in this one; and just below
        the least.

        Every process shows the others its largest, a few more than its part would be. Where all that one
        showed are among
        the largest of all it may have further ones: then all show twice as many, up to n_pairs.
        """
        n_processes = distributed.world_size(axis)
        if n_processes == 1:
            pairs = self._largest(inputs, n_pairs, workspace)
            return pairs, _just_below(pairs.values)
        shown = -(-n_pairs * 9 // (8 * n_processes))
        while True:
            shown = min(shown, n_pairs)
            values, indices, offsets = self._largest(inputs, shown, workspace)
            every = distributed.gathered(torch.nn.functional.pad(values, (0, shown - len(values))), axis)
            nth = every.view(-1).kthvalue(every.numel() - n_pairs + 1).values
            least_shown = every.amin(1)
            if shown == n_pairs or not bool(((least_shown >= nth) & (least_shown > 0)).any()):
                break
            shown *= 2
        above, equal = every > nth, (every == nth) & (every > 0)
        places = equal.view(-1).cumsum(0).view_as(equal)  # of equal ones those of the first process
        kept = above | (equal & (places <= n_pairs - above.sum()))
        ours = kept[distributed.rank(axis), : len(values)]
        offsets = torch.nn.functional.pad(ours.cumsum(0), (1, 0))[offsets]
        return Pairs(values[ours], indices[ours], offsets), _just_below(every[kept])

    def _largest(self, inputs: Tensor, n_pairs: int, workspace: Tensor | None = None) -> Pairs:
        """The n_pairs largest positive pre-activations of these rows."""
        sae = self.sae
        guess = 0.9 * self.threshold.nan_to_num(
            nan=0.0
        )  # a tensor: whoever needs the number on the host has to wait for it
        if (
            screened := kernels.screened_batch_topk(inputs, sae.W_enc.T, sae.b_enc, n_pairs, guess)
        ) is not None:
            return Pairs(*screened)
        return Pairs(
            *kernels.select_batch_topk(ProductChunks(sae, inputs, workspace), sae.b_enc, n_pairs, guess)
        )

    def state(self) -> dict[str, Tensor]:
        return {"threshold": self.threshold}

    def load_state(self, state: dict[str, Tensor]) -> None:
        self.threshold = state["threshold"]


def _just_below(values: Tensor) -> Tensor:
    """The largest number that all the positive ones of these values exceed, as JumpReLU asks for; 0 for none;
    float[""]."""
    if not values.numel():
        return values.new_zeros(())
    least = torch.where(values > 0, values, torch.inf).min()
    return torch.where(least.isfinite(), torch.nextafter(least, torch.zeros_like(least)), 0.0)


KIND = BatchTopK
