"""TODO clause of train/kinds/workspace.py."""

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


"""Every chunk reads all of W_enc: on a GPU a thousand rows hide that, on a CPU the chunk should stay in the
cache."""


class Pairs(NamedTuple):
    """The latents of a batch as the kernels take them: [B k], or [P] with offsets int64[B + 1]. Values are 0
    or more."""

    values: Tensor
    indices: Tensor
    offsets: Tensor | None = None


class Workspace:
    """Memory that a sparse step uses again: asking the system for it anew costs a tenth of a step on a CPU.

    What a step returned or left in `.grad` is overwritten by the next step with the same workspace.
    """

    def __init__(self, comm: Alone = ALONE) -> None:
        self.comm = comm
        self.inputs: Tensor | None = None
        self.products: Tensor | None = None
        self.tokens: TokenPass | None = None
        self.latents: LatentPass | None = None

    def fit(self, acts: Tensor, sae: SparseAutoencoder) -> None:
        """Make or keep buffers for a batch: inputs float[B d_model], on a CPU products float[chunk d_sae]."""
        if self.inputs is None or self.inputs.shape != acts.shape:
            self.inputs = torch.empty_like(acts)
            if (
                acts.device.type == "cpu"
            ):  # elsewhere torch keeps freed memory, and the product may never be written
                self.products = _product_chunk(acts, sae.d_sae)
            self.tokens = self.latents = None

    def pass_over(
        self, acts: Tensor, inputs: Tensor, pairs: Pairs, sae: SparseAutoencoder, scale: float
    ) -> None:
        """Decode and send scale/2 · Σ ‖recons − acts‖² back to the weights: fills `tokens` and `latents`."""
        values, indices, offsets = pairs
        reuse = (
            self.tokens if self.tokens is not None and len(self.tokens.pair_grads) == values.numel() else None
        )
        self.tokens = self.comm.token_pass(acts, values, indices, sae.W_dec, sae.b_dec, scale, reuse, offsets)
        recons_grad, pair_grads, _ = self.tokens
        self.latents = kernels.latent_pass(
            recons_grad,
            inputs,
            values.view(-1),
            pair_grads,
            indices.view(-1),
            sae.W_dec,
            self.latents,
            offsets,
        )


class ProductChunks:
    """inputs @ W_enc, a chunk of rows at a time: float[rows d_sae], overwritten by the next. May be gone
    through again."""

    def __init__(self, sae: SparseAutoencoder, inputs: Tensor, workspace: Tensor | None = None) -> None:
        self.sae, self.inputs = sae, inputs
        self.workspace = _product_chunk(inputs, sae.d_sae) if workspace is None else workspace

    def __iter__(self) -> Iterator[Tensor]:
        for rows in self.inputs.split(len(self.workspace)):
            yield torch.mm(rows, self.sae.W_enc, out=self.workspace[: len(rows)])


def _product_chunk(inputs: Tensor, d_sae: int) -> Tensor:
    return inputs.new_empty(chunk_rows(inputs, d_sae), d_sae)


def chunk_rows(inputs: Tensor, n: int) -> int:
    """How many rows of n latents fit a chunk."""
    chunk_bytes = _CHUNK_BYTES.get(inputs.device.type, _CHUNK_BYTES_ELSEWHERE)
    return max(1, min(len(inputs), chunk_bytes // (n * inputs.element_size())))
