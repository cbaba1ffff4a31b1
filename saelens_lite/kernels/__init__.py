"""Kernels of the sparse training step: reference.py defines them, bags.py and the C files are fast, this file chooses."""

from __future__ import annotations

from collections.abc import Iterable
from types import ModuleType

from torch import Tensor

from saelens_lite.kernels import bags, cpu
from saelens_lite.kernels.reference import LatentPass, TokenPass, remove_parallel

__all__ = [
    "LatentPass",
    "TokenPass",
    "decode",
    "keep_topk_",
    "latent_pass",
    "remove_parallel",
    "screened_batch_topk",
    "screened_topk",
    "select_batch_topk",
    "select_topk",
    "token_pass",
]


def _path(*tensors: Tensor) -> ModuleType:
    return cpu if cpu.usable(*tensors) else bags


def select_topk(products: Tensor, bias: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The k largest of each row of products + bias: values float[B k], indices int64[B k]. See reference.py.

    products: float[B n], may be overwritten
    """
    return _path(products, bias).select_topk(products, bias, k)


def keep_topk_(acts: Tensor, k: int) -> Tensor:
    """In place: ReLU, and 0 for all but the k largest of each row; float[B n]. See reference.py."""
    return _path(acts).keep_topk_(acts, k)


def screened_topk(inputs: Tensor, W_rows: Tensor, bias: Tensor, k: int) -> tuple[Tensor, Tensor] | None:
    """select_topk of inputs @ W_rowsᵀ without that product, or None where there is no such way or it would not pay.

    inputs: float[B d]; W_rows: float[n d]; bias: float[n]
    Bounds on all pre-activations, from 8-bit integers, tell which few must be computed: see screen.c. The selection is
    that of exact arithmetic up to the rounding of float32, as it is for the product.
    """
    return cpu.screened_topk(inputs, W_rows, bias, k) if cpu.usable(inputs, W_rows, bias) else None


def screened_batch_topk(
    inputs: Tensor, W_rows: Tensor, bias: Tensor, n_pairs: int, guess: float
) -> tuple[Tensor, Tensor, Tensor] | None:
    """select_batch_topk of inputs @ W_rowsᵀ without that product, or None; see screened_topk.

    guess: must be above 0, and not above the least value selected, or nothing comes of it
    """
    if not cpu.usable(inputs, W_rows, bias):
        return None
    return cpu.screened_batch_topk(inputs, W_rows, bias, n_pairs, guess)


def select_batch_topk(
    product_chunks: Iterable[Tensor], bias: Tensor, n_pairs: int, guess: float = 0.0
) -> tuple[Tensor, Tensor, Tensor]:
    """The n_pairs largest positive values of a whole batch: values float[P], indices int64[P], offsets int64[B + 1].

    product_chunks: float[rows n], the rows of the batch in order; looked at once, before the next one is asked for
    guess: a value that about n_pairs or more exceed, such as a little less than the least value of the batch before.
        It saves time and never changes the result; product_chunks must then be iterable a second time.
    See reference.py.
    """
    return _path(bias).select_batch_topk(product_chunks, bias, n_pairs, guess)


def decode(values: Tensor, indices: Tensor, offsets: Tensor, table: Tensor) -> Tensor:
    """Weighted sums of rows of `table`, one a bag; differentiable. See reference.py."""
    return bags.decode(values, indices, offsets, table)


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
    """Decode, error and the gradient at each pair. See reference.py.

    out: an earlier result of these shapes, whose memory may be used again
    offsets: int64[B + 1] where the pairs are ragged, int64[J·B + 1] where they are nested
    """
    if _path(acts, values, W_dec, b_dec) is cpu:
        return cpu.token_pass(acts, values, indices, W_dec, b_dec, scale, out, offsets)
    return bags.token_pass(acts, values, indices, W_dec, b_dec, scale, offsets)


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
    """Gradients of both weight matrices and the encoder bias from the firing pairs. See reference.py.

    out: an earlier result of these shapes, whose memory may be used again
    offsets: int64[B + 1] where the pairs are ragged, int64[J·B + 1] where they are nested
    """
    if _path(recons_grad, inputs, values, pair_grads, W_dec) is cpu:
        return cpu.latent_pass(recons_grad, inputs, values, pair_grads, indices, W_dec, out, offsets)
    return bags.latent_pass(recons_grad, inputs, values, pair_grads, indices, W_dec, offsets)
