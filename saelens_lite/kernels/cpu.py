"""The kernels of cpu.c: compiled at first use by the machine's C compiler, loaded through ctypes.

Without a compiler, or with SAELENS_LITE_KERNELS=torch in the environment, `library()` is None and the embedding
bags of bags.py do the work. The result is cached by source and compiler in the user's cache folder.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import logging
import os
import shutil
import subprocess
import tempfile
from pathlib import Path

import torch
from torch import Tensor

from saelens_lite.kernels import reference
from saelens_lite.kernels.reference import LatentPass, TokenPass

log = logging.getLogger(__name__)

_SOURCE = Path(__file__).with_name("cpu.c")
_COMPILE = ["-O3", "-march=native", "-fno-math-errno", "-fopenmp", "-fPIC", "-std=c11", "-c"]


def _cache_folder() -> Path:
    given = os.environ.get("XDG_CACHE_HOME")
    return (Path(given) if given else Path.home() / ".cache") / "saelens_lite"


def _host() -> str:
    """What -march=native depends on: a cached library must not meet another processor in a shared home folder."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next((line for line in lines if line.startswith(("flags", "Features"))), "")
    except OSError:
        return ""


def _build(compiler: str) -> Path:
    source = _SOURCE.read_bytes()
    version = subprocess.run([compiler, "--version"], capture_output=True, check=True).stdout
    key = hashlib.blake2b(source + version + " ".join([*_COMPILE, _host()]).encode(), digest_size=8).hexdigest()
    target = _cache_folder() / f"cpu-{key}.so"
    if target.exists():
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent) as folder:
        made, shared = Path(folder, "cpu.o"), Path(folder, "cpu.so")
        subprocess.run([compiler, *_COMPILE, str(_SOURCE), "-o", str(made)], check=True, capture_output=True)
        # Linked without -fopenmp: GOMP_parallel is then found in the runtime that torch has loaded already.
        subprocess.run([compiler, "-shared", str(made), "-o", str(shared)], check=True, capture_output=True)
        os.replace(shared, target)
    return target


@functools.cache
def library() -> ctypes.CDLL | None:
    """The compiled kernels, or None where they cannot be had."""
    compiler = shutil.which(os.environ.get("CC", "cc"))
    if os.environ.get("SAELENS_LITE_KERNELS") == "torch" or compiler is None:
        return None
    try:
        loaded = ctypes.CDLL(str(_build(compiler)), mode=os.RTLD_NOW)
    except (OSError, RuntimeError, subprocess.CalledProcessError) as error:  # RuntimeError: no home folder
        log.info("kernels: %s cannot be used here (%s); stock torch operators do the work", _SOURCE.name, error)
        return None
    loaded.select_topk.restype = ctypes.c_int64
    return loaded


def usable(*tensors: Tensor) -> bool:
    """Whether cpu.c takes these tensors: float32, contiguous, on a CPU; and it could be compiled."""
    fits = all(t.device.type == "cpu" and t.dtype == torch.float32 and t.is_contiguous() for t in tensors)
    return fits and library() is not None


def _call(name: str, *args: Tensor | int | float) -> int:
    as_c = [
        ctypes.c_void_p(a.data_ptr())
        if isinstance(a, Tensor)
        else ctypes.c_float(a)
        if isinstance(a, float)
        else ctypes.c_int64(a)
        for a in args
    ]
    return getattr(library(), name)(*as_c)


def select_topk(products: Tensor, bias: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """As reference.select_topk; of equal values the lower indices win."""
    B, n = products.shape
    values, indices = products.new_empty(B, k), torch.empty(B, k, dtype=torch.int64)
    if _call("select_topk", products, bias, B, n, k, values, indices):
        return reference.select_topk(products, bias, k)  # rows full of NaN: let torch sort those
    return values, indices


def token_pass(
    acts: Tensor,
    values: Tensor,
    indices: Tensor,
    W_dec: Tensor,
    b_dec: Tensor,
    scale: float,
    out: TokenPass | None = None,
) -> TokenPass:
    B, k = values.shape
    out = out or TokenPass(torch.empty_like(acts), acts.new_empty(B * k), acts.new_empty(B))
    _call("token_pass", acts, values, indices.contiguous(), W_dec, b_dec, float(scale), B, k, acts.shape[1], *out)
    return out


def regroup(indices: Tensor, n: int) -> tuple[Tensor, Tensor]:
    order, offsets = torch.empty_like(indices), torch.empty(n + 1, dtype=torch.int64)
    _call("regroup", indices, indices.numel(), n, order, offsets)
    return order, offsets


def latent_pass(
    recons_grad: Tensor,
    inputs: Tensor,
    values: Tensor,
    pair_grads: Tensor,
    indices: Tensor,
    W_dec: Tensor,
    out: LatentPass | None = None,
) -> LatentPass:
    n, d = W_dec.shape
    k = values.numel() // recons_grad.shape[0]
    order, offsets = regroup(indices, n)
    out = out or LatentPass(
        torch.empty_like(W_dec), torch.empty_like(W_dec), W_dec.new_empty(n), torch.empty(n, dtype=torch.bool)
    )
    _call("latent_pass", recons_grad, inputs, values, pair_grads, order, offsets, W_dec, n, k, d, *out)
    return out
