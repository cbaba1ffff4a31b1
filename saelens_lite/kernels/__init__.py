"""Kernels of the sparse training step: reference.py defines them, bags.py and cpu.c are fast, this file chooses."""

from __future__ import annotations

from types import ModuleType

from torch import Tensor

from saelens_lite.kernels import bags, cpu
from saelens_lite.kernels.reference import LatentPass, TokenPass, remove_parallel

__all__ = ["LatentPass", "TokenPass", "decode", "latent_pass", "remove_parallel", "select_topk", "token_pass"]


def _path(*tensors: Tensor) -> ModuleType:
    return cpu if cpu.usable(*tensors) else bags


def select_topk(products: Tensor, bias: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The k largest of each row of products + bias: values float[B k], indices int64[B k]. See reference.py.

    products: float[B n], may be overwritten
    """
    return _path(products, bias).select_topk(products, bias, k)


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
) -> TokenPass:
    """Decode, error and the gradient at each pair. See reference.py.

    out: an earlier result of these shapes, whose memory may be used again
    """
    if _path(acts, values, W_dec, b_dec) is cpu:
        return cpu.token_pass(acts, values, indices, W_dec, b_dec, scale, out)
    return bags.token_pass(acts, values, indices, W_dec, b_dec, scale)


def latent_pass(
    recons_grad: Tensor,
    inputs: Tensor,
    values: Tensor,
    pair_grads: Tensor,
    indices: Tensor,
    W_dec: Tensor,
    out: LatentPass | None = None,
) -> LatentPass:
    """Gradients of both weight matrices and the encoder bias from the firing pairs. See reference.py.

    out: an earlier result of these shapes, whose memory may be used again
    """
    if _path(recons_grad, inputs, values, pair_grads, W_dec) is cpu:
        return cpu.latent_pass(recons_grad, inputs, values, pair_grads, indices, W_dec, out)
    return bags.latent_pass(recons_grad, inputs, values, pair_grads, indices, W_dec)
