"""What training starts from: a fresh SAE, or that of a folder."""

from __future__ import annotations

import dataclasses
import logging
from itertools import pairwise

import torch
from torch import Tensor

from saelens_lite.sae.autoencoder import SparseAutoencoder
from saelens_lite.sae.config import SAEConfig
from saelens_lite.sae.nonlinearity import geometric_median
from saelens_lite.sae.transcoder import Transcoder

from ..comm import ALONE, Alone
from ..random_streams import READING, generator
from .fold import fold_decoder_norms_, fold_scale

log = logging.getLogger(__name__)

_PIECE_ROWS = 4096

_TRAINED_AS = {
    "topk": ("topk",),
    "relu": ("relu",),
    "gated": ("gated",),
    "jumprelu": ("jumprelu", "batchtopk", "matryoshka"),
}
"""Kinds of TrainConfig, by SAEConfig.kind."""


def initial_sae(
    config: SAEConfig, sample: Tensor, seed: int, encoder_scale: float = 1.0, comm: Alone = ALONE
) -> SparseAutoencoder:
    """A fresh SAE for rows such as `sample`; where latents are divided, this process's shard of it.

    Rows of W_dec are random unit vectors, W_enc = encoder_scale · W_decᵀ (Gao et al. 2024, appendix A.1: few
    latents start dead), b_enc is 0 and b_dec the geometric median of the sample.
    sample: float[n d_model], rows in the scale of training
    encoder_scale: 1 where few latents are on at a time, 0.1 under an L1 penalty
    """
    sae = SparseAutoencoder(comm.shard_config(config))
    with torch.no_grad():
        first = comm.first_latent(sae)
        sae.W_dec.copy_(random_rows(config.d_sae, config.d_model, seed, first, sae.d_sae))
        sae.W_dec.copy_(torch.nn.functional.normalize(sae.W_dec, dim=1))
        sae.W_enc.copy_(encoder_scale * sae.W_dec.T)
        sae.b_dec.copy_(geometric_median(sample))
    return sae


def initial_transcoder(
    config: SAEConfig, targets: Tensor, seed: int, encoder_scale: float = 1.0, comm: Alone = ALONE
) -> Transcoder:
    """A fresh transcoder: unit rows of W_dec and unit columns of W_enc, drawn apart, times encoder_scale.

    What a latent reads and what it writes are directions of two spaces, so that neither can start as the
    other. b_enc and W_skip are 0, and b_dec is the geometric median of the targets.
    targets: float[n d_out], rows in the scale of training
    """
    transcoder = Transcoder(comm.shard_config(config))
    reading = torch.randn(config.d_sae, config.d_model, generator=generator(seed, READING))
    with torch.no_grad():
        first = comm.first_latent(transcoder)
        rows = random_rows(config.d_sae, config.d_out, seed, first, transcoder.d_sae)
        transcoder.W_dec.copy_(torch.nn.functional.normalize(rows, dim=1))
        transcoder.W_enc.copy_(encoder_scale * torch.nn.functional.normalize(reading, dim=1).T)
        transcoder.b_dec.copy_(geometric_median(targets))
    return transcoder


def sae_to_finetune(
    config: SAEConfig, folder: str, scale: float, unit_decoder: bool = True, comm: Alone = ALONE
) -> SparseAutoencoder:
    """The SAE of a folder, ours or SAELens', in the scale of a training that continues from it.

    config: of the SAE to be trained, but for d_sae; scale: of the inputs in this training
    unit_decoder: rows of W_dec come to norm 1, and the latents carry the norms they had
    raises: ValueError for an SAE of another width or kind, one that normalises its inputs row by row, or a
        TopK SAE that would compute something else with unit rows
    """
    sae = SparseAutoencoder.load(folder, dtype=config.dtype)
    for name in ("d_model", "kind", "normalize_activations"):
        expected, got = getattr(config, name), getattr(sae.config, name)
        if expected != got:
            hint = {
                "d_model": "it is of another model or hook point",
                "kind": f"an SAE saved as {got} can be trained as {' or '.join(_TRAINED_AS[sae.kind])}",
                "normalize_activations": "training scales all rows by one number",
            }[name]
            raise ValueError(
                f"init_from={folder} expected an SAE of {name} {expected!r}, got {got!r}: {hint}"
            )
    try:
        sae = in_training(sae, scale, unit_decoder, f"init_from={folder}")
    except ValueError as error:
        raise ValueError(f"init_from={folder} {error}") from None
    sae.config = dataclasses.replace(config, d_sae=sae.d_sae)
    return comm.shard(sae)


@torch.no_grad()
def in_training(sae: SparseAutoencoder, scale: float, unit_decoder: bool, name: str) -> SparseAutoencoder:
    """A copy of an SAE that computes the same in the scale of training, where the encoder subtracts b_dec.

    unit_decoder: rows of W_dec come to norm 1; name: of the SAE in the log
    raises: ValueError for a TopK SAE that would compute something else with unit rows
    """
    copy = fold_scale(sae, 1 / scale)
    if not sae.config.apply_b_dec_to_input:
        _subtract_b_dec_from_input_(copy)
        copy.config = dataclasses.replace(sae.config, apply_b_dec_to_input=True)
    if unit_decoder:
        if n_silent := int((copy.W_dec == 0).all(1).sum()):
            log.info("%s: %d latents have a decoder row of zero and stay silent", name, n_silent)
        fold_decoder_norms_(copy)
    return copy


@torch.no_grad()
def _subtract_b_dec_from_input_(sae: SparseAutoencoder) -> None:
    """Compute from input − b_dec what was computed from the input."""
    shift = sae.b_dec @ sae.W_enc
    if sae.kind == "gated":
        sae.b_gate += shift
        sae.b_mag += shift * sae.r_mag.exp()
    else:
        sae.b_enc += shift


def random_rows(n_rows: int, d_model: int, seed: int, first: int, n: int) -> Tensor:
    """Rows first … first + n − 1 of torch.randn(n_rows, d_model) of a seed, with few others in memory."""
    generator, kept = torch.Generator().manual_seed(seed), []
    # torch draws normal numbers in groups of 16 and redraws a last group that is short. Pieces of a multiple
    # of 16 rows, of which the last is not short, therefore equal one draw.
    starts = range(0, max(1, n_rows // _PIECE_ROWS) * _PIECE_ROWS, _PIECE_ROWS)
    for start, end in pairwise([*starts, n_rows]):
        rows = torch.randn(end - start, d_model, generator=generator)
        kept.append(rows[max(0, first - start) : max(0, first + n - start)].clone())
    return torch.cat(kept)
