"""What the kinds share in a training step: gradients written into `.grad` by hand, without autograd's dense
tensors.

The sparse kinds (topk, batchtopk, matryoshka) never build a second [B, d_sae] tensor and take no gradient of
the input: each selects its pairs (token, latent) and leaves the rest to the functions here. Every kind is
    tested against autograd.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from saelens_lite.sae.autoencoder import SparseAutoencoder

from .. import latent_shards


class StepStats(NamedTuple):
    """Device scalars of one step, in the scale of training: no wait for the device until they are read.

    reconstruction: mean ‖x − x̂‖²; sparsity: the loss that `Kind.sparsity_name` names, before its
        coefficient;
    l0: latents a token. All of them over all shards of the latents.
    """

    reconstruction: Tensor
    sparsity: Tensor
    l0: Tensor


def write_gradients(
    sae: SparseAutoencoder,
    dec_grad: Tensor,
    enc_grad: Tensor,
    product_grad: Tensor,
    b_dec_grad: Tensor,
    *,
    train_decoder: bool,
) -> None:
    """Into `.grad` of W_dec, W_enc and b_dec; of a shard, its part of that of b_dec.

    dec_grad, enc_grad: float[d_sae d_model], latent-major; product_grad: float[d_sae], of inputs @ W_enc,
        summed over tokens
    b_dec_grad: float[d_model], ∂L/∂recons summed over tokens, for every reconstruction that adds b_dec
    """
    sae.W_dec.grad = dec_grad if train_decoder else None
    sae.W_enc.grad = enc_grad.T
    # The second part, as b_dec is subtracted from the input, is a sum over latents; the first is the same in
    # all shards.
    sae.b_dec.grad = b_dec_grad / latent_shards.n_shards() - sae.W_enc @ product_grad


@torch.no_grad()
def unit_rows_(W_dec: Tensor) -> None:
    """Rescale each decoder row to norm 1, in place; float[d_sae d_model]."""
    W_dec.div_(torch.linalg.vector_norm(W_dec, dim=1, keepdim=True))
