"""TODO clause of train/kinds/auxk.py."""

from __future__ import annotations

import torch
from torch import Tensor

from saelens_lite import distributed
from saelens_lite.kernels import dispatch as kernels
from saelens_lite.kernels.reference import LatentPass, remove_parallel
from saelens_lite.sae.autoencoder import SparseAutoencoder

from .. import latent_shards
from ..config import TrainConfig
from .few_pairs import few_pairs
from .workspace import _chunk_rows


def add_auxk(
    sae: SparseAutoencoder,
    inputs: Tensor,
    error: Tensor,
    dead: Tensor | None,
    latents: LatentPass,
    config: TrainConfig,
) -> Tensor:
    """Add the gradients of config.aux_coeff · AuxK to those in `latents`, in place; its loss float[""].

    inputs: float[B d_model], acts − b_dec; error: float[B d_model], acts − recons
    dead: int64[m], latents that AuxK may use, or None for no AuxK
    """
    if dead is None or not distributed.largest(dead.numel(), "latents"):
        return error.new_zeros(())
    k_aux = config.k_aux or max(1, sae.d_model // 2)
    loss, aux_dec, aux_enc, aux_bias = _auxk(sae, inputs, error, dead, k_aux, config.aux_coeff)
    latents.dec_grad.index_add_(0, dead, remove_parallel(aux_dec, sae.W_dec[dead]))
    latents.enc_grad.index_add_(0, dead, aux_enc)
    latents.bias_grad.index_add_(0, dead, aux_bias)
    return loss


def _auxk(
    sae: SparseAutoencoder, inputs: Tensor, error: Tensor, dead: Tensor, k_aux: int, aux_coeff: float
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """AuxK over the dead latents: loss float[""], gradients of W_dec[dead], W_enc[:, dead]ᵀ float[m d],
    b_enc[dead].

    The gradient reaches the encoder as well as the decoder: without that a dead latent never learns to fire.
    Gao et al. 2024, section 2.4. By chunks of tokens; dense over the dead, since k_aux is a large part of
    them, unless few of them come above 0 (looked into on a CPU only: elsewhere the host would wait for their
    number). dec_grad may or may not have a part along the decoder's rows.
    """
    widest, n_tokens = distributed.largest(dead.numel(), "latents"), inputs.shape[0]
    scale, no_bias = 2.0 * aux_coeff / n_tokens, torch.zeros_like(sae.b_dec)
    dec_rows, enc_rows, bias = sae.W_dec[dead], sae.W_enc.T[dead], sae.b_enc[dead]
    loss, bias_grad = error.new_zeros(()), torch.zeros_like(bias)
    dec_grad, enc_grad = torch.zeros_like(dec_rows), torch.zeros_like(enc_rows)
    chunk_rows = _chunk_rows(inputs, widest)
    for x, e in zip(inputs.split(chunk_rows), error.split(chunk_rows), strict=True):
        latent_acts = latent_shards.keep_topk_(torch.addmm(bias, x, enc_rows.T), k_aux, widest)
        if inputs.device.type == "cpu" and (pairs := few_pairs(latent_acts > 0)) is not None:
            values = latent_acts[pairs.tokens, pairs.indices]
            tokens = latent_shards.token_pass(
                e, values, pairs.indices, dec_rows, no_bias, scale, offsets=pairs.offsets
            )
            latents = kernels.latent_pass(
                tokens.recons_grad,
                x,
                values,
                tokens.pair_grads,
                pairs.indices,
                dec_rows,
                offsets=pairs.offsets,
            )
            loss += tokens.sq_error.sum()
            dec_grad, enc_grad = dec_grad.add_(latents.dec_grad), enc_grad.add_(latents.enc_grad)
            bias_grad += latents.bias_grad
            continue
        residual = latent_shards.decode(latent_acts, dec_rows, e, sign=-1)
        loss += residual.square().sum()
        residual_grad = residual.mul_(scale)
        pre_grad = torch.ops.aten.threshold_backward(
            residual_grad @ dec_rows.T, latent_acts, 0
        )  # cut where ReLU was 0
        dec_grad.addmm_(latent_acts.T, residual_grad)
        enc_grad.addmm_(pre_grad.T, x)
        bias_grad += pre_grad.sum(0)
    return loss / n_tokens, dec_grad, enc_grad, bias_grad
