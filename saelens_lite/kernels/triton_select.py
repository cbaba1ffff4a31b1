"""Encode and select as Triton kernels: pre-activations come out of the matrix product and are not written.

Latents are dealt into n / 32 groups: group g has the latents g, g + n/32, g + 2n/32 … Per token and group the
product leaves three numbers: the largest pre-activation, which latent has it, and the second largest. The
m largest pre-activations of a row, or of a batch, lie in the m groups with the largest maxima, as those are m
values already; the least of these maxima is a floor. A group whose second largest does not exceed the floor
offers its maximum only; of the few others (16 k²/n a token by chance) all 32 are computed once more. The m
largest values that these groups offer are the selection of the whole product, up to the rounding of its
values. All shapes are fixed beforehand, so nothing waits for the device.

torch.set_float32_matmul_precision rules the product: "highest" is torch's float32 product, in chunks of which
the groups are taken; "high" is fused with tf32 operands, "medium" with bf16. bf16 and float16 inputs are
taken as they are.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from saelens_lite.kernels import torch_ops

_GROUP = 32
_CHUNK_BYTES = 2**29
_TWO_LEVELS = False
"""Whether the largest maxima are looked for in blocks of groups first; not measured on a GPU yet."""
_BLOCK = 8
"""Groups a block then."""

INTERPRETED = triton.knobs.runtime.interpret
"""Whether TRITON_INTERPRET was set when this was imported: the kernels then run in Python, on any device."""


class Groups(NamedTuple):
    """Per token and group: maxima and seconds float32[B g], the two largest values; members int8[B g], whose
    the largest is."""

    maxima: Tensor
    members: Tensor
    seconds: Tensor


@triton.jit
def _store_groups(pre_acts, maxima, members, seconds, tokens, groups, here, n_groups, GROUP: tl.constexpr):
    """pre_acts float32[tokens GROUP groups]."""
    largest, member = tl.max(pre_acts, 1, return_indices=True)
    others = tl.arange(0, GROUP)[None, :, None] != member[:, None, :]
    second = tl.max(tl.where(others, pre_acts, float("-inf")), 1)
    places = tokens[:, None].to(tl.int64) * n_groups + groups[None, :]
    tl.store(maxima + places, largest, mask=here)
    tl.store(members + places, member.to(tl.int8), mask=here)
    tl.store(seconds + places, second, mask=here)


@triton.jit
def _product_groups(
    products, bias, maxima, members, seconds, n_groups, GROUP: tl.constexpr, BLOCK_G: tl.constexpr
):
    """Groups of one row of a product in memory."""
    token, groups = tl.program_id(0), tl.program_id(1) * BLOCK_G + tl.arange(0, BLOCK_G)
    here = (groups < n_groups)[None, :]
    latents = tl.arange(0, GROUP)[:, None] * n_groups + groups[None, :]
    row = tl.load(products + token.to(tl.int64) * GROUP * n_groups + latents, mask=here, other=0.0).to(
        tl.float32
    )
    row += tl.load(bias + latents, mask=here, other=0.0).to(tl.float32)
    _store_groups(
        row[None, :, :], maxima, members, seconds, token + tl.arange(0, 1), groups, here, n_groups, GROUP
    )


@triton.jit
def _encode_groups(
    inputs, W_rows, bias, maxima, members, seconds, B, n_groups, d,
    PRECISION: tl.constexpr, GROUP: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr, SWEEP: tl.constexpr,
):  # fmt: skip
    """Groups of inputs @ W_rowsᵀ + bias, a tile [tokens latents] a program; SWEEP tiles share latents."""
    BLOCK_G: tl.constexpr = BLOCK_N // GROUP
    n_m, n_g = tl.cdiv(B, BLOCK_M), tl.cdiv(n_groups, BLOCK_G)
    sweep, place = tl.program_id(0) // (SWEEP * n_g), tl.program_id(0) % (SWEEP * n_g)
    height = tl.minimum(n_m - sweep * SWEEP, SWEEP)
    tokens = (sweep * SWEEP + place % height) * BLOCK_M + tl.arange(0, BLOCK_M)
    first_group = (place // height) * BLOCK_G

    cols, ks = tl.arange(0, BLOCK_N), tl.arange(0, BLOCK_K)
    latents = (cols // BLOCK_G) * n_groups + (first_group + cols % BLOCK_G) % n_groups
    inputs += (tokens % B)[:, None].to(tl.int64) * d + ks[None, :]
    W_rows += latents[None, :].to(tl.int64) * d + ks[:, None]
    pre_acts = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
    for first in range(0, d, BLOCK_K):
        x = tl.load(inputs, mask=(first + ks < d)[None, :], other=0.0)
        w = tl.load(W_rows, mask=(first + ks < d)[:, None], other=0.0)
        pre_acts = tl.dot(x, w, pre_acts, input_precision=PRECISION)
        inputs += BLOCK_K
        W_rows += BLOCK_K
    pre_acts += tl.load(bias + latents)[None, :].to(tl.float32)
    groups = first_group + tl.arange(0, BLOCK_G)
    here = (tokens < B)[:, None] & (groups < n_groups)[None, :]
    pre_acts = tl.reshape(pre_acts, [BLOCK_M, GROUP, BLOCK_G])
    _store_groups(pre_acts, maxima, members, seconds, tokens, groups, here, n_groups, GROUP)


@triton.jit
def _compute_groups(
    inputs, W_rows, bias, wanted, tokens, groups, candidates, m, n_groups, d,
    GROUP: tl.constexpr, BLOCK_K: tl.constexpr, EACH: tl.constexpr,
):  # fmt: skip
    """candidates[i] = all pre-activations of groups[i] on tokens[i] if wanted[i]; EACH of them a program."""
    for i in range(tl.program_id(0) * EACH, tl.minimum(tl.program_id(0) * EACH + EACH, m)):
        if tl.load(wanted + i):
            token = tl.load(tokens + i).to(tl.int64)
            latents = tl.arange(0, GROUP).to(tl.int64) * n_groups + tl.load(groups + i)
            total = tl.load(bias + latents).to(tl.float32)
            for first in range(0, d, BLOCK_K):
                ks = first + tl.arange(0, BLOCK_K)
                x = tl.load(inputs + token * d + ks, mask=ks < d, other=0.0).to(tl.float32)
                w = tl.load(
                    W_rows + latents[:, None] * d + ks[None, :], mask=(ks < d)[None, :], other=0.0
                ).to(tl.float32)
                total += tl.sum(w * x[None, :], 1)
            tl.store(candidates + i * GROUP + tl.arange(0, GROUP), total)


def _fits(rows: int, n: int, n_pairs: int) -> bool:
    """Whether groups narrow the choice: at least four times as many as pairs."""
    return n % _GROUP == 0 and 4 * _GROUP * n_pairs <= rows * n and rows > 0


def _no_groups(rows: int, n: int, like: Tensor) -> Groups:
    dtypes = (torch.float32, torch.int8, torch.float32)
    return Groups(*(like.new_empty(rows, n // _GROUP, dtype=dtype) for dtype in dtypes))


def product_groups(products: Tensor, bias: Tensor, out: Groups | None = None) -> Groups:
    """Of products + bias, float[B n]; n a multiple of 32."""
    rows, n = products.shape
    found = out or _no_groups(rows, n, products)
    grid = (rows, triton.cdiv(n // _GROUP, 32))
    _product_groups[grid](products, bias, *found, n // _GROUP, GROUP=_GROUP, BLOCK_G=32)
    return found


def encode_groups(inputs: Tensor, W_rows: Tensor, bias: Tensor) -> Groups:
    """Of inputs @ W_rowsᵀ + bias; float[B d], float[n d], n a multiple of 32."""
    (B, d), n = inputs.shape, len(W_rows)
    found = _no_groups(B, n, inputs)
    if not _fused(inputs):
        chunk = inputs.new_empty(max(1, min(B, _CHUNK_BYTES // (n * inputs.element_size()))), n)
        for start in range(0, B, len(chunk)):
            rows = inputs[start : start + len(chunk)]
            products = torch.mm(rows, W_rows.T, out=chunk[: len(rows)])
            product_groups(products, bias, Groups(*(part[start : start + len(rows)] for part in found)))
        return found
    if INTERPRETED:  # Triton 3.7's multiplies bf16 bits as integers; float32 products are the same
        inputs, W_rows = inputs.float(), W_rows.float()
    tile = _tile(inputs)
    grid = (triton.cdiv(B, tile["BLOCK_M"]) * triton.cdiv(n, tile["BLOCK_N"]),)
    _encode_groups[grid](
        inputs, W_rows, bias, *found, B, n // _GROUP, d, PRECISION="tf32", GROUP=_GROUP, SWEEP=8, **tile
    )
    return found


def _fused(inputs: Tensor) -> bool:
    """Whether tensor cores can do it: not in full float32, and not before compute capability 8.0."""
    if inputs.dtype == torch.float32 and torch.get_float32_matmul_precision() == "highest":
        return False
    return INTERPRETED or (
        torch.version.hip is None and torch.cuda.get_device_capability(inputs.device) >= (8, 0)
    )


def _tile(inputs: Tensor) -> dict[str, int]:
    """Tiles of 144 KiB of shared memory where 160 or more exist (A100, H100), else of 96."""
    wide = inputs.is_cuda and torch.cuda.get_device_capability(inputs.device) in ((8, 0), (9, 0), (10, 0))
    tile = {"BLOCK_M": 128, "BLOCK_N": 256 if wide else 128, "BLOCK_K": 128 // inputs.element_size()}
    return tile | {"num_warps": 8, "num_stages": 3}


def _operands(inputs: Tensor, W_rows: Tensor) -> tuple[Tensor, Tensor]:
    if inputs.dtype == torch.float32 and torch.get_float32_matmul_precision() == "medium":
        return inputs.bfloat16(), W_rows.bfloat16()
    return inputs, W_rows


def _candidates(
    inputs: Tensor, W_rows: Tensor, bias: Tensor, found: Groups, chosen: Tensor, floor: Tensor
) -> Tensor:
    """The values of the chosen groups above the floor, −inf for the rest: float32[m 32].

    chosen: int64[m], token · n/32 + group; floor: float32[m] or [1]
    """
    n_groups = found.maxima.shape[1]
    tokens, groups = chosen // n_groups, chosen % n_groups
    wanted = found.seconds.view(-1)[chosen] > floor
    members = torch.arange(_GROUP, device=chosen.device) == found.members.view(-1)[chosen, None]
    candidates = torch.where(members, found.maxima.view(-1)[chosen, None], -torch.inf)
    m, each = len(chosen), 8
    _compute_groups[(triton.cdiv(m, each),)](
        inputs, W_rows, bias, wanted, tokens, groups, candidates, m, n_groups, inputs.shape[1],
        GROUP=_GROUP, BLOCK_K=128, EACH=each,
    )  # fmt: skip
    return candidates


def _largest(maxima: Tensor, m: int) -> tuple[Tensor, Tensor]:
    """The m largest of each row of float32[R g], in any order: values [R m], places int64[R m].

    On two levels they are looked for in the m blocks with the largest maxima, where they lie, as those are m
    values already; groups are dealt into blocks as latents are into groups.
    """
    rows, n_groups = maxima.shape
    n_blocks = n_groups // _BLOCK
    if not _TWO_LEVELS or n_groups % _BLOCK or 2 * m > n_blocks:
        return torch.topk(maxima, m, dim=1, sorted=False)
    blocks = torch.topk(maxima.view(rows, _BLOCK, n_blocks).amax(1), m, dim=1, sorted=False).indices
    members = torch.arange(0, n_groups, n_blocks, device=maxima.device)
    groups = (blocks[:, :, None] + members).flatten(1)
    values, places = torch.topk(maxima.gather(1, groups), m, dim=1, sorted=False)
    return values, groups.gather(1, places)


def screened_topk(inputs: Tensor, W_rows: Tensor, bias: Tensor, k: int) -> tuple[Tensor, Tensor] | None:
    """As reference.select_topk of inputs @ W_rowsᵀ; None if n is no multiple of 32 or k is above n / 128."""
    (B, _), n = inputs.shape, len(W_rows)
    if not _fits(1, n, k) or not B:
        return None
    operands, n_groups = _operands(inputs, W_rows), n // _GROUP
    found = encode_groups(*operands, bias)
    maxima, groups = _largest(found.maxima, k)
    chosen = groups + n_groups * torch.arange(B, device=groups.device)[:, None]
    floor = maxima.amin(1, keepdim=True).expand(B, k)
    candidates = _candidates(*operands, bias, found, chosen.view(-1), floor.reshape(-1))
    values, places = torch.topk(candidates.view(B, -1), k, dim=1, sorted=False)
    return values.to(inputs.dtype), groups.gather(1, places // _GROUP) + places % _GROUP * n_groups


def screened_batch_topk(
    inputs: Tensor, W_rows: Tensor, bias: Tensor, n_pairs: int
) -> tuple[Tensor, Tensor, Tensor] | None:
    """As reference.select_batch_topk of inputs @ W_rowsᵀ, but always n_pairs, filled up with values of 0.

    None if n is no multiple of 32 or n_pairs is above B · n / 128. Of equal values any may be selected.
    """
    (B, _), n = inputs.shape, len(W_rows)
    if not _fits(B, n, n_pairs):
        return None
    operands, n_groups = _operands(inputs, W_rows), n // _GROUP
    found = encode_groups(*operands, bias)
    [maxima], [chosen] = _largest(found.maxima.view(1, -1), n_pairs)
    candidates = _candidates(*operands, bias, found, chosen, maxima.amin())
    values, places = torch.topk(candidates.view(-1), n_pairs, sorted=False)
    groups = chosen[places // _GROUP]
    places = groups // n_groups * n + groups % n_groups + places % _GROUP * n_groups
    places, order = places.sort()
    return torch_ops.by_token(torch_ops.Candidates(values[order].relu_().to(inputs.dtype), places), B, n)


def select_topk(products: Tensor, bias: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """As reference.select_topk; reads the product once, and then the k groups with the largest maxima."""
    B, n = products.shape
    if not _fits(1, n, k) or not B:
        return torch_ops.select_topk(products, bias, k)
    _, groups = _largest(product_groups(products, bias).maxima, k)
    latents = (groups[:, :, None] + torch.arange(0, n, n // _GROUP, device=groups.device)).flatten(1)
    values, places = torch.topk(products.gather(1, latents) + bias[latents], k, dim=1, sorted=False)
    return values, latents.gather(1, places)
