"""The Triton kernels, each compiled variant compared with reference.py before its first call.

A variant is what Triton compiles apart: a kernel for one device, dtypes, precision of products, block sizes,
ragged or nested pairs, and what call_slices.py tells of. It first runs on a slice of the call, and the result
is compared with the reference in float64: sums by value, selections by their sorted values and by what the
reference has at each index. A variant that passes answers that call too, so that a resumed run computes what
an uninterrupted one does.

Anything else than a right result, an exception too, but not a lack of memory, is a failure: one warning says
so, and stock torch (torch_ops.py) takes over from then on in this process. While torch.compile or a CUDA
graph records, nothing can be compared: stock torch answers unless the variant has passed before.
"""

from __future__ import annotations

import functools
import logging
import os
import re
from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import contextmanager
from types import ModuleType
from typing import TypeVar

import torch
from torch import Tensor

from saelens_lite.kernels import reference, torch_ops
from saelens_lite.kernels.call_slices import (
    number_kind,
    small_batch_topk,
    small_pairs,
    small_topk,
    tensor_kind,
)
from saelens_lite.kernels.reference import LatentPass, TokenPass, bags_of_each, token_ids

log = logging.getLogger(__name__)
Result = TypeVar("Result")

_SUMS = {torch.float32: 1e-5, torch.bfloat16: 1e-2, torch.float16: 1e-2}
"""Tolerance of sums, of the largest value, by dtype of the result."""
_ROUNDING = 32 * torch.finfo(torch.float32).eps
"""And of the sum of the terms' absolute values, where terms cancel: float32 sums of some thousand of them."""
_PRODUCTS = {"highest": (1e-5, 2**-24), "high": (2e-3, 2**-11), "medium": (2e-2, 2**-8)}
"""Tolerance of encoder products, of the largest value, and unit roundoff of their factors, by torch's
precision of float32 products."""
_CONTEXT_LOST = re.compile(r"illegal memory access|device-side assert|unspecified launch failure|misaligned")

failure: str | None = None
"""Why this process has left Triton, if it has."""
_passed: set[Hashable] = set()


@functools.cache
def triton() -> ModuleType | None:
    """kernels/triton.py; None where triton is not installed. Imported late, as that takes a while."""
    try:
        from saelens_lite.kernels import triton
    except ImportError:
        return None
    return triton


def usable(*tensors: Tensor) -> bool:
    """Whether the Triton kernels take these tensors and have not failed in this process."""
    path = triton()
    return failure is None and path is not None and path.usable(*tensors)


def give_up(why: str) -> None:
    """Take stock torch from now on. raises: RuntimeError if SAELENS_LITE_KERNELS=triton forbids that"""
    global failure
    if os.environ.get("SAELENS_LITE_KERNELS") == "triton":
        raise RuntimeError(
            f"{why}. SAELENS_LITE_KERNELS=triton allows no other kernels: unset it for those of stock torch"
        )
    if failure is None:
        failure = why
        log.warning(
            "%s. Stock torch takes over: results stay right, steps are slower. Please report this", why
        )


keep_topk_ = torch_ops.keep_topk_
select_batch_topk = torch_ops.select_batch_topk


def select_topk(products: Tensor, bias: Tensor, k: int) -> tuple[Tensor, Tensor]:
    (B, n), variant = products.shape, None
    if B and _grouped(n, k):
        variant = ("select_topk", number_kind(n // 32), *_seen((products, bias)))

    def check(path: ModuleType) -> None:
        tokens, few, m = small_topk(B, n, k)
        part = products[:tokens, :few].clone(), bias[:few]
        exact = _exact(part[0]) + _exact(part[1])
        tolerance = 10 * torch.finfo(products.dtype).eps * _largest(exact)
        _compare_selection(path.select_topk(*part, m), exact, tolerance)

    return _answer(variant, check, lambda path: path.select_topk(products, bias, k))


def screened_topk(inputs: Tensor, W_rows: Tensor, bias: Tensor, k: int) -> tuple[Tensor, Tensor] | None:
    (B, d), n, variant = inputs.shape, len(W_rows), None
    if B and _grouped(n, k):
        numbers = (d, *map(number_kind, (B, n // 32, B * k)))
        variant = ("screened_topk", *numbers, _precision(inputs), *_seen((inputs, W_rows, bias)))

    def check(path: ModuleType) -> None:
        tokens, few, m = small_topk(B, n, k)
        part = inputs[:tokens], W_rows[:few], bias[:few]
        _compare_selection(path.screened_topk(*part, m), *_products(*part))

    return _answer(
        variant,
        check,
        lambda path: None if path is torch_ops else path.screened_topk(inputs, W_rows, bias, k),
    )


def screened_batch_topk(
    inputs: Tensor, W_rows: Tensor, bias: Tensor, n_pairs: int
) -> tuple[Tensor, Tensor, Tensor] | None:
    (B, d), n, variant = inputs.shape, len(W_rows), None
    if B and n_pairs and _grouped(B * n, n_pairs) and n % 32 == 0:
        numbers = (d, *map(number_kind, (B, n // 32, n_pairs)))
        variant = ("screened_batch_topk", *numbers, _precision(inputs), *_seen((inputs, W_rows, bias)))

    def check(path: ModuleType) -> None:
        tokens, few, m = small_batch_topk(B, n, n_pairs)
        part = inputs[:tokens], W_rows[:few], bias[:few]
        values, indices, offsets = path.screened_batch_topk(*part, m)
        places = token_ids(offsets, m) * few + indices
        _expect(torch.equal(places, places.unique()), "pairs out of the order of tokens and latents")
        exact, tolerance = _products(*part)
        _compare_selection((values[None], places[None]), exact.relu().view(1, -1), tolerance)

    return _answer(
        variant,
        check,
        lambda path: None if path is torch_ops else path.screened_batch_topk(inputs, W_rows, bias, n_pairs),
    )


def decode(values: Tensor, indices: Tensor, offsets: Tensor, table: Tensor) -> Tensor:
    n_bags, variant = len(offsets) - 1, None
    learns = tuple(torch.is_grad_enabled() and t.requires_grad for t in (values, table))
    if n_bags:
        variant = (
            "decode",
            table.shape[1],
            values.numel() > 0,
            learns,
            *_seen((values, indices, offsets, table)),
        )

    def check(path: ModuleType) -> None:
        part = small_pairs(n_bags, values.detach(), indices, offsets, table.detach())
        args = part.values, part.indices, part.offsets, part.table
        direction = torch.linspace(-1, 1, part.bags * table.shape[1], device=table.device, dtype=table.dtype)
        results = _decoded(path.decode, *args, direction, learns)
        exact = [_exact(t) for t in args]
        want = _decoded(reference.decode, *exact, _exact(direction), learns)
        terms = _decoded(reference.decode, *map(torch.abs, exact), _exact(direction).abs(), learns)
        _compare_sums(results, want, terms)

    return _answer(variant, check, lambda path: path.decode(values, indices, offsets, table))


def _decoded(
    decode: Callable[..., Tensor],
    values: Tensor,
    indices: Tensor,
    offsets: Tensor,
    table: Tensor,
    direction: Tensor,
    learns: Sequence[bool],
) -> list[Tensor]:
    """The sums, and the gradients that are wanted for a gradient `direction` of them."""
    leaves = [t.detach().requires_grad_(on) for t, on in zip((values, table), learns, strict=True)]
    with torch.enable_grad():
        out = decode(leaves[0], indices, offsets, leaves[1])
    wanted = [leaf for leaf in leaves if leaf.requires_grad]
    grads = torch.autograd.grad(out, wanted, direction.view(out.shape)) if wanted else ()
    return [out.detach(), *grads]


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
    B, variant = len(acts), None
    if B:
        numbers = acts.shape[1], *_pair_kind(B, values, offsets)
        variant = ("token_pass", *numbers, *_seen((acts, values, indices, W_dec, b_dec, offsets)))

    def check(path: ModuleType) -> None:
        part = small_pairs(B, values, indices, offsets, W_dec)
        args = acts[: part.tokens], part.values, part.indices, part.table, b_dec
        got = path.token_pass(*args, scale, offsets=part.offsets)
        bags = None if part.offsets is None else part.offsets.cpu()
        x, z, i, W, b = map(_exact, args)
        want = reference.token_pass(x, z, i, W, b, scale, bags)
        terms = reference.token_pass(-x.abs(), z.abs(), i, W.abs(), b.abs(), abs(scale), bags)
        _compare_sums(got, want, terms)

    return _answer(
        variant,
        check,
        lambda path: path.token_pass(acts, values, indices, W_dec, b_dec, scale, out, offsets),
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
    B, variant = len(inputs), None
    if B:
        numbers = inputs.shape[1], *_pair_kind(B, values, offsets)
        tensors = (recons_grad, inputs, values, pair_grads, indices, W_dec, offsets)
        variant = ("latent_pass", *numbers, *_seen(tensors))

    def check(path: ModuleType) -> None:
        part = small_pairs(B, values, indices, offsets, W_dec)
        grads = pair_grads.reshape(-1)[part.pairs]
        flat = part.values.view(-1), grads, part.indices.view(-1)
        args = recons_grad[: part.bags], inputs[: part.tokens], *flat, part.table
        got = path.latent_pass(*args, offsets=part.offsets)
        bags = None if part.offsets is None else part.offsets.cpu()
        g, x, z, p, i, W = map(_exact, args)
        want = reference.latent_pass(g, x, z, p, i, W, bags)
        terms = reference.latent_pass(g.abs(), x.abs(), z, p.abs(), i, 0 * W, bags)
        along = (terms.dec_grad * W.abs()).sum(1, keepdim=True) * W.abs()  # what remove_parallel takes away
        _compare_sums(got[:3], want[:3], (terms.dec_grad + along, *terms[1:3]))
        _expect(torch.equal(got.fired.cpu(), want.fired), "other latents are said to have fired")

    return _answer(
        variant,
        check,
        lambda path: path.latent_pass(recons_grad, inputs, values, pair_grads, indices, W_dec, out, offsets),
    )


def _answer(
    variant: Hashable | None,
    check: Callable[[ModuleType], None],
    call: Callable[[ModuleType], Result],
) -> Result:
    """call of Triton, checked before its first time, or of torch_ops. variant: None where no kernel runs"""
    path = triton()
    if path is None or failure is not None:
        return call(torch_ops)
    if variant is not None and variant not in _passed:
        if _recording():
            return call(torch_ops)
        with _failing_over(str(variant[0])), _may_wait(), torch.no_grad():
            check(path)
            _passed.add(variant)
    if failure is None:
        with _failing_over(variant[0] if variant else "selection"):
            return call(path)
    return call(torch_ops)


@contextmanager
def _failing_over(kernel: str) -> Iterator[None]:
    """Give Triton up for what is raised inside, unless nothing can help: no memory, a lost CUDA context."""
    try:
        yield
    except torch.OutOfMemoryError:
        raise
    except Exception as error:
        said = " ".join(str(error).split())[:300]
        if _CONTEXT_LOST.search(said):
            raise
        give_up(f"the Triton kernel {kernel} failed on {_where()} ({type(error).__name__}: {said})")


def _where() -> str:
    import triton as library

    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "a CPU"
    return f"{device} with torch {torch.__version__}, triton {library.__version__}"


def _recording() -> bool:
    """Whether torch.compile or a CUDA graph records what is called."""
    return torch.compiler.is_compiling() or (
        torch.cuda.is_available() and torch.cuda.is_current_stream_capturing()
    )


@contextmanager
def _may_wait() -> Iterator[None]:
    """The host waits for the device inside, also where torch.cuda.set_sync_debug_mode objects."""
    if not torch.cuda.is_available():
        yield
        return
    before = torch.cuda.get_sync_debug_mode()
    torch.cuda.set_sync_debug_mode("default")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode(before)


def _grouped(n: int, m: int) -> bool:
    """Whether triton_select.py has a kernel that selects m of n."""
    return n % 32 == 0 and 128 * m <= n


def _precision(inputs: Tensor) -> str:
    """How products of these inputs are rounded, as torch.set_float32_matmul_precision names it."""
    return torch.get_float32_matmul_precision() if inputs.dtype == torch.float32 else "medium"


def _pair_kind(tokens: int, values: Tensor, offsets: Tensor | None) -> tuple[Hashable, ...]:
    """Raggedness, nesting, and k where it is an argument of the kernel."""
    if offsets is None:
        return "uniform", number_kind(values.numel() // tokens)
    return "ragged", bags_of_each(offsets, tokens), values.numel() > 0


def _seen(tensors: Sequence[Tensor | None]) -> tuple[Hashable, ...]:
    device = next(t.device for t in tensors if t is not None)
    return device, *(None if t is None else tensor_kind(t) for t in tensors)


def _exact(tensor: Tensor) -> Tensor:
    """On the CPU, in float64 if it has fractions."""
    tensor = tensor.detach().cpu()
    return tensor.double() if tensor.is_floating_point() else tensor


def _largest(exact: Tensor) -> float:
    """The largest finite absolute value."""
    return float(exact.nan_to_num(0.0, 0.0, 0.0).abs().max()) if exact.numel() else 0.0


def _products(inputs: Tensor, W_rows: Tensor, bias: Tensor) -> tuple[Tensor, float]:
    """Exact pre-activations float64[B n], and how far rounding may take them."""
    x, W = _exact(inputs), _exact(W_rows)
    exact = x @ W.T + _exact(bias)
    relative, roundoff = _PRODUCTS[_precision(inputs)]
    terms = (x.square() @ W.square().T).sqrt()  # of independent rounding errors of the products' factors
    return exact, max(relative * _largest(exact), 16 * roundoff * _largest(terms))


def _compare_selection(got: tuple[Tensor, Tensor], exact: Tensor, tolerance: float) -> None:
    """got: values and indices [tokens m] of the largest of exact float64[tokens n]. raises: ValueError"""
    values, indices = _exact(got[0]), got[1].cpu()
    finite = exact.isfinite().all(1)
    values, indices, exact = values[finite], indices[finite], exact[finite]
    ascending = indices.sort(1).values
    _expect(bool((ascending.diff(dim=1) > 0).all()), "a latent is selected twice")
    _expect(bool(((indices >= 0) & (indices < exact.shape[1])).all()), "no such latent")
    want = exact.topk(values.shape[1], dim=1).values
    for name, right, found in (
        ("a selected value", exact.gather(1, indices), values),
        ("the largest values", want, values.sort(1, descending=True).values),
    ):
        _within(name, found, right, torch.full_like(right, tolerance))


def _compare_sums(got: Sequence[Tensor], want: Sequence[Tensor], terms: Sequence[Tensor]) -> None:
    """terms: the sums of absolute values, float64 as want. raises: ValueError"""
    for i, (found, right, size) in enumerate(zip(got, want, terms, strict=True)):
        tolerance = _SUMS[found.dtype]
        allowed = tolerance * right.abs() + torch.clamp(_ROUNDING * size, min=tolerance * _largest(right))
        _within(f"result {i}", _exact(found), right, allowed)


def _within(name: str, found: Tensor, right: Tensor, allowed: Tensor) -> None:
    wrong = right.isfinite() & ~((found - right).abs() <= allowed)
    if wrong.any():
        at = tuple(wrong.nonzero()[0].tolist())
        raise ValueError(f"{name} expected {float(right[at]):.9g}, got {float(found[at]):.9g}")


def _expect(right: bool, otherwise: str) -> None:
    if not right:
        raise ValueError(otherwise)
