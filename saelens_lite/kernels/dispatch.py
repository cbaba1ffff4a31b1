"""The kernels of the sparse training step, by the fastest path for a device; reference.py defines them.

float32 on a CPU goes to the C files, up to 32 bits on CUDA to Triton, and the rest to torch_ops.py, as does
all that a machine without compiler or triton cannot run, and what self_check.py finds wrong.
SAELENS_LITE_KERNELS=cpu, triton or torch in the environment allows that path only, and torch_ops.py for what
it does not take. With TRITON_INTERPRET=1 Triton's kernels run in Python, slowly, and tensors on a CPU take
the path that those on CUDA take.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from types import ModuleType

from torch import Tensor

from saelens_lite.kernels import cpu, self_check, torch_ops
from saelens_lite.kernels.reference import LatentPass, TokenPass


def _path(*tensors: Tensor) -> ModuleType:
    """The fastest module that takes these tensors.

    raises: ValueError if SAELENS_LITE_KERNELS has an unknown value, or triton is asked for and not installed
    """
    only = os.environ.get("SAELENS_LITE_KERNELS", "")
    if only not in ("", "torch", "cpu", "triton"):
        raise ValueError(
            f"SAELENS_LITE_KERNELS expected torch, cpu or triton, got {only!r}: unset it to let the device "
            "choose"
        )
    interpreted = os.environ.get("TRITON_INTERPRET", "").lower() in ("1", "true", "yes", "on", "y")
    if only == "triton" or (only == "" and (tensors[0].is_cuda or interpreted)):
        if only and self_check.triton() is None:
            raise ValueError(
                "SAELENS_LITE_KERNELS expected an installed path, got triton: pip install triton, or unset it"
            )
        return self_check if self_check.usable(*tensors) else torch_ops
    if only in ("", "cpu") and cpu.usable(*tensors):
        return cpu
    return torch_ops


def choice(like: Tensor) -> str:
    """Which kernels compute with tensors of this dtype and device: "cpu", "triton" or "torch"."""
    return {cpu: "cpu", self_check: "triton", torch_ops: "torch"}[_path(like)]


def select_topk(products: Tensor, bias: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The k largest of each row of products + bias: values float[B k], indices int64[B k].

    products: float[B n], may be overwritten
    """
    return _path(products, bias).select_topk(products, bias, k)


def keep_topk_(acts: Tensor, k: int) -> Tensor:
    """In place: ReLU, and 0 for all but the k largest of each row; float[B n]."""
    return _path(acts).keep_topk_(acts, k)


def screened_topk(inputs: Tensor, W_rows: Tensor, bias: Tensor, k: int) -> tuple[Tensor, Tensor] | None:
    """select_topk of inputs @ W_rowsᵀ without that product, or None where that is impossible or does not pay.

    inputs: float[B d]; W_rows: float[n d]; bias: float[n]
    On a CPU, bounds from 8-bit integers tell which few pre-activations must be computed (screen.c). On CUDA
    they come out of the product and are not written (triton_select.py). The selection is that of exact
    arithmetic up to the rounding of the product.
    """
    path = _path(inputs, W_rows, bias)
    return None if path is torch_ops else path.screened_topk(inputs, W_rows, bias, k)


def screened_batch_topk(
    inputs: Tensor, W_rows: Tensor, bias: Tensor, n_pairs: int, guess: float | Tensor
) -> tuple[Tensor, Tensor, Tensor] | None:
    """select_batch_topk of inputs @ W_rowsᵀ without that product, or None; see screened_topk.

    guess: float or float[""]; on a CPU the result is None unless it is above 0 and not above the least value
        selected
    On CUDA there are always n_pairs, filled up with value 0: shapes then do not depend on the data, and the
    host need not wait.
    """
    path = _path(inputs, W_rows, bias)
    if path is cpu:
        return cpu.screened_batch_topk(inputs, W_rows, bias, n_pairs, float(guess))
    return None if path is torch_ops else path.screened_batch_topk(inputs, W_rows, bias, n_pairs)


def select_batch_topk(
    product_chunks: Iterable[Tensor], bias: Tensor, n_pairs: int, guess: float | Tensor = 0.0
) -> tuple[Tensor, Tensor, Tensor]:
    """The n_pairs largest positive values of a batch: float[P], int64[P] and offsets int64[B + 1].

    product_chunks: float[rows n], the rows of the batch in order; each is read before the next is asked for
    guess: a value that about n_pairs or more exceed, such as a little less than the least of the last batch.
        It saves time and never changes the result; product_chunks must then be iterable twice.
    """
    return _path(bias).select_batch_topk(product_chunks, bias, n_pairs, float(guess))


def decode(values: Tensor, indices: Tensor, offsets: Tensor, table: Tensor) -> Tensor:
    """Weighted sums of rows of `table`, one a bag; differentiable."""
    path = _path(values, table)
    return (torch_ops if path is cpu else path).decode(values, indices, offsets, table)


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
    """Decode, error and the gradient at each pair.

    out: an earlier result of these shapes, whose memory may be reused
    offsets: int64[B + 1] where the pairs are ragged, int64[J·B + 1] where they are nested
    """
    path = _path(acts, values, W_dec, b_dec)
    return path.token_pass(acts, values, indices, W_dec, b_dec, scale, out, offsets)


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
    """Gradients of both weight matrices and the encoder bias from the firing pairs; see `token_pass`.

    inputs may have another width than W_dec's rows, in a transcoder: torch_ops.py takes those, without `out`
    """
    if inputs.shape[1] != W_dec.shape[1]:
        return torch_ops.latent_pass(recons_grad, inputs, values, pair_grads, indices, W_dec, None, offsets)
    path = _path(recons_grad, inputs, values, pair_grads, W_dec)
    return path.latent_pass(recons_grad, inputs, values, pair_grads, indices, W_dec, out, offsets)
