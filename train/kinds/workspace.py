"""The pairs of a batch, and memory that a step uses again."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from saelens_lite.kernels import dispatch as kernels
from saelens_lite.kernels.reference import LatentPass, TokenPass
from saelens_lite.sae.autoencoder import SparseAutoencoder

from ..comm import ALONE, Alone

_CHUNK_BYTES = {"cpu": 32 * 2**20}
_CHUNK_BYTES_ELSEWHERE = 512 * 2**20
"""Every chunk reads all of W_enc. On a GPU a thousand rows hide that; on a CPU the
chunk should fit the cache."""


class Pairs(NamedTuple):
    """The latents of a batch as the kernels take them: [B k], or [P] with offsets int64[B + 1]."""

    values: Tensor  # 0 or more
    indices: Tensor
    offsets: Tensor | None = None


class Workspace:
    """Memory that a sparse step uses again; new memory from the system costs a tenth of a step on a CPU.

    gather_dtype: "bfloat16" for copies of decoder rows, inputs and error gradients, of which each pair reads
        a row; "float32" for these themselves. Sums, and all that is kept, have the dtype of the rows
    The next step overwrites what the last one returned or left in `.grad`.
    """

    def __init__(self, comm: Alone = ALONE, gather_dtype: str = "float32") -> None:
        self.comm, self.gather_dtype = comm, gather_dtype
        self.inputs: Tensor | None = None
        self.products: Tensor | None = None
        self.tokens: TokenPass | None = None
        self.latents: LatentPass | None = None

    def fit(self, acts: Tensor, sae: SparseAutoencoder) -> None:
        """Keep inputs float[B d_model], and products on a CPU, that fit a batch, or make new ones."""
        if self.inputs is None or len(self.inputs) != len(acts):
            self.inputs = acts.new_empty(len(acts), sae.d_model)
            if acts.device.type == "cpu":  # elsewhere torch keeps freed memory, and may need no product
                self.products = _product_chunk(acts, sae.d_sae)
            self.tokens = self.latents = None

    def pass_over(
        self, targets: Tensor, inputs: Tensor, pairs: Pairs, sae: SparseAutoencoder, scale: float
    ) -> None:
        """Decode and send scale/2 · Σ ‖recons − targets‖² to the weights: fills `tokens` and `latents`."""
        values, indices, offsets = pairs
        fits = self.tokens is not None and len(self.tokens.pair_grads) == values.numel()
        reuse = self.tokens if fits else None
        table = self.gathered(sae.W_dec)
        self.tokens = self.comm.token_pass(targets, values, indices, table, sae.b_dec, scale, reuse, offsets)
        values, indices, pair_grads = values.view(-1), indices.view(-1), self.tokens.pair_grads
        rows = self.gathered(self.tokens.recons_grad), self.gathered(inputs)
        self.latents = kernels.latent_pass(
            *rows, values, pair_grads, indices, sae.W_dec, self.latents, offsets
        )

    def gathered(self, rows: Tensor) -> Tensor:
        """The rows as they are gathered; rounded alike where no kernel reads two dtypes at a time."""
        if self.gather_dtype == "float32":
            return rows
        copies = rows.to(getattr(torch, self.gather_dtype))
        return copies if kernels.choice(rows) == "triton" else copies.to(rows.dtype)


class ProductChunks:
    """inputs @ W_enc by chunks float[rows d_sae], each overwritten by the next; can be iterated again."""

    def __init__(self, sae: SparseAutoencoder, inputs: Tensor, workspace: Tensor | None = None) -> None:
        self.sae, self.inputs = sae, inputs
        self.workspace = _product_chunk(inputs, sae.d_sae) if workspace is None else workspace

    def __iter__(self) -> Iterator[Tensor]:
        for rows in self.inputs.split(len(self.workspace)):
            yield torch.mm(rows, self.sae.W_enc, out=self.workspace[: len(rows)])


def _product_chunk(inputs: Tensor, d_sae: int) -> Tensor:
    return inputs.new_empty(chunk_rows(inputs, d_sae), d_sae)


def chunk_rows(inputs: Tensor, n: int) -> int:
    chunk_bytes = _CHUNK_BYTES.get(inputs.device.type, _CHUNK_BYTES_ELSEWHERE)
    return max(1, min(len(inputs), chunk_bytes // (n * inputs.element_size())))
