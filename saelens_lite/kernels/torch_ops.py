"""The kernels of reference.py as embedding bags: stock torch operators, and nothing of size [B, n]."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from saelens_lite.kernels.reference import (
    LatentPass,
    TokenPass,
    bags_of_each,
    regroup,
    remove_parallel,
    token_ids,
    uniform_offsets,
)

_BLOCK = 16


def select_topk(products: Tensor, bias: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """As reference.select_topk, from the k blocks of latents with the largest maxima; adds bias in place.

    That is exact: each of those k blocks holds a value at least as large as the k-th largest maximum, and
    no value outside them is larger than that.
    """
    B, n = products.shape
    pre_acts = products.add_(bias)
    if n % _BLOCK or n < 4 * k * _BLOCK:
        return tuple(torch.topk(pre_acts, k, dim=-1, sorted=False))
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


def keep_topk_(acts: Tensor, k: int) -> Tensor:
    """As reference.keep_topk_; of equal values any may stay."""
    if k >= acts.shape[1]:
        return acts.relu_()
    largest = torch.topk(acts, k, dim=1, sorted=False)
    return acts.zero_().scatter_(1, largest.indices, largest.values.relu_())


def select_batch_topk(
    product_chunks: Iterable[Tensor], bias: Tensor, n_pairs: int, guess: float = 0.0
) -> tuple[Tensor, Tensor, Tensor]:
    """As reference.select_batch_topk, keeping only candidates that reach a bound, which rises on the way."""
    return select_by_bound(product_chunks, bias, n_pairs, guess, _collect)


class Candidates(NamedTuple):
    """values float[m] and places int64[m] = row · n + column, ascending in places."""

    values: Tensor
    places: Tensor

    def largest(self, n: int) -> Candidates:
        """The n largest; of equal ones the lower places."""
        if len(self.values) <= n:
            return self
        nth = self.values.kthvalue(len(self.values) - n + 1).values
        above, equal = self.values > nth, self.values == nth
        kept = above | (equal & (equal.cumsum(0) <= n - above.sum()))
        return Candidates(self.values[kept], self.places[kept])


Collect = Callable[[Tensor, Tensor, float, int, int], Candidates]
"""(products float[rows n], bias, bound, first place, n_pairs) → those that reach the bound, or n_pairs."""


def _collect(products: Tensor, bias: Tensor, bound: float, first_place: int, n_pairs: int) -> Candidates:
    pre_acts = (products + bias).view(-1)
    places = (pre_acts >= bound).nonzero().view(-1)
    return Candidates(pre_acts[places], places + first_place)


def select_by_bound(
    product_chunks: Iterable[Tensor], bias: Tensor, n_pairs: int, guess: float, collect: Collect
) -> tuple[Tensor, Tensor, Tensor]:
    """As reference.select_batch_topk, by any way to collect what reaches a bound.

    guess: where the bound starts. If fewer than n_pairs reach it, a second pass starts at 0.
    """
    least = smallest_above_zero(bias.dtype)
    bound, rows, n = max(guess, least), 0, len(bias)
    found = Candidates(bias.new_empty(0), torch.empty(0, dtype=torch.int64, device=bias.device))
    for products in product_chunks:
        more = collect(products, bias, bound, rows * n, n_pairs)
        found = Candidates(*(torch.cat(both) for both in zip(found, more, strict=True)))
        rows += len(products)
        if len(found.values) >= 2 * n_pairs:
            found = found.largest(n_pairs)
            bound = max(bound, float(found.values.min()))
    if len(found.values) < n_pairs and guess > least:
        return select_by_bound(product_chunks, bias, n_pairs, 0.0, collect)
    return by_token(found.largest(n_pairs), rows, n)


def by_token(found: Candidates, rows: int, n: int) -> tuple[Tensor, Tensor, Tensor]:
    """values, indices and offsets as reference.select_batch_topk has them."""
    offsets = torch.searchsorted(found.places, n * torch.arange(rows + 1, device=found.places.device))
    return found.values, found.places % n, offsets


@functools.cache
def smallest_above_zero(dtype: torch.dtype) -> float:
    return float(torch.nextafter(torch.zeros((), dtype=dtype), torch.ones((), dtype=dtype)))


def token_pass(
    acts: Tensor,
    values: Tensor,
    indices: Tensor,
    W_dec: Tensor,
    b_dec: Tensor,
    scale: float,
    out: TokenPass | None = None,
    offsets: Tensor | None = None,
) -> TokenPass:
    values, indices = values.reshape(-1), indices.reshape(-1)
    offsets = uniform_offsets(len(acts), len(values), acts.device) if offsets is None else offsets
    recons_grad = decode(values, indices, offsets, W_dec)
    sq_error = recons_grad_(recons_grad, acts, b_dec, scale)
    return TokenPass(recons_grad, pair_grads(recons_grad, W_dec, indices, offsets), sq_error)


def recons_grad_(bags: Tensor, acts: Tensor, b_dec: Tensor, scale: float) -> Tensor:
    """Turn decoded bags float[J·B d] into TokenPass.recons_grad, in place; returns sq_error float[B]."""
    nested = len(bags) // max(1, len(acts))
    if nested == 1:
        error = bags.add_(b_dec).sub_(acts)
        sq_error = torch.linalg.vecdot(error, error)
        error *= scale
        return sq_error
    errors = bags.view(len(acts), nested, -1)  # filled in place: cumsum along a middle dim is slow
    errors[:, 0].add_(b_dec).sub_(acts)
    for j in range(1, nested):
        errors[:, j] += errors[:, j - 1]
    sq_error = torch.linalg.vecdot(errors[:, -1], errors[:, -1])
    errors *= scale
    for j in reversed(range(nested - 1)):
        errors[:, j] += errors[:, j + 1]
    return sq_error


def pair_grads(recons_grad: Tensor, W_dec: Tensor, indices: Tensor, offsets: Tensor) -> Tensor:
    """TokenPass.pair_grads: of autograd's backward of embedding_bag, the part for its weights."""
    bags = token_ids(offsets, len(indices))
    return torch.ops.aten._embedding_bag_per_sample_weights_backward(
        recons_grad, W_dec, indices, offsets, bags, 0
    )


def latent_pass(
    recons_grad: Tensor,
    inputs: Tensor,
    values: Tensor,
    pair_grads: Tensor,
    indices: Tensor,
    W_dec: Tensor,
    out: LatentPass | None = None,
    offsets: Tensor | None = None,
) -> LatentPass:
    n = W_dec.shape[0]
    offsets = uniform_offsets(len(inputs), len(values), inputs.device) if offsets is None else offsets
    order, latent_offsets = regroup(indices, n)
    bags = token_ids(offsets, len(values))[order]
    alive = values > 0
    dec_weights, enc_weights = (values * alive)[order], (pair_grads * alive)[order]
    dec_grad = remove_parallel(decode(dec_weights, bags, latent_offsets, recons_grad), W_dec)
    enc_grad = decode(enc_weights, bags // bags_of_each(offsets, len(inputs)), latent_offsets, inputs)
    bias_grad = values.new_zeros(n).index_add_(0, indices, pair_grads * alive)
    fired = values.new_zeros(n).index_add_(0, indices, alive.to(values.dtype)) > 0
    return LatentPass(dec_grad, enc_grad, bias_grad, fired)
