"""Latents divided among processes: what a step exchanges so that together they do what one process would.

Of L processes along the axis "latents" each holds a shard, d_sae / L consecutive latents; all hold b_dec and
see the same tokens. Selection: each shows the largest of its own latents, and all find those that are among
    the largest of all.
Reconstruction: parts are summed before the error is taken. The gradients of a latent are then a matter of its
process; that of b_dec is a sum over processes. Alone, every function here is the kernel of its name, to the
bit.
"""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor

from saelens_lite import distributed
from saelens_lite.kernels import dispatch as kernels
from saelens_lite.kernels import torch_ops
from saelens_lite.kernels.reference import TokenPass
from saelens_lite.sae.autoencoder import SAEOutput, SparseAutoencoder
from saelens_lite.sae.config import SAEConfig
from saelens_lite.sae.latents import SparseLatents


def n_shards() -> int:
    """L: processes among which the latents are divided; 1 alone."""
    return distributed.world_size("latents")


def first_latent(sae: SparseAutoencoder) -> int:
    """Which latent of the whole SAE is the first of this shard."""
    return distributed.rank("latents") * sae.d_sae


def own_latents(latents: Tensor, sae: SparseAutoencoder) -> tuple[Tensor, Tensor]:
    """Of latents int64[m] of the whole SAE those of this shard, as it counts them, and which of the m they
    are, bool[m]."""
    own = latents - first_latent(sae)
    ours = (own >= 0) & (own < sae.d_sae)
    return own[ours], ours


def over_latents(tensor: Tensor) -> Tensor:
    """The sum over shards, in place."""
    return distributed.sum_(tensor, "latents")


def largest(values: Tensor, indices: Tensor, k: int) -> tuple[Tensor, Tensor] | tuple[Tensor, Tensor, Tensor]:
    """Of the largest latents of each shard, those among the k largest of all: pairs as the kernels take them.

    values float[B c], 0 or more, and indices int64[B c]: the c largest of this shard, c as in all others, k
    at most L · c
    returns: alone what came; else values float[P], indices int64[P] and offsets int64[B + 1] of this shard's
        pairs above 0
    """
    if n_shards() == 1:
        return values, indices
    indices, order = indices.sort(1)
    values = _own_among_largest(values.gather(1, order), k)
    on = values > 0
    offsets = torch.nn.functional.pad(on.sum(1).cumsum(0), (1, 0))
    return values[on], indices[on], offsets


def keep_topk_(acts: Tensor, k: int, widest: int) -> Tensor:
    """In place: ReLU, and 0 for all but those among the k largest of each row, over all shards; float[B n].

    widest: the largest n of all shards
    """
    if n_shards() == 1:
        return kernels.keep_topk_(acts, k)
    shown = min(k, widest)
    indices = acts.topk(min(shown, acts.shape[1]), dim=1).indices.sort(1).values
    values = acts.gather(1, indices).relu_()
    kept = _own_among_largest(torch.nn.functional.pad(values, (0, shown - values.shape[1])), k)
    return acts.zero_().scatter_(1, indices, kept[:, : values.shape[1]])


def _own_among_largest(values: Tensor, k: int) -> Tensor:
    """values float[B c], with 0 where they are not among the k largest of the L · c of each row; of equal
    ones the first."""
    every = distributed.gathered(values, "latents").transpose(0, 1)
    kept = kernels.keep_topk_(every.flatten(1), k)
    return kept.view_as(every)[:, distributed.rank("latents")]


def decode(latent_acts: Tensor, W_dec: Tensor, base: Tensor, sign: int = 1) -> Tensor:
    """latent_acts @ W_dec of all shards + sign · base: float[B d]; base float[d] or float[B d]."""
    if n_shards() == 1:
        return torch.addmm(base, latent_acts, W_dec, beta=sign)
    return over_latents(latent_acts @ W_dec).add_(base, alpha=sign)


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
    """kernels.token_pass of this shard's pairs, the error being that of the reconstruction from all shards'
    pairs.

    recons_grad and sq_error are the same in all shards; pairs are ragged or nested, unless there is one
    shard.
    """
    if n_shards() == 1:
        return kernels.token_pass(acts, values, indices, W_dec, b_dec, scale, out, offsets)
    assert offsets is not None
    recons_grad = over_latents(kernels.decode(values, indices, offsets, W_dec))
    sq_error = torch_ops.recons_grad_(recons_grad, acts, b_dec, scale)
    return TokenPass(recons_grad, torch_ops.pair_grads(recons_grad, W_dec, indices, offsets), sq_error)


def forward(sae: SparseAutoencoder, acts: Tensor, k: int | None) -> SAEOutput:
    """What the whole SAE makes of float[B d_model]: its reconstruction, and those of its latents that are of
    this shard.

    sae: this shard; k: of a TopK SAE as a whole, else None
    """
    if n_shards() == 1:
        return sae(acts)
    latents = sae.encode(acts)
    if k is not None:
        latents = SparseLatents(
            *largest(*latents.topk_view(), k), d_sae=sae.d_sae, batch_shape=latents.batch_shape
        )
    recons = over_latents(kernels.decode(latents.values, latents.indices, latents.offsets, sae.W_dec))
    return SAEOutput(recons.add_(sae.b_dec), latents)


# Shards and the whole


def shard_config(config: SAEConfig) -> SAEConfig:
    """What one shard of an SAE is. raises: ValueError where its latents cannot be divided equally"""
    n = n_shards()
    if config.d_sae % n:
        raise ValueError(
            f"latent_shards expected a divisor of d_sae={config.d_sae}, got {n}: choose "
            f"d_sae={-(-config.d_sae // n) * n}"
        )
    width = config.d_sae // n
    return dataclasses.replace(config, d_sae=width, k=None if config.k is None else min(config.k, width))


@torch.no_grad()
def shard(sae: SparseAutoencoder) -> SparseAutoencoder:
    """This process's shard of a whole SAE: alone the SAE itself. raises: as shard_config"""
    if n_shards() == 1:
        return sae
    own = SparseAutoencoder(shard_config(sae.config))
    for name, of in sae.config.parameters.items():
        own.get_parameter(name).copy_(part(sae.get_parameter(name), of.latent_dim))
    return own


def part(tensor: Tensor, dim: int | None) -> Tensor:
    """This shard's part of a tensor that has all latents along `dim`."""
    width = 0 if dim is None else tensor.shape[dim] // n_shards()
    return tensor if dim is None else tensor.narrow(dim, distributed.rank("latents") * width, width)


def whole(tensor: Tensor, dim: int | None) -> Tensor | None:
    """The tensor of all latents, from those of the shards: on the CPU of the first process, None in all
    others."""
    if distributed.rank("data"):
        return None
    if dim is None:
        return None if distributed.rank("latents") else tensor.detach().cpu()
    together = distributed.end_to_end(tensor.movedim(dim, 0), "latents")
    return None if together is None else together.movedim(0, dim)


@torch.no_grad()
def whole_sae(shard: SparseAutoencoder, config: SAEConfig) -> SparseAutoencoder:
    """The SAE that `config` is of, from its shards: alone what came; else on the CPU of the first process.

    returns: in all other processes an SAE without weights, on the device "meta"
    """
    if n_shards() == 1:
        return shard
    with torch.device("meta" if distributed.rank() else "cpu"):
        sae = SparseAutoencoder(config)
    for name, of in config.parameters.items():
        if (values := whole(shard.get_parameter(name), of.latent_dim)) is not None:
            sae.get_parameter(name).copy_(values)
    return sae
