"""Several processes that torchrun started for one piece of work: which of them this is, and sums over all of them.

Alone, and outside `joined`, every reduction gives back what it got: code that calls them reads as for one process.
"""

from __future__ import annotations

import datetime
import itertools
import os
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

import torch
import torch.distributed as dist
from torch import Tensor

_PATIENCE = datetime.timedelta(days=1)
"""How long one process waits for another; torchrun ends them all as soon as one fails."""

_MEETINGS = itertools.count()


def several_processes() -> bool:
    """Whether this is one of several processes that torchrun started."""
    return int(os.environ.get("WORLD_SIZE", "1")) > 1


def rank() -> int:
    """The place of this process among those that torchrun started; 0 alone."""
    if world_size() > 1:
        return dist.get_rank()
    return int(os.environ.get("RANK", "0")) if several_processes() else 0


def local_rank() -> int | None:
    """The place of this process among those that torchrun started on this machine; None alone."""
    return int(os.environ.get("LOCAL_RANK", rank())) if several_processes() else None


def own_device(device: str) -> str:
    """The device of this process: where torchrun started several on a machine, "cuda" means one of its GPUs for each."""
    if device != "cuda" or local_rank() is None:
        return device
    return f"cuda:{local_rank() % max(1, torch.cuda.device_count())}"


def meeting(purpose: str, patience: datetime.timedelta) -> tuple[dist.Store, int, int]:
    """(a key-value store that all processes which torchrun started share, rank, world size).

    Every call of a process gets keys of its own, as what an earlier one left there stays: all processes call alike.
    patience: how long to wait for a process that does not come
    """
    kv, this, n_processes = next(dist.rendezvous("env://", timeout=patience))
    return dist.PrefixStore(f"saelens_lite {purpose} {next(_MEETINGS)}", kv), this, n_processes


@contextmanager
def joined(device: torch.device) -> Iterator[None]:
    """Within it, the functions below reach over all processes that torchrun started; alone, it does nothing.

    device: where this process computes; tensors there go by nccl if that is CUDA, those on the CPU by gloo
    A process group that is there already is used as it is.
    """
    if not several_processes() or dist.is_initialized():
        yield
        return
    cuda = device.type == "cuda"
    kv, this, n_processes = meeting("group", _PATIENCE)
    with torch.cuda.device(device) if cuda else nullcontext():
        backend = "cpu:gloo,cuda:nccl" if cuda else "gloo"
        dist.init_process_group(backend, store=kv, rank=this, world_size=n_processes, timeout=_PATIENCE)
        try:
            yield
        finally:
            dist.destroy_process_group()


def world_size() -> int:
    """How many processes the reductions reach over."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def sum_(tensor: Tensor) -> Tensor:
    """The sum over processes, in place; of a contiguous tensor."""
    if world_size() > 1:
        dist.all_reduce(tensor)
    return tensor


def mean(tensor: Tensor) -> Tensor:
    """The mean over processes."""
    return tensor if world_size() == 1 else sum_(tensor / world_size())


def largest(number: int) -> int:
    """The largest of the processes' numbers. Nobody returns before all have asked, so it is a barrier as well."""
    if world_size() == 1:
        return number
    numbers = torch.tensor(number)
    dist.all_reduce(numbers, dist.ReduceOp.MAX)
    return int(numbers)


@torch.no_grad()
def from_first_(tensor: Tensor) -> Tensor:
    """What the tensor is in the first process, in place."""
    if world_size() > 1:
        values = tensor.contiguous()
        dist.broadcast(values, 0)
        tensor.copy_(values)
    return tensor


def gathered(tensor: Tensor) -> Tensor:
    """The tensors of all processes, of one shape, in order of rank: [world_size ...]."""
    every = tensor.new_empty(world_size(), *tensor.shape)
    if world_size() == 1:
        return every.copy_(tensor)
    dist.all_gather_into_tensor(every.view(-1), tensor.contiguous().view(-1))
    return every
