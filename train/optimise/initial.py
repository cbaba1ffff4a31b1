"""What training starts from: decoder rows, the encoder as their transpose, the bias at the geometric
median."""

from __future__ import annotations

import dataclasses
import logging
from itertools import pairwise

import torch
from torch import Tensor

from saelens_lite.sae.autoencoder import SparseAutoencoder
from saelens_lite.sae.config import SAEConfig
from saelens_lite.sae.nonlinearity import geometric_median

from .. import latent_shards
from .fold import fold_decoder_norms_, fold_scale

_PIECE_ROWS = 4096

log = logging.getLogger(__name__)


def initial_sae(
    config: SAEConfig, sample: Tensor, seed: int, encoder_scale: float = 1.0
) -> SparseAutoencoder:
    """A fresh SAE for rows such as `sample`; where latents are divided, this process's shard of it.

    sample: float[n d_model], rows in the scale of training
    encoder_scale: of W_enc; 1 where few latents are on at a time, L1_ENCODER_SCALE under an L1 penalty
    W_dec rows are random unit vectors, W_enc = encoder_scale · W_decᵀ (Gao et al. 2024, appendix A.1: few
    latents start dead), b_enc is 0 and b_dec the geometric median of the sample.
    """
    sae = SparseAutoencoder(latent_shards.shard_config(config))
    with torch.no_grad():
        sae.W_dec.copy_(
            random_rows(config.d_sae, config.d_model, seed, latent_shards.first_latent(sae), sae.d_sae)
        )
        sae.W_dec.copy_(torch.nn.functional.normalize(sae.W_dec, dim=1))
        sae.W_enc.copy_(encoder_scale * sae.W_dec.T)
        sae.b_dec.copy_(geometric_median(sample))
    return sae


def sae_to_finetune(
    config: SAEConfig, folder: str, scale: float, unit_decoder: bool = True
) -> SparseAutoencoder:
    """The SAE of a folder, ours or SAELens', as training of what `config` says goes on with it: in the scale
    of training.

    config: of the SAE to be trained; d_sae is the folder's, whatever it is there
    scale: of the inputs in this training
    unit_decoder: rows of W_dec come to norm 1, and what they had goes to the latents
    raises: ValueError for an SAE of another width or kind, or that normalises its inputs row by row
    """
    sae = SparseAutoencoder.load(folder, dtype=config.dtype)
    for name in ("d_model", "kind", "normalize_activations"):
        expected, got = getattr(config, name), getattr(sae.config, name)
        if expected != got:
            hint = {
                "d_model": "it is of another model or hook point",
                "kind": f"an SAE saved as {got} goes on as {' or '.join(_TRAINED_AS[sae.kind])}",
                "normalize_activations": "training scales all rows by one number",
            }[name]
            raise ValueError(
                f"init_from={folder} expected an SAE of {name} {expected!r}, got {got!r}: {hint}"
            )
    if not sae.config.apply_b_dec_to_input:
        _subtract_b_dec_from_input_(sae)
    sae.config = dataclasses.replace(config, d_sae=sae.d_sae)
    sae = latent_shards.shard(fold_scale(sae, 1 / scale))
    return fold_decoder_norms_(sae) if unit_decoder else sae


@torch.no_grad()
def _subtract_b_dec_from_input_(sae: SparseAutoencoder) -> None:
    """Biases that make an SAE which encodes its input as it is compute the same on input − b_dec."""
    shift = sae.b_dec @ sae.W_enc
    if sae.kind == "gated":
        sae.b_gate += shift
        sae.b_mag += shift * sae.r_mag.exp()
    else:
        sae.b_enc += shift


_TRAINED_AS = {
    "topk": ("topk",),
    "relu": ("relu",),
    "gated": ("gated",),
    "jumprelu": ("jumprelu", "batchtopk", "matryoshka"),
}
"""Kinds of TrainConfig, by SAEConfig.kind."""


def random_rows(n_rows: int, d_model: int, seed: int, first: int, n: int) -> Tensor:
    """Rows first … first + n − 1 of torch.randn(n_rows, d_model) of that seed, without holding many of the
    others."""
    generator, kept = torch.Generator().manual_seed(seed), []
    # torch draws normal numbers by sixteens, and the last ones anew where sixteen does not divide them: so
    # pieces of a multiple of 16 rows, the last one not short, are what one piece would be.
    starts = range(0, max(1, n_rows // _PIECE_ROWS) * _PIECE_ROWS, _PIECE_ROWS)
    for start, end in pairwise([*starts, n_rows]):
        rows = torch.randn(end - start, d_model, generator=generator)
        kept.append(rows[max(0, first - start) : max(0, first + n - start)].clone())
    return torch.cat(kept)
