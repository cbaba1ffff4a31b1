"""The kernels as embedding bags: stock torch operators, any device and dtype, nothing of size [B, n].

Definitions and shapes are in reference.py.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from saelens_lite.kernels.reference import LatentPass, TokenPass, regroup, remove_parallel

_BLOCK = 16


def select_topk(products: Tensor, bias: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """As reference.select_topk, looking only into the k blocks of latents with the largest maxima. Adds bias in place.

    That is exact: each of those k blocks holds a value at least as large as the k-th largest maximum, and nothing
    outside them is larger than that.
    """
    B, n = products.shape
    pre_acts = products.add_(bias)
    if n % _BLOCK or n < 4 * k * _BLOCK:
        values, indices = torch.topk(pre_acts, k, dim=-1, sorted=False)
        return values, indices
    n_blocks = n // _BLOCK
    maxima = pre_acts.view(B, _BLOCK, n_blocks).amax(1)
    blocks = torch.topk(maxima, k, dim=-1, sorted=False).indices
    strides = torch.arange(0, n, n_blocks, device=pre_acts.device)
    candidates = (blocks[:, :, None] + strides).flatten(1)
    values, places = torch.topk(pre_acts.gather(1, candidates), k, dim=-1, sorted=False)
    return values, candidates.gather(1, places)


def decode(values: Tensor, indices: Tensor, offsets: Tensor, table: Tensor) -> Tensor:
    return F.embedding_bag(
        indices, table, offsets, mode="sum", per_sample_weights=values, include_last_offset=True
    )


def token_pass(acts: Tensor, values: Tensor, indices: Tensor, W_dec: Tensor, b_dec: Tensor, scale: float) -> TokenPass:
    B, k = values.shape
    offsets = torch.arange(0, B * k + 1, k, device=acts.device)
    error = decode(values.reshape(-1), indices.reshape(-1), offsets, W_dec).add_(b_dec).sub_(acts)
    sq_error = torch.linalg.vecdot(error, error)
    recons_grad = error.mul_(scale)
    bags = torch.arange(B, device=acts.device).repeat_interleave(k)
    # What autograd runs for the gradient of embedding_bag's weights; called directly because nothing else is needed.
    pair_grads = torch.ops.aten._embedding_bag_per_sample_weights_backward(
        recons_grad, W_dec, indices.reshape(-1), offsets, bags, 0
    )
    return TokenPass(recons_grad, pair_grads, sq_error)


def latent_pass(
    recons_grad: Tensor, inputs: Tensor, values: Tensor, pair_grads: Tensor, indices: Tensor, W_dec: Tensor
) -> LatentPass:
    n, k = W_dec.shape[0], values.numel() // recons_grad.shape[0]
    order, offsets = regroup(indices, n)
    rows = order.div(k, rounding_mode="floor")
    alive = values > 0
    dec_weights, enc_weights = (values * alive)[order], (pair_grads * alive)[order]
    dec_grad = remove_parallel(decode(dec_weights, rows, offsets, recons_grad), W_dec)
    enc_grad = decode(enc_weights, rows, offsets, inputs)
    bias_grad = values.new_zeros(n).index_add_(0, indices, pair_grads * alive)
    fired = values.new_zeros(n).index_add_(0, indices, alive.to(values.dtype)) > 0
    return LatentPass(dec_grad, enc_grad, bias_grad, fired)
