"""SparseLatents: the latents of a batch as (value, latent) pairs, token by token.

The layout is that of an embedding bag: `values[offsets[b]:offsets[b+1]]` are token b's activations and
`indices` at the same places name the latents. TopK is the uniform case, with a free `[batch, k]` view.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import prod

import torch
from torch import Tensor

from saelens_lite.misfits import names_misfits


@dataclass(frozen=True, slots=True, eq=False)
class SparseLatents:
    """Latent activations of a batch, stored only where they may be non-zero.

    values: float[nnz]; a latent fires where its value is not 0. Zeros may be stored: TopK survivors that
        ReLU cut
    indices: int64[nnz]; offsets: int64[batch + 1], as above
    batch_shape: leading shape of what was encoded; prod(batch_shape) == batch
    k: pairs stored for each token, or None if tokens differ
    """

    values: Tensor
    indices: Tensor
    offsets: Tensor
    d_sae: int
    batch_shape: tuple[int, ...]
    k: int | None = None

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the dense tensor that it stands for: (*batch_shape, d_sae)."""
        return (*self.batch_shape, self.d_sae)

    @classmethod
    def from_topk(
        cls, values: Tensor, indices: Tensor, d_sae: int, batch_shape: tuple[int, ...] | None = None
    ) -> SparseLatents:
        """From float[batch k] and int64[batch k]; no copy when they are contiguous."""
        if values.ndim != 2 or values.shape != indices.shape:
            raise ValueError(
                f"from_topk expected values and indices [batch k] of one shape, got {list(values.shape)} and "
                f"{list(indices.shape)}"
            )
        batch, k = values.shape
        offsets = torch.arange(batch + 1, device=values.device) * k
        return cls(values.reshape(-1), indices.reshape(-1), offsets, d_sae, batch_shape or (batch,), k)

    @classmethod
    def from_dense(cls, latent_acts: Tensor) -> SparseLatents:
        """From float[... d_sae]: the non-zeros, by ascending latent."""
        flat = latent_acts.reshape(-1, latent_acts.shape[-1])
        rows, indices = flat.nonzero(as_tuple=True)
        counts = torch.bincount(rows, minlength=flat.shape[0])
        offsets = torch.cat([counts.new_zeros(1), counts.cumsum(0)])
        return cls(flat[rows, indices], indices, offsets, flat.shape[1], tuple(latent_acts.shape[:-1]))

    @classmethod
    def cat(cls, parts: list[SparseLatents], batch_shape: tuple[int, ...]) -> SparseLatents:
        """Consecutive parts of a batch as one."""
        if len(parts) == 1:
            return replace(parts[0], batch_shape=batch_shape)
        offsets, end = [parts[0].offsets[:1]], 0
        for part in parts:
            offsets.append(part.offsets[1:] + end)
            end += part.values.numel()
        values, indices = (
            torch.cat([getattr(part, name) for part in parts]) for name in ("values", "indices")
        )
        k = parts[0].k if len({part.k for part in parts}) == 1 else None
        return cls(values, indices, torch.cat(offsets), parts[0].d_sae, batch_shape, k)

    @property
    def batch(self) -> int:
        return prod(self.batch_shape)

    def topk_view(self) -> tuple[Tensor, Tensor]:
        """values float[batch k] and indices int64[batch k], without a copy.

        raises: ValueError when tokens hold different numbers of pairs
        """
        if self.k is None:
            raise ValueError(
                "topk_view expected k pairs for every token, got ragged latents; use to_dense() or offsets"
            )
        return self.values.view(self.batch, self.k), self.indices.view(self.batch, self.k)

    def row_ids(self) -> Tensor:
        """int64[nnz]: the token of each pair, counted over the flattened batch."""
        rows = torch.arange(self.batch, device=self.indices.device)
        if self.k is not None:
            return rows.repeat_interleave(self.k)
        return rows.repeat_interleave(self.offsets.diff(), output_size=self.indices.numel())

    def to_dense(self) -> Tensor:
        """float[... d_sae]."""
        dense = self.values.new_zeros(self.batch, self.d_sae)
        dense = dense.index_put((self.row_ids(), self.indices), self.values)
        return dense.view(*self.batch_shape, self.d_sae)

    @names_misfits
    def columns(self, latents: Tensor) -> Tensor:
        """float[... m]: the activations of different latents int64[m]."""
        n = len(latents)
        # the others share a column that is cut off again
        column = torch.full((self.d_sae,), n, device=latents.device)
        column[latents] = torch.arange(n, device=latents.device)
        found = self.values.new_zeros(self.batch, n + 1)
        found = found.index_put((self.row_ids(), column[self.indices]), self.values, accumulate=True)
        return found[:, :n].view(*self.batch_shape, n)

    def l0(self) -> Tensor:
        """float32[...]: how many latents fire on each token."""
        fires = (self.values != 0).to(torch.float32)
        return fires.new_zeros(self.batch).index_add_(0, self.row_ids(), fires).view(self.batch_shape)

    def with_values(self, values: Tensor) -> SparseLatents:
        """The same pairs with other values, float[nnz]."""
        return replace(self, values=values)
