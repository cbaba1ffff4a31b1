"""The definition of every kernel, in plain dense torch: what the fast paths are compared with.

A training step of a TopK SAE is an encoder product and four kernels: select the latents of each token, pass over
the tokens (decode, error, gradient at each firing pair), bring the pairs of each latent together, pass over the
latents (gradients of both weight matrices). B tokens, n latents, d model width, P = B·k pairs (token, latent).
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class TokenPass(NamedTuple):
    """recons_grad float[B d]: ∂L/∂recons; pair_grads float[P]: ∂L/∂value of each pair; sq_error float[B]: ‖x − x̂‖²."""

    recons_grad: Tensor
    pair_grads: Tensor
    sq_error: Tensor


class LatentPass(NamedTuple):
    """dec_grad, enc_grad float[n d], both latent-major; bias_grad float[n]; fired bool[n]: some pair is above zero."""

    dec_grad: Tensor
    enc_grad: Tensor
    bias_grad: Tensor
    fired: Tensor


def select_topk(products: Tensor, bias: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The k largest of each row of products + bias, before any ReLU; the order within a row is free.

    products: float[B n]; bias: float[n]
    returns: values float[B k], indices int64[B k]
    """
    values, indices = torch.topk(products + bias, k, dim=-1, sorted=False)
    return values, indices


def decode(values: Tensor, indices: Tensor, offsets: Tensor, table: Tensor) -> Tensor:
    """out[b] = Σ over pairs p of bag b of values[p] · table[indices[p]].

    values float[P], indices int64[P], offsets int64[B + 1], table float[n d]; returns float[B d]
    """
    bags = torch.arange(offsets.numel() - 1, device=offsets.device).repeat_interleave(offsets.diff())
    out = table.new_zeros(offsets.numel() - 1, table.shape[1])
    return out.index_add(0, bags, values[:, None] * table[indices])


def token_pass(acts: Tensor, values: Tensor, indices: Tensor, W_dec: Tensor, b_dec: Tensor, scale: float) -> TokenPass:
    """Decode, and send L = scale/2 · Σ_b ‖recons_b − acts_b‖² back to the values.

    acts float[B d]; values float[B k] and indices int64[B k] of the pairs; W_dec float[n d]; b_dec float[d]
    """
    dense = values.new_zeros(acts.shape[0], W_dec.shape[0]).scatter_(1, indices, values)
    error = dense @ W_dec + b_dec - acts
    recons_grad = scale * error
    return TokenPass(recons_grad, (recons_grad @ W_dec.T).gather(1, indices).reshape(-1), error.square().sum(1))


def regroup(indices: Tensor, n: int) -> tuple[Tensor, Tensor]:
    """Bring the pairs of each latent together, keeping their order otherwise.

    indices: int64[P], values below n
    returns: order int64[P] such that indices[order] ascends, offsets int64[n + 1]
    """
    counts = torch.bincount(indices, minlength=n)
    return indices.argsort(stable=True), torch.cat([counts.new_zeros(1), counts.cumsum(0)])


def latent_pass(
    recons_grad: Tensor, inputs: Tensor, values: Tensor, pair_grads: Tensor, indices: Tensor, W_dec: Tensor
) -> LatentPass:
    """Gradients of the weights from the firing pairs (value above zero; ReLU stops the others).

    recons_grad, inputs: float[B d], the latter what the encoder multiplied; values, pair_grads, indices: [P], k a token
    dec_grad loses its part along each (unit) decoder row, which could only change that row's norm
    """
    tokens, n = recons_grad.shape[0], W_dec.shape[0]
    indices, shape = indices.view(tokens, -1), (tokens, n)
    alive = (values > 0).view(tokens, -1)
    z = values.new_zeros(shape).scatter_(1, indices, values.view(tokens, -1) * alive)
    pre_grad = values.new_zeros(shape).scatter_(1, indices, pair_grads.view(tokens, -1) * alive)
    dec_grad = remove_parallel(z.T @ recons_grad, W_dec)
    return LatentPass(dec_grad, pre_grad.T @ inputs, pre_grad.sum(0), (z > 0).any(0))


def remove_parallel(grad: Tensor, rows: Tensor) -> Tensor:
    """grad less its part along each unit-norm row; both float[m d]. Bricken et al. 2023, "Towards Monosemanticity"."""
    return grad - (grad * rows).sum(-1, keepdim=True) * rows
