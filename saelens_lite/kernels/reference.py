"""The definition of every kernel, in plain dense torch, with which the fast paths are compared.

A training step of a TopK SAE is an encoder product and four kernels: select the latents of each token, pass
over the tokens (decode, error, gradient at each firing pair), bring the pairs of each latent together, pass
over the latents (gradients of both weight matrices). B tokens, n latents, d model width, P pairs (token,
latent).

Pairs come in one of three forms. Uniform: [B, k], P = B·k. Ragged: flat [P] with offsets int64[B + 1], token
b owning pairs offsets[b] … offsets[b + 1] − 1. Nested: flat [P] with offsets int64[J·B + 1], bags b·J … b·J +
J − 1 being token b's; its j-th reconstruction is of its first j + 1 bags. No token holds a latent twice.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import torch
from torch import Tensor


class TokenPass(NamedTuple):
    """What token_pass gives.

    recons_grad: float[B d], ∂L/∂recons; with J nested bags float[J·B d], by what each adds to recons
    pair_grads: float[P], ∂L/∂value of each pair
    sq_error: float[B], ‖x − x̂‖² of the last reconstruction
    """

    recons_grad: Tensor
    pair_grads: Tensor
    sq_error: Tensor


class LatentPass(NamedTuple):
    """dec_grad, enc_grad float[n d], latent-major; bias_grad float[n]; fired bool[n], by pairs above 0."""

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


def keep_topk_(acts: Tensor, k: int) -> Tensor:
    """In place: ReLU, and 0 for all but the k largest of each row; of equal ones the first stay."""
    largest = acts.relu_().argsort(dim=1, descending=True, stable=True)[:, :k]
    return acts.copy_(torch.zeros_like(acts).scatter_(1, largest, acts.gather(1, largest)))


def select_batch_topk(
    product_chunks: Iterable[Tensor], bias: Tensor, n_pairs: int
) -> tuple[Tensor, Tensor, Tensor]:
    """The n_pairs largest positive values of products + bias; of equal ones the lower (row, column).

    product_chunks: float[rows n], the rows of the batch in order; bias: float[n]
    returns: values float[P], indices int64[P], offsets int64[B + 1], in order of (row, column); P < n_pairs
        where fewer are positive. NaN is never selected.
    source: Bussmann et al. 2024, "BatchTopK Sparse Autoencoders", arXiv:2412.06410
    """
    pre_acts = torch.cat(list(product_chunks)) + bias
    B, n = pre_acts.shape
    flat = torch.where(pre_acts > 0, pre_acts, 0.0).view(-1)
    largest = flat.argsort(descending=True, stable=True)[:n_pairs]
    places = largest[flat[largest] > 0].sort().values
    offsets = torch.searchsorted(places, n * torch.arange(B + 1, device=places.device))
    return flat[places], places % n, offsets


def uniform_offsets(tokens: int, n_pairs: int, device: torch.device) -> Tensor:
    """int64[tokens + 1], of pairs spread evenly."""
    k = n_pairs // max(tokens, 1)
    return k * torch.arange(tokens + 1, device=device)


def token_ids(offsets: Tensor, n_pairs: int) -> Tensor:
    """int64[P]: the token of each pair, or its bag if bags are nested."""
    tokens = torch.arange(offsets.numel() - 1, device=offsets.device)
    return tokens.repeat_interleave(offsets.diff(), output_size=n_pairs)


def bags_of_each(offsets: Tensor, tokens: int) -> int:
    """J: nested bags a token; 1 if they are not nested."""
    return (offsets.numel() - 1) // tokens if tokens else 1


def token_buffers(
    acts: Tensor, values: Tensor, out: TokenPass | None, offsets: Tensor | None
) -> tuple[int, TokenPass]:
    """J, and memory for a token pass: that of `out` as far as it fits."""
    nested, P = 1 if offsets is None else bags_of_each(offsets, len(acts)), values.numel()
    shapes = (len(acts) * nested, acts.shape[1]), P, len(acts)
    out = out or TokenPass(*(acts.new_empty(shape) for shape in shapes))
    return nested, out if out.pair_grads.numel() == P else out._replace(pair_grads=acts.new_empty(P))


def latent_buffers(W_dec: Tensor) -> LatentPass:
    fired = W_dec.new_empty(len(W_dec), dtype=torch.bool)
    return LatentPass(torch.empty_like(W_dec), torch.empty_like(W_dec), W_dec.new_empty(len(W_dec)), fired)


def token_pass(
    acts: Tensor,
    values: Tensor,
    indices: Tensor,
    W_dec: Tensor,
    b_dec: Tensor,
    scale: float,
    offsets: Tensor | None = None,
) -> TokenPass:
    """Decode, and gradients of L = scale/2 · Σ_b ‖recons_b − acts_b‖², over nested reconstructions summed.

    acts: float[B d]; values, indices: [B k], or [P] with offsets; W_dec: float[n d]; b_dec: float[d]
    """
    values, indices = values.reshape(-1), indices.reshape(-1)
    offsets = uniform_offsets(len(acts), len(values), acts.device) if offsets is None else offsets
    bags, nested = token_ids(offsets, len(values)), bags_of_each(offsets, len(acts))
    dense = values.new_zeros(len(acts) * nested, W_dec.shape[0]).index_put_((bags, indices), values)
    errors = (dense @ W_dec).view(len(acts), nested, len(b_dec)).cumsum(1) + (b_dec - acts)[:, None]
    recons_grad = scale * errors.flip(1).cumsum(1).flip(1).flatten(0, 1)
    return TokenPass(recons_grad, (recons_grad @ W_dec.T)[bags, indices], errors[:, -1].square().sum(1))


def regroup(indices: Tensor, n: int) -> tuple[Tensor, Tensor]:
    """Bring the pairs of each latent together, keeping their order otherwise.

    indices: int64[P], values below n
    returns: order int64[P] such that indices[order] ascends, offsets int64[n + 1]
    """
    counts = torch.bincount(indices, minlength=n)
    return indices.argsort(stable=True), torch.cat([counts.new_zeros(1), counts.cumsum(0)])


def latent_pass(
    recons_grad: Tensor,
    inputs: Tensor,
    values: Tensor,
    pair_grads: Tensor,
    indices: Tensor,
    W_dec: Tensor,
    offsets: Tensor | None = None,
) -> LatentPass:
    """Gradients of the weights from the firing pairs (value above zero; ReLU stops the others).

    recons_grad: float[B d], or float[J·B d] of nested bags; inputs: float[B d], what the encoder multiplied
    values, pair_grads, indices: [P], k a token unless there are offsets
    dec_grad loses its part along each (unit) decoder row, which could only change that row's norm
    """
    offsets = uniform_offsets(len(inputs), len(values), inputs.device) if offsets is None else offsets
    pairs, shape = (token_ids(offsets, len(values)), indices), (len(recons_grad), W_dec.shape[0])
    alive = values > 0
    z = values.new_zeros(shape).index_put_(pairs, values * alive)
    pre_grad = values.new_zeros(shape).index_put_(pairs, pair_grads * alive)
    dec_grad = remove_parallel(z.T @ recons_grad, W_dec)
    bag_inputs = inputs.repeat_interleave(bags_of_each(offsets, len(inputs)), 0)
    return LatentPass(dec_grad, pre_grad.T @ bag_inputs, pre_grad.sum(0), (z > 0).any(0))


def remove_parallel(grad: Tensor, rows: Tensor) -> Tensor:
    """grad less its part along each unit-norm row, both float[m d]; source: Bricken et al. 2023."""
    return grad - (grad * rows).sum(-1, keepdim=True) * rows
