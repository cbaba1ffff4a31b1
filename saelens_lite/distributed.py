"""The processes that torchrun started for one piece of work: which one this is, and sums over all of them.

Alone, and outside `joined`, every reduction returns what it got, so code reads as for one process. Processes
may stand in a mesh of two axes, "data" × "latents", process r at (r // L, r % L): of a dictionary whose
latents are divided among L, all in a row have the same tokens and all in a column the same latents.
Reductions then go over an axis.
"""

from __future__ import annotations

import datetime
import itertools
import os
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import TYPE_CHECKING, Literal

import torch
import torch.distributed as dist
from torch import Tensor

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh

Axis = Literal["data", "latents"]

PATIENCE = datetime.timedelta(days=30)
"""How long one process waits for another; torchrun ends them all as soon as one fails."""

_MESSAGE_BYTES = 2**30
"""Of what one process sends another at a time."""

_MEETINGS = itertools.count()

_mesh: DeviceMesh | None = None
"""Where the processes stand; None while all of them are along "data"."""


def several_processes() -> bool:
    return int(os.environ.get("WORLD_SIZE", "1")) > 1


def rank(axis: Axis | None = None) -> int:
    """The place of this process among those of torchrun, or along an axis; 0 alone."""
    if axis is not None:
        return _mesh.get_local_rank(axis) if _mesh else rank() % world_size(axis)
    if world_size() > 1:
        return dist.get_rank()
    return int(os.environ.get("RANK", "0")) if several_processes() else 0


def local_rank() -> int | None:
    """The place of this process among those of torchrun on this machine; None alone."""
    return int(os.environ.get("LOCAL_RANK", rank())) if several_processes() else None


def own_device(device: str) -> str:
    """Of several processes on a machine, "cuda" means one of its GPUs for each."""
    if device != "cuda" or local_rank() is None:
        return device
    return f"cuda:{local_rank() % max(1, torch.cuda.device_count())}"


def meeting(purpose: str) -> tuple[dist.Store, int, int]:
    """(a key-value store that all processes which torchrun started share, rank, world size).

    Every call gets keys of its own, as what an earlier one left stays there: all processes must call alike.
    """
    kv, this, n_processes = next(dist.rendezvous("env://", timeout=PATIENCE))
    return dist.PrefixStore(f"saelens_lite {purpose} {next(_MEETINGS)}", kv), this, n_processes


@contextmanager
def joined(device: torch.device, latent_shards: int = 1) -> Iterator[None]:
    """Within it, the functions below reach over all processes that torchrun started; alone, it does nothing.

    An existing process group is used as it is.
    device: where this process computes; tensors there go by nccl if that is CUDA, those on the CPU by gloo
    latent_shards: length of the axis "latents"; that of "data" is what the number of processes leaves
    raises: ValueError where it does not divide the number of processes, or a machine has fewer GPUs than
        processes, between which nccl cannot tell
    """
    if not several_processes() or dist.is_initialized():
        with _meshed(device, latent_shards):
            yield
        return
    cuda = device.type == "cuda"
    here, gpus = int(os.environ.get("LOCAL_WORLD_SIZE", "1")), torch.cuda.device_count()
    if cuda and here > gpus:
        raise ValueError(
            f"expected a GPU for each of the {here} processes of this machine, torch sees {gpus}: start "
            f"torchrun --nproc-per-node {gpus}"
        )
    kv, this, n_processes = meeting("group")
    options = {"device_id": device} if cuda and device.index is not None else {}
    with torch.cuda.device(device) if cuda else nullcontext():
        backend = "cpu:gloo,cuda:nccl" if cuda else "gloo"
        dist.init_process_group(
            backend, store=kv, rank=this, world_size=n_processes, timeout=PATIENCE, **options
        )
        try:
            with _meshed(device, latent_shards):
                yield
        finally:
            dist.destroy_process_group()


@contextmanager
def _meshed(device: torch.device, latent_shards: int) -> Iterator[None]:
    global _mesh
    n = world_size()
    if n % latent_shards:
        raise ValueError(
            f"latent_shards expected a divisor of {n}, the number of processes, got {latent_shards}: start "
            f"`torchrun --nproc-per-node {latent_shards}`, or a multiple of it, or choose another "
            "latent_shards"
        )
    if latent_shards > 1:
        from torch.distributed.device_mesh import DeviceMesh

        ranks = torch.arange(n).view(-1, latent_shards)
        # init_device_mesh would give its groups torch's patience of minutes: too little for one that waits on
        # a disk.
        groups = [
            dist.new_subgroups_by_enumeration(lines.tolist(), timeout=PATIENCE)[0]
            for lines in (ranks.T, ranks)
        ]
        _mesh = DeviceMesh.from_group(groups, device.type, mesh=ranks, mesh_dim_names=("data", "latents"))
    try:
        yield
    finally:
        _mesh = None


def world_size(axis: Axis | None = None) -> int:
    """How many processes the reductions reach over: all of them, or those along an axis."""
    if axis is not None and _mesh is not None:
        return _mesh.size(("data", "latents").index(axis))
    if axis == "latents":
        return 1
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def _group(axis: Axis | None) -> dist.ProcessGroup | None:
    return None if axis is None or _mesh is None else _mesh.get_group(axis)


def sum_(tensor: Tensor, axis: Axis | None = None) -> Tensor:
    """The sum over processes, in place; of a contiguous tensor."""
    if world_size(axis) > 1:
        dist.all_reduce(tensor, group=_group(axis))
    return tensor


def mean(tensor: Tensor, axis: Axis | None = None) -> Tensor:
    return tensor if world_size(axis) == 1 else sum_(tensor / world_size(axis), axis)


def total(number: float, axis: Axis | None = None) -> float:
    return number if world_size(axis) == 1 else float(sum_(torch.tensor(number, dtype=torch.float64), axis))


def largest(number: int, axis: Axis | None = None) -> int:
    """The largest of the processes' numbers; a barrier as well, as nobody returns before all have asked."""
    if world_size(axis) == 1:
        return number
    numbers = torch.tensor(number)
    dist.all_reduce(numbers, dist.ReduceOp.MAX, group=_group(axis))
    return int(numbers)


@torch.no_grad()
def from_first_(tensor: Tensor, axis: Axis | None = None) -> Tensor:
    """What the tensor is in the first process, in place."""
    if world_size(axis) > 1:
        values = tensor.contiguous()
        dist.broadcast(values, group=_group(axis), group_src=0)
        tensor.copy_(values)
    return tensor


def gathered(tensor: Tensor, axis: Axis | None = None) -> Tensor:
    """The tensors of all processes, in order of rank: [world_size ...]."""
    every = tensor.new_empty(world_size(axis), *tensor.shape)
    if world_size(axis) == 1:
        return every.copy_(tensor)
    gather = getattr(dist, "all_gather_single", dist.all_gather_into_tensor)  # its name from torch 2.13 on
    gather(every.view(-1), tensor.contiguous().view(-1), group=_group(axis))
    return every


@torch.no_grad()
def end_to_end(tensor: Tensor, axis: Axis) -> Tensor | None:
    """The tensors [n ...] of an axis as one [world_size · n ...] on the CPU of the first process; else None.

    One after the other: no other process and no device holds more than its own.
    """
    own, rank_here = tensor.detach().cpu().contiguous(), rank(axis)
    if world_size(axis) == 1:
        return own
    rows = max(1, _MESSAGE_BYTES * len(own) // max(1, own.nbytes))
    if rank_here > 0:
        for piece in own.split(rows):
            dist.send(piece, group=_group(axis), group_dst=0)
        return None
    every = own.new_empty(world_size(axis), *own.shape)
    every[0] = own
    for sender in range(1, len(every)):
        for piece in every[sender].split(rows):
            dist.recv(piece, group=_group(axis), group_src=sender)
    return every.flatten(0, 1)
