"""AuxK: dead latents learn from what the others leave over. Gao et al. 2024, section 2.4."""

from __future__ import annotations

import torch
from torch import Tensor

from saelens_lite.kernels import dispatch as kernels
from saelens_lite.kernels.reference import LatentPass, remove_parallel

from .few_pairs import few_pairs
from .kind import Kind
from .workspace import chunk_rows


def add_auxk(kind: Kind, inputs: Tensor, error: Tensor, dead: Tensor | None, latents: LatentPass) -> Tensor:
    """Add the gradients of aux_coeff · AuxK to those in `latents`, in place; its loss float[""].

    inputs: float[B d_model], acts − b_dec; error: float[B d_model], acts − recons
    dead: int64[m], latents that AuxK may use, or None for no AuxK
    """
    if dead is None or not (widest := kind.comm.max(dead.numel())):
        return error.new_zeros(())
    loss, dec_grad, enc_grad, bias_grad = auxk_gradients(kind, inputs, error, dead, widest)
    latents.dec_grad.index_add_(0, dead, remove_parallel(dec_grad, kind.sae.W_dec[dead]))
    latents.enc_grad.index_add_(0, dead, enc_grad)
    latents.bias_grad.index_add_(0, dead, bias_grad)
    return loss


def auxk_gradients(
    kind: Kind, inputs: Tensor, error: Tensor, dead: Tensor, widest: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The loss float[""] and the gradients of W_dec[dead], W_enc[:, dead]ᵀ float[m d_model] and b_enc[dead].

    widest: the most dead latents that a shard has
    The gradient reaches the encoder too: without that a dead latent never learns to fire. Products are dense
    over the dead, of which k_aux is a large part. On a CPU the kernels take over where few come above 0;
    elsewhere the host would wait for their number. dec_grad may have a part along W_dec's rows.
    """
    sae, comm, n_tokens = kind.sae, kind.comm, len(inputs)
    k_aux = kind.config.k_aux or max(1, sae.d_model // 2)
    scale, no_bias = 2.0 * kind.config.aux_coeff / n_tokens, torch.zeros_like(sae.b_dec)
    dec_rows, enc_rows, bias = sae.W_dec[dead], sae.W_enc.T[dead], sae.b_enc[dead]
    loss, bias_grad = error.new_zeros(()), torch.zeros_like(bias)
    dec_grad, enc_grad = torch.zeros_like(dec_rows), torch.zeros_like(enc_rows)
    n_rows = chunk_rows(inputs, widest)
    for x, e in zip(inputs.split(n_rows), error.split(n_rows), strict=True):
        latent_acts = comm.keep_topk_(torch.addmm(bias, x, enc_rows.T), k_aux, widest)
        pairs = few_pairs(latent_acts > 0) if inputs.device.type == "cpu" else None
        if pairs is not None:
            tokens, indices, offsets = pairs
            values = latent_acts[tokens, indices]
            residual_grad, pair_grads, sq_error = comm.token_pass(
                e, values, indices, dec_rows, no_bias, scale, offsets=offsets
            )
            latents = kernels.latent_pass(
                residual_grad, x, values, pair_grads, indices, dec_rows, offsets=offsets
            )
            loss += sq_error.sum()
            dec_grad += latents.dec_grad
            enc_grad += latents.enc_grad
            bias_grad += latents.bias_grad
        else:
            residual = comm.decode(latent_acts, dec_rows, e, sign=-1)
            loss += residual.square().sum()
            residual_grad = residual.mul_(scale)
            # cut where ReLU was 0
            pre_grad = torch.ops.aten.threshold_backward(residual_grad @ dec_rows.T, latent_acts, 0)
            dec_grad.addmm_(latent_acts.T, residual_grad)
            enc_grad.addmm_(pre_grad.T, x)
            bias_grad += pre_grad.sum(0)
    return loss / n_tokens, dec_grad, enc_grad, bias_grad
