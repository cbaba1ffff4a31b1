"""Rows and latents divided among processes: what a step exchanges so that together they do what one would.

Of L processes along the axis "latents" each holds a shard, d_sae / L consecutive latents; all hold b_dec and
see the same tokens. Each shows the largest of its own latents, and all find those among the largest of all.
Parts of a reconstruction are summed before the error is taken. A latent's gradients concern its process; that
of b_dec is a sum. Along the axis "data" each process has an equal part of the rows of a batch; gradients and
stats, which are means over rows, are averaged.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from saelens_lite import distributed
from saelens_lite.kernels import dispatch as kernels
from saelens_lite.kernels import torch_ops
from saelens_lite.kernels.reference import TokenPass
from saelens_lite.sae.autoencoder import SAEOutput, SparseAutoencoder
from saelens_lite.sae.config import SAEConfig
from saelens_lite.sae.latents import SparseLatents

from .comm import Alone, Ragged


def communication() -> Alone:
    """To be chosen once, within `distributed.joined`."""
    if distributed.world_size() == 1:
        return Alone()
    return RowParts() if distributed.world_size("latents") == 1 else LatentShards()


class RowParts(Alone):
    """Each process has all latents and a part of the rows."""

    def __init__(self) -> None:
        self.speaks = distributed.rank() == 0
        self.n_parts = distributed.world_size("data")

    def largest_of_batch(
        self, find: Callable[[int], Ragged], n_pairs: int, *, same_rows: bool = False
    ) -> tuple[Ragged, Tensor]:
        """Every process shows its largest, a few more than its part would be. Where all that one showed are
        among the largest of all it may have more: then all show twice as many, up to n_pairs."""
        axis: distributed.Axis | None = "latents" if same_rows else None
        n_processes = distributed.world_size(axis)
        if n_processes == 1:
            return super().largest_of_batch(find, n_pairs)
        shown = -(-n_pairs * 9 // (8 * n_processes))
        while True:
            shown = min(shown, n_pairs)
            values, indices, offsets = find(shown)
            every = distributed.gathered(torch.nn.functional.pad(values, (0, shown - len(values))), axis)
            nth = every.view(-1).kthvalue(every.numel() - n_pairs + 1).values
            least_shown = every.amin(1)
            if shown == n_pairs or not bool(((least_shown >= nth) & (least_shown > 0)).any()):
                break
            shown *= 2
        above, equal = every > nth, (every == nth) & (every > 0)
        places = equal.view(-1).cumsum(0).view_as(equal)  # of equal ones those of the first process
        kept = above | (equal & (places <= n_pairs - above.sum()))
        ours = kept[distributed.rank(axis), : len(values)]
        offsets = torch.nn.functional.pad(ours.cumsum(0), (1, 0))[offsets]
        return (values[ours], indices[ours], offsets), every[kept]

    def first_row(self, n_rows: int) -> int:
        return distributed.rank("data") * n_rows

    def all_rows(self, tensor: Tensor) -> Tensor:
        return distributed.gathered(tensor, "data").view(-1)

    def rows_at(self, rows: Tensor, places: Tensor) -> Tensor:
        own = places - self.first_row(len(rows))
        ours = (own >= 0) & (own < len(rows))
        return distributed.sum_(torch.where(ours[:, None], rows[own.clamp(0, len(rows) - 1)], 0.0), "data")

    def mean(self, *tensors: Tensor) -> Sequence[Tensor]:
        together = torch.cat([tensor.view(-1) for tensor in tensors]) / self.n_parts
        parts = distributed.sum_(together, "data").split([tensor.numel() for tensor in tensors])
        return [part.view_as(tensor) for part, tensor in zip(parts, tensors, strict=True)]

    def mean_gradient_(self, grad: Tensor, *, of_latents: bool) -> None:
        axis: distributed.Axis | None = "data" if of_latents else None
        if distributed.world_size(axis) > 1:
            distributed.sum_(grad.div_(self.n_parts), axis)

    def begin_alike_(self, tensor: Tensor, *, of_latents: bool) -> None:
        distributed.from_first_(tensor, "data" if of_latents else None)


class LatentShards(RowParts):
    """Each process has a shard of the latents, and all rows or a part of them."""

    def __init__(self) -> None:
        super().__init__()
        self.n_shards = distributed.world_size("latents")
        self.rank = distributed.rank("latents")

    def first_latent(self, sae: SparseAutoencoder) -> int:
        return self.rank * sae.d_sae

    def all_latents(self, tensor: Tensor) -> Tensor:
        return distributed.gathered(tensor, "latents").view(-1)

    def sum(self, tensor: Tensor) -> Tensor:
        return distributed.sum_(tensor, "latents")

    def max(self, number: int) -> int:
        return distributed.largest(number, "latents")

    def largest(self, values: Tensor, indices: Tensor, k: int) -> Ragged:
        indices, order = indices.sort(1)
        values = self._own_among_largest(values.gather(1, order), k)
        on = values > 0
        offsets = torch.nn.functional.pad(on.sum(1).cumsum(0), (1, 0))
        return values[on], indices[on], offsets

    def keep_topk_(self, acts: Tensor, k: int, widest: int) -> Tensor:
        shown = min(k, widest)
        indices = acts.topk(min(shown, acts.shape[1]), dim=1).indices.sort(1).values
        values = acts.gather(1, indices).relu_()
        kept = self._own_among_largest(torch.nn.functional.pad(values, (0, shown - values.shape[1])), k)
        return acts.zero_().scatter_(1, indices, kept[:, : values.shape[1]])

    def _own_among_largest(self, values: Tensor, k: int) -> Tensor:
        """values float[B c], 0 but for the k largest of the L · c of each row; of equal ones the first."""
        every = distributed.gathered(values, "latents").transpose(0, 1)
        kept = kernels.keep_topk_(every.flatten(1), k)
        return kept.view_as(every)[:, self.rank]

    def decode(self, latent_acts: Tensor, W_dec: Tensor, base: Tensor, sign: int = 1) -> Tensor:
        return self.sum(latent_acts @ W_dec).add_(base, alpha=sign)

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
        assert offsets is not None
        recons_grad = self.sum(kernels.decode(values, indices, offsets, W_dec))
        sq_error = torch_ops.recons_grad_(recons_grad, acts, b_dec, scale)
        return TokenPass(recons_grad, torch_ops.pair_grads(recons_grad, W_dec, indices, offsets), sq_error)

    def forward(self, sae: SparseAutoencoder, acts: Tensor, k: int | None) -> SAEOutput:
        latents = sae.encode(acts)
        if k is not None:
            pairs = self.largest(*latents.topk_view(), k)
            latents = SparseLatents(*pairs, d_sae=sae.d_sae, batch_shape=latents.batch_shape)
        recons = self.sum(kernels.decode(latents.values, latents.indices, latents.offsets, sae.W_dec))
        return SAEOutput(recons.add_(sae.b_dec), latents)

    def total_norm(self, grads: Sequence[Tensor], shared: Tensor) -> Tensor:
        norm = torch.nn.utils.get_total_norm
        of_latents = self.sum(norm([grad for grad in grads if grad is not shared]).square())
        return (of_latents + norm([shared]).square()).sqrt()

    def shard_config(self, config: SAEConfig) -> SAEConfig:
        n = self.n_shards
        if config.d_sae % n:
            raise ValueError(
                f"latent_shards expected a divisor of d_sae={config.d_sae}, got {n}: choose "
                f"d_sae={-(-config.d_sae // n) * n}"
            )
        width = config.d_sae // n
        return dataclasses.replace(config, d_sae=width, k=None if config.k is None else min(config.k, width))

    @torch.no_grad()
    def shard(self, sae: SparseAutoencoder) -> SparseAutoencoder:
        own = SparseAutoencoder(self.shard_config(sae.config))
        for name, of in sae.config.parameters.items():
            own.get_parameter(name).copy_(self.part(sae.get_parameter(name), of.latent_dim))
        return own

    @torch.no_grad()
    def whole_sae(self, shard: SparseAutoencoder, config: SAEConfig) -> SparseAutoencoder:
        with torch.device("cpu" if self.speaks else "meta"):
            sae = SparseAutoencoder(config)
        for name, of in config.parameters.items():
            if (values := self.whole(shard.get_parameter(name), of.latent_dim)) is not None:
                sae.get_parameter(name).copy_(values)
        return sae

    def part(self, tensor: Tensor, dim: int | None) -> Tensor:
        width = 0 if dim is None else tensor.shape[dim] // self.n_shards
        return tensor if dim is None else tensor.narrow(dim, self.rank * width, width)

    def whole(self, tensor: Tensor, dim: int | None) -> Tensor | None:
        if distributed.rank("data"):
            return None
        if dim is None:
            return None if self.rank else tensor.detach().cpu()
        together = distributed.end_to_end(tensor.movedim(dim, 0), "latents")
        return None if together is None else together.movedim(0, dim)
