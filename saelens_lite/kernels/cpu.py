"""The kernels of cpu.c and screen.c, called through ctypes; without a compiler torch_ops.py does the work."""

from __future__ import annotations

import ctypes
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from saelens_lite.kernels import reference, torch_ops
from saelens_lite.kernels.cpu_build import library
from saelens_lite.kernels.reference import LatentPass, TokenPass, bags_of_each, latent_buffers, token_buffers


def usable(*tensors: Tensor) -> bool:
    """Whether cpu.c could be compiled and takes these tensors: float32, contiguous, on a CPU."""
    fits = all(t.device.type == "cpu" and t.dtype == torch.float32 and t.is_contiguous() for t in tensors)
    return fits and library() is not None


def call(name: str, *args: Tensor | int | float | None) -> Any:
    """Tensors and None go as pointers, int as int64, float as float32."""
    return getattr(library(), name)(*map(_as_c, args))


def _as_c(arg: Tensor | int | float | None) -> ctypes.c_void_p | ctypes.c_float | ctypes.c_int64:
    if arg is None or isinstance(arg, Tensor):
        return ctypes.c_void_p(None if arg is None else arg.data_ptr())
    return ctypes.c_float(arg) if isinstance(arg, float) else ctypes.c_int64(arg)


def select_topk(products: Tensor, bias: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """As reference.select_topk; of equal values the lower indices win."""
    B, n = products.shape
    values, indices = products.new_empty(B, k), torch.empty(B, k, dtype=torch.int64)
    if call("select_topk", products, bias, B, n, k, values, indices):
        return reference.select_topk(products, bias, k)  # rows full of NaN: let torch sort those
    return values, indices


def keep_topk_(acts: Tensor, k: int) -> Tensor:
    """As reference.keep_topk_; NaN becomes 0."""
    call("keep_topk", acts, *acts.shape, k)
    return acts


def screened_topk(inputs: Tensor, W_rows: Tensor, bias: Tensor, k: int) -> tuple[Tensor, Tensor] | None:
    """As reference.select_topk of inputs @ W_rowsᵀ, by screen.c; None where it is missing or does not pay."""
    (B, d), n = inputs.shape, len(W_rows)
    # A pre-activation computed on its own costs about as much as thirty of a matrix product.
    limit = n // 40
    if k > limit:
        return None
    values, indices = inputs.new_empty(B, k), torch.empty(B, k, dtype=torch.int64)
    gave_up = call("screened_topk", inputs, W_rows, bias, B, n, d, k, limit, values, indices)
    return None if gave_up else (values, indices)


def screened_batch_topk(
    inputs: Tensor, W_rows: Tensor, bias: Tensor, n_pairs: int, guess: float
) -> tuple[Tensor, Tensor, Tensor] | None:
    """As reference.select_batch_topk of inputs @ W_rowsᵀ; None where screen.c is missing or does not pay.

    Places with the largest bounds are computed. The n_pairs-th largest of those is a floor: a place bounded
    below it cannot be among the n_pairs largest.
    """
    (B, d), n, threads = inputs.shape, len(W_rows), torch.get_num_threads()
    guess = ctypes.c_float(guess).value
    if not guess > 0 or 40 * n_pairs > B * n:
        return None
    room = min(16 * n_pairs, B * n // 40) // threads + n
    bounds = inputs.new_empty(threads * (room + n))
    places = torch.empty(threads * (room + n), dtype=torch.int64)
    counts = torch.empty(threads, dtype=torch.int64)
    args = (B, n, d, guess, room, threads)
    m = call("screened_places", inputs, W_rows, bias, *args, bounds, places, counts)
    if m < n_pairs:
        return None
    bounds, places = bounds[:m], places[:m]
    values = torch.zeros_like(bounds)
    pairs = (inputs, W_rows, bias, n, d, bounds, places, m)
    start = nth_largest(bounds, n_pairs)
    call("compute_places", *pairs, start, torch.inf, values)
    floor = nth_largest(values, n_pairs)
    call("compute_places", *pairs, floor, start, values)
    call("keep_largest", values, places, m, n_pairs)
    largest = torch_ops.Candidates(values[:n_pairs].clone(), places[:n_pairs])
    return torch_ops.by_token(largest, B, n) if float(largest.values.min()) >= guess else None


def nth_largest(values: Tensor, n: int) -> float:
    """The n-th largest of the values; 0 if fewer than n are positive."""
    return call("nth_largest", values, values.numel(), n)


def select_batch_topk(
    product_chunks: Iterable[Tensor], bias: Tensor, n_pairs: int, guess: float = 0.0
) -> tuple[Tensor, Tensor, Tensor]:
    return torch_ops.select_by_bound(product_chunks, bias, n_pairs, guess, _collect)


def _collect(
    products: Tensor, bias: Tensor, bound: float, first_place: int, n_pairs: int
) -> torch_ops.Candidates:
    rows, n = products.shape
    threads = torch.get_num_threads()
    room = threads * (2 * n_pairs + n)
    values, places = bias.new_empty(room), torch.empty(room, dtype=torch.int64)
    counts = torch.empty(threads, dtype=torch.int64)
    args = (rows, n, float(bound), first_place, n_pairs, threads)
    m = call("collect", products, bias, *args, values, places, counts)
    return torch_ops.Candidates(values[:m], places[:m])


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
    B, d = acts.shape
    nested, out = token_buffers(acts, values, out, offsets)
    args = (W_dec, b_dec, float(scale), B, nested, values.numel() // max(B, 1), d, *out)
    call("token_pass", acts, values, indices.contiguous(), offsets, *args)
    return out


def regroup(indices: Tensor, n: int) -> tuple[Tensor, Tensor]:
    order, offsets = torch.empty_like(indices), torch.empty(n + 1, dtype=torch.int64)
    call("regroup", indices, indices.numel(), n, order, offsets)
    return order, offsets


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
    (n, d), B = W_dec.shape, inputs.shape[0]
    out = out or latent_buffers(W_dec)
    nested = 1 if offsets is None else bags_of_each(offsets, B)
    args = (B, nested, n, values.numel() // max(B, 1), d)
    call("latent_pass", recons_grad, inputs, values, pair_grads, indices, offsets, W_dec, *args, *out)
    return out
