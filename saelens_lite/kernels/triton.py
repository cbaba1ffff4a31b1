"""The passes of the sparse step as Triton kernels: one program a token, one program a latent.

Each program holds whole rows of d in registers and gathers a few pairs at a time. Sums are float32; results
have the dtype of what they belong to. Nothing waits for the device: a stable sort and a binary search bring
the pairs of each latent together, not bincount, which reads its largest value on the host. There are no
atomics, so equal inputs give equal bits. Selection is in triton_select.py. Importing this needs triton.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from saelens_lite.kernels.reference import LatentPass, TokenPass, bags_of_each, latent_buffers, token_buffers
from saelens_lite.kernels.torch_ops import keep_topk_, select_batch_topk  # the second waits for the device
from saelens_lite.kernels.triton_select import INTERPRETED, screened_batch_topk, screened_topk, select_topk

__all__ = [
    "decode",
    "keep_topk_",
    "latent_pass",
    "screened_batch_topk",
    "screened_topk",
    "select_batch_topk",
    "select_topk",
    "token_pass",
    "usable",
]

_DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def usable(*tensors: Tensor) -> bool:
    """Whether the kernels take these tensors: up to 32 bits, contiguous, on CUDA unless interpreted."""
    return all((t.is_cuda or INTERPRETED) and t.dtype in _DTYPES and t.is_contiguous() for t in tensors)


@triton.jit
def _bag(offsets, bag, k, RAGGED: tl.constexpr):
    """First and last + 1 pair of a bag: by offsets, or k per bag."""
    if RAGGED:
        return tl.load(offsets + bag), tl.load(offsets + bag + 1)
    else:
        return bag * k, bag * k + k


@triton.jit
def _rows(table, rows, on, d, BLOCK_D: tl.constexpr):
    """float32[rows BLOCK_D]: those rows of table [· d], 0 where not on and past d."""
    cols = tl.arange(0, BLOCK_D)
    here = on[:, None] & (cols < d)[None, :]
    return tl.load(table + rows[:, None] * d + cols[None, :], mask=here, other=0.0).to(tl.float32)


@triton.jit
def _bag_sum(
    values, indices, offsets, table, out, k, d,
    RAGGED: tl.constexpr, BLOCK_P: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """out[bag] = Σ values · table[indices]."""
    bag, cols = tl.program_id(0).to(tl.int64), tl.arange(0, BLOCK_D)
    start, end = _bag(offsets, bag, k, RAGGED)
    total = tl.zeros([BLOCK_D], tl.float32)
    for first in range(start, end, BLOCK_P):
        pairs = first + tl.arange(0, BLOCK_P)
        on = pairs < end
        value = tl.load(values + pairs, mask=on, other=0.0).to(tl.float32)
        rows = _rows(table, tl.load(indices + pairs, mask=on, other=0), on, d, BLOCK_D)
        total += tl.sum(value[:, None] * rows, 0)
    tl.store(out + bag * d + cols, total, mask=cols < d)


@triton.jit
def _bag_dot(
    vectors, indices, offsets, table, out, k, d,
    RAGGED: tl.constexpr, BLOCK_P: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """out[p] = vectors[bag of p] · table[indices[p]]."""
    bag, cols = tl.program_id(0).to(tl.int64), tl.arange(0, BLOCK_D)
    start, end = _bag(offsets, bag, k, RAGGED)
    vector = tl.load(vectors + bag * d + cols, mask=cols < d, other=0.0).to(tl.float32)
    for first in range(start, end, BLOCK_P):
        pairs = first + tl.arange(0, BLOCK_P)
        on = pairs < end
        rows = _rows(table, tl.load(indices + pairs, mask=on, other=0), on, d, BLOCK_D)
        tl.store(out + pairs, tl.sum(rows * vector[None, :], 1), mask=on)


@triton.jit
def _token_pass(
    acts, values, indices, offsets, W_dec, b_dec, recons_grad, pair_grads, sq_error, scale, k, d,
    RAGGED: tl.constexpr, NESTED: tl.constexpr, BLOCK_P: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """Errors of one token's nested reconstructions; then, bag by bag, their gradient and _bag_dot of that.

    The second pass finds its rows in the caches. A bag's gradient is all errors less those before it.
    """
    token, cols = tl.program_id(0).to(tl.int64), tl.arange(0, BLOCK_D)
    here = cols < d
    first_error = tl.load(b_dec + cols, mask=here, other=0.0).to(tl.float32)
    first_error -= tl.load(acts + token * d + cols, mask=here, other=0.0).to(tl.float32)
    error, all_errors = first_error, tl.zeros([BLOCK_D], tl.float32)
    for bag in range(token * NESTED, token * NESTED + NESTED):
        start, end = _bag(offsets, bag, k, RAGGED)
        for first in range(start, end, BLOCK_P):
            pairs = first + tl.arange(0, BLOCK_P)
            on = pairs < end
            value = tl.load(values + pairs, mask=on, other=0.0).to(tl.float32)
            rows = _rows(W_dec, tl.load(indices + pairs, mask=on, other=0), on, d, BLOCK_D)
            error += tl.sum(value[:, None] * rows, 0)
        all_errors += error
    tl.store(sq_error + token, tl.sum(error * error, 0))

    error = first_error
    for bag in range(token * NESTED, token * NESTED + NESTED):
        grad = scale * all_errors
        tl.store(recons_grad + bag * d + cols, grad, mask=here)
        start, end = _bag(offsets, bag, k, RAGGED)
        for first in range(start, end, BLOCK_P):
            pairs = first + tl.arange(0, BLOCK_P)
            on = pairs < end
            rows = _rows(W_dec, tl.load(indices + pairs, mask=on, other=0), on, d, BLOCK_D)
            tl.store(pair_grads + pairs, tl.sum(rows * grad[None, :], 1), mask=on)
            if NESTED > 1:
                value = tl.load(values + pairs, mask=on, other=0.0).to(tl.float32)
                error += tl.sum(value[:, None] * rows, 0)
        all_errors -= error


@triton.jit
def _latent_pass(
    recons_grad, inputs, values, pair_grads, pair_order, bags, offsets, latent_order, W_dec,
    dec_grad, enc_grad, bias_grad, fired, d,
    NESTED: tl.constexpr, BLOCK_P: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """Both weight gradients of one latent from its pairs pair_order[offsets[latent]] …, token by token."""
    latent, cols = tl.load(latent_order + tl.program_id(0)).to(tl.int64), tl.arange(0, BLOCK_D)
    here = cols < d
    start, end = tl.load(offsets + latent), tl.load(offsets + latent + 1)
    dec, enc = tl.zeros([BLOCK_D], tl.float32), tl.zeros([BLOCK_D], tl.float32)
    bias, alive = tl.zeros([BLOCK_P], tl.float32), tl.zeros([BLOCK_P], tl.int32)
    for first in range(start, end, BLOCK_P):
        places = first + tl.arange(0, BLOCK_P)
        pairs = tl.load(pair_order + places, mask=places < end, other=0)
        bag = tl.load(bags + places, mask=places < end, other=0)
        value = tl.load(values + pairs, mask=places < end, other=0.0).to(tl.float32)
        on = value > 0
        grad = tl.load(pair_grads + pairs, mask=on, other=0.0).to(tl.float32)
        dec += tl.sum(tl.where(on, value, 0.0)[:, None] * _rows(recons_grad, bag, on, d, BLOCK_D), 0)
        enc += tl.sum(grad[:, None] * _rows(inputs, bag // NESTED, on, d, BLOCK_D), 0)
        bias += grad
        alive += on.to(tl.int32)
    row = tl.load(W_dec + latent * d + cols, mask=here, other=0.0).to(tl.float32)
    tl.store(dec_grad + latent * d + cols, dec - tl.sum(dec * row, 0) * row, mask=here)
    tl.store(enc_grad + latent * d + cols, enc, mask=here)
    tl.store(bias_grad + latent, tl.sum(bias, 0))
    tl.store(fired + latent, tl.max(alive, 0) > 0)


def _blocks(d: int) -> dict[str, int]:
    """Eight numbers a thread and row, so that 16-byte loads fill the registers that four rows may take."""
    block = triton.next_power_of_2(max(d, 32))
    return {"BLOCK_D": block, "BLOCK_P": 4, "num_warps": min(16, max(1, block // 256))}


def _bags(offsets: Tensor | None, like: Tensor, n_pairs: int, n_bags: int) -> dict[str, Any]:
    """k is 0 where offsets rule: Triton compiles multiples of 16 apart, and P // n_bags is one by chance."""
    if offsets is not None:
        return {"offsets": offsets, "k": 0, "RAGGED": True}
    return {"offsets": like, "k": n_pairs // max(n_bags, 1), "RAGGED": False}


def regroup(indices: Tensor, n: int) -> tuple[Tensor, Tensor]:
    ascending, order = torch.sort(indices.to(torch.int32), stable=True)
    return order, torch.searchsorted(ascending, torch.arange(n + 1, dtype=torch.int32, device=indices.device))


class _Decode(torch.autograd.Function):
    """_bag_sum, with gradients for values and table."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, indices: Tensor, offsets: Tensor, table: Tensor) -> Tensor:
        ctx.save_for_backward(values, indices, offsets, table)
        return _weighted_sums(values, indices, offsets, table)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, None, None, Tensor | None]:
        values, indices, offsets, table = ctx.saved_tensors
        (n, d), value_grad, table_grad, grad = table.shape, None, None, grad.contiguous()
        if ctx.needs_input_grad[0]:
            value_grad = torch.empty_like(values)
            bags = _bags(offsets, values, len(values), len(grad))
            if len(grad):
                _bag_dot[(len(grad),)](
                    vectors=grad, indices=indices, table=table, out=value_grad, d=d, **bags, **_blocks(d)
                )
        if ctx.needs_input_grad[3]:
            order, row_offsets = regroup(indices, n)
            table_grad = _weighted_sums(
                values[order], _bag_ids(offsets, len(values))[order], row_offsets, grad
            )
        return value_grad, None, None, table_grad


def _weighted_sums(values: Tensor, indices: Tensor, offsets: Tensor, table: Tensor) -> Tensor:
    n_bags, d = len(offsets) - 1, table.shape[1]
    out = table.new_empty(n_bags, d)
    if n_bags:
        bags = _bags(offsets, values, len(values), n_bags)
        _bag_sum[(n_bags,)](values=values, indices=indices, table=table, out=out, d=d, **bags, **_blocks(d))
    return out


def _bag_ids(offsets: Tensor, n_pairs: int) -> Tensor:
    return torch.searchsorted(offsets, torch.arange(n_pairs, device=offsets.device), right=True) - 1


def decode(values: Tensor, indices: Tensor, offsets: Tensor, table: Tensor) -> Tensor:
    """As reference.decode; differentiable in values and table, once."""
    return _Decode.apply(values, indices.contiguous(), offsets, table)


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
    if B:
        _token_pass[(B,)](
            acts, values, indices.contiguous(), W_dec=W_dec, b_dec=b_dec, **out._asdict(),
            scale=float(scale), d=d, NESTED=nested, **_bags(offsets, values, values.numel(), B), **_blocks(d),
        )  # fmt: skip
    return out


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
    (n, d), P = W_dec.shape, values.numel()
    out = out or latent_buffers(W_dec)
    order, latent_offsets = regroup(indices, n)
    bags = order // max(1, P // max(len(inputs), 1)) if offsets is None else _bag_ids(offsets, P)[order]
    # The fullest latents first: one that fires on every token takes longest and must not be the last to run.
    fullest_first = latent_offsets.diff().argsort(descending=True)
    _latent_pass[(n,)](
        recons_grad, inputs, values, pair_grads, order, bags, latent_offsets, fullest_first, W_dec, *out, d,
        NESTED=1 if offsets is None else bags_of_each(offsets, len(inputs)), **_blocks(d),
    )  # fmt: skip
    return out
