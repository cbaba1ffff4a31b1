"""The mean, largest activation and firing rate of every latent: the units in which edits are measured."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import torch
from torch import Tensor

from saelens_lite.arguments import takes_folders
from saelens_lite.misfits import names_misfits
from saelens_lite.sae.autoencoder import SparseAutoencoder
from saelens_lite.store.reader import ActivationStore

from .compatibility import fits


class LatentStats(NamedTuple):
    mean: Tensor
    """float32[d_sae], over all tokens, silent ones included"""
    max: Tensor
    """float32[d_sae], 0 for a latent that never fired"""
    n_tokens: int
    rate: Tensor
    """float64[d_sae], share of tokens on which each latent fires"""


@takes_folders
@names_misfits
def latent_stats(
    sae: SparseAutoencoder, batches: ActivationStore | Iterable[Tensor], *, hook_point: str | None = None
) -> LatentStats:
    """Mean, largest activation and firing rate of every latent over a store or batches float[... d_model].

    raises: ValueError for no tokens, activations that are not finite, or a store that is not the SAE's
    """
    if isinstance(batches, ActivationStore):
        store, point = batches, fits(sae, batches, hook_point)
        batches = (store.acts(shard, point) for shard in range(store.n_shards))
    total = torch.zeros(sae.d_sae, dtype=torch.float64)  # on the CPU: mps has no float64
    fired = torch.zeros(sae.d_sae, dtype=torch.int64)
    largest = torch.zeros(sae.d_sae, dtype=torch.float32, device=sae.device)
    n_tokens = 0
    with torch.no_grad():
        for acts in batches:
            if not (finite := acts.isfinite().all(-1).flatten()).all():
                row = n_tokens + int((~finite).nonzero()[0])
                raise ValueError(
                    f"latent_stats expected finite activations, got nan or infinity at token {row}"
                )
            latents = sae.encode(acts.to(sae.device))
            total.index_add_(0, latents.indices.cpu(), latents.values.cpu().double())
            fired += torch.bincount(latents.indices[latents.values > 0].cpu(), minlength=sae.d_sae)
            largest.scatter_reduce_(0, latents.indices, latents.values.float(), "amax")
            n_tokens += latents.batch
    if not n_tokens:
        raise ValueError("latent_stats expected activations, got no tokens")
    mean = (total / n_tokens).float().to(sae.device)
    return LatentStats(mean, largest, n_tokens, fired.double() / n_tokens)
