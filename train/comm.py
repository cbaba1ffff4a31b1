"""What a step exchanges with other processes: nothing, in one that has all rows and latents.

The kinds and the trainer call these methods, and read as for one process. latent_shards.py has those of
several processes, and chooses.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from saelens_lite.kernels import dispatch as kernels
from saelens_lite.kernels.reference import TokenPass
from saelens_lite.sae.autoencoder import SAEOutput, SparseAutoencoder
from saelens_lite.sae.config import SAEConfig

Ragged = tuple[Tensor, Tensor, Tensor]
"""values float[P], indices int64[P] and offsets int64[B + 1] of the pairs of B tokens."""


class Alone:
    """One process: every method gives back what it got, or is the kernel of its name, to the bit."""

    speaks = True
    """Whether this process writes the log: the first of several does."""
    n_shards = 1
    """Processes among which the latents are divided."""
    n_parts = 1
    """Processes among which the rows of each batch are divided, equally."""

    # Latents

    def first_latent(self, sae: SparseAutoencoder) -> int:
        """Which latent of the whole SAE is the first of this shard."""
        return 0

    def own_latents(self, latents: Tensor, sae: SparseAutoencoder) -> tuple[Tensor, Tensor]:
        """Those of latents int64[m] that this shard has, as it counts them, and which they are: bool[m]."""
        own = latents - self.first_latent(sae)
        ours = (own >= 0) & (own < sae.d_sae)
        return own[ours], ours

    def all_latents(self, tensor: Tensor) -> Tensor:
        """[L n] of all L shards in order, from [n] of this one."""
        return tensor

    def sum(self, tensor: Tensor) -> Tensor:
        """The sum over shards, in place."""
        return tensor

    def max(self, number: int) -> int:
        """The largest of the shards' numbers."""
        return number

    def largest(self, values: Tensor, indices: Tensor, k: int) -> tuple[Tensor, Tensor] | Ragged:
        """Pairs of this shard among the k largest latents of each token; alone what came.

        values: float[B c], 0 or more, and indices int64[B c]: the c largest of this shard, c as in all others
        """
        return values, indices

    def largest_of_batch(
        self, find: Callable[[int], Ragged], n_pairs: int, *, same_rows: bool = False
    ) -> tuple[Ragged, Tensor]:
        """Of the n_pairs largest of all processes, the pairs of this one, and the values float[m] of all.

        find(n): the n largest pairs of this process's rows and latents, with values above 0
        same_rows: whether all processes have the same rows, instead of each its part of a batch
        """
        pairs = find(n_pairs)
        return pairs, pairs[0]

    def keep_topk_(self, acts: Tensor, k: int, widest: int) -> Tensor:
        """In place: ReLU, and 0 for all but the k largest of each row over all shards; float[B n].

        widest: the largest n of all shards
        """
        return kernels.keep_topk_(acts, k)

    def decode(self, latent_acts: Tensor, W_dec: Tensor, base: Tensor, sign: int = 1) -> Tensor:
        """latent_acts @ W_dec of all shards + sign · base: float[B d]; base float[d] or float[B d]."""
        return torch.addmm(base, latent_acts, W_dec, beta=sign)

    def token_pass(
        self,
        acts: Tensor,
        values: Tensor,
        indices: Tensor,
        W_dec: Tensor,
        b_dec: Tensor,
        scale: float,
        out: TokenPass | None = None,
        offsets: Tensor | None = None,
    ) -> TokenPass:
        """kernels.token_pass of this shard's pairs, with the error of the reconstruction from all shards.

        recons_grad and sq_error are the same in all shards, whose pairs are ragged or nested.
        """
        return kernels.token_pass(acts, values, indices, W_dec, b_dec, scale, out, offsets)

    def forward(self, sae: SparseAutoencoder, acts: Tensor, k: int | None) -> SAEOutput:
        """The whole SAE's reconstruction of float[B d_model], and this shard's latents.

        sae: this shard; k: of a TopK SAE as a whole, else None
        """
        return sae(acts)

    def total_norm(self, grads: Sequence[Tensor], shared: Tensor) -> Tensor:
        """Norm of the gradients of all latents and of the `shared` one among them, float[""]."""
        return torch.nn.utils.get_total_norm(grads)

    # Rows

    def first_row(self, n_rows: int) -> int:
        """Which row of the whole batch is the first of this process's n_rows."""
        return 0

    def all_rows(self, tensor: Tensor) -> Tensor:
        """[R n] of the whole batch, from [n] of this process's rows."""
        return tensor

    def rows_at(self, rows: Tensor, places: Tensor) -> Tensor:
        """float[m d] at places int64[m] of the whole batch, of which float[B d] are this process's part."""
        return rows[places]

    def mean(self, *tensors: Tensor) -> Sequence[Tensor]:
        """Means over the processes that share a batch; numbers, where bools came."""
        return tensors

    def mean_gradient_(self, grad: Tensor, *, of_latents: bool) -> None:
        """The mean over the parts of a batch, in place; of b_dec, each shard has a part of a sum."""

    # Shards and the whole

    def shard_config(self, config: SAEConfig) -> SAEConfig:
        """What one shard of an SAE is. raises: ValueError where its latents cannot be divided equally"""
        return config

    def shard(self, sae: SparseAutoencoder) -> SparseAutoencoder:
        """This process's shard of a whole SAE. raises: as shard_config"""
        return sae

    def whole_sae(self, shard: SparseAutoencoder, config: SAEConfig) -> SparseAutoencoder:
        """The SAE of `config` from its shards; of several, on the CPU of the first process and without
        weights ("meta") in all others."""
        return shard

    def part(self, tensor: Tensor, dim: int | None) -> Tensor:
        """This shard's part of a tensor that has all latents along `dim`; None for one that all share."""
        return tensor

    def whole(self, tensor: Tensor, dim: int | None) -> Tensor | None:
        """The tensor of all latents, from the shards' parts; of several, on the CPU of the first process and
        None in all others."""
        return tensor

    def begin_alike_(self, tensor: Tensor, *, of_latents: bool) -> None:
        """Take over the tensor of the first process that holds the same latents, or of the first of all."""


ALONE = Alone()
