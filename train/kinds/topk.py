"""TopK: the k largest pre-activations of each token, and AuxK for the dead. Gao et al., arXiv:2406.04093.

Multi-TopK, section 6.2 there, adds the reconstruction from 4 k latents: the SAE can then be used with more
than k of them.
"""

from __future__ import annotations

import torch
from torch import Tensor

from saelens_lite.kernels import dispatch as kernels
from saelens_lite.kernels.reference import LatentPass
from saelens_lite.sae.autoencoder import SparseAutoencoder

from ..comm import ALONE, Alone
from ..config import TrainConfig
from .auxk import add_auxk
from .kind import Kind, StepStats
from .workspace import Pairs, ProductChunks, Workspace

_MULTI = 4
"""Multi-TopK reconstructs from this many times k latents too."""


class TopK(Kind):
    """Selection, decoding and both weight gradients by the kernels, over k pairs a token."""

    sae_kind = "topk"
    fields = frozenset(
        {"k", "k_anneal_fraction", "k_anneal_start", "multi_topk_coeff", "aux_coeff", "k_aux", "gather_dtype"}
    )
    keeps_k = True

    def __init__(self, sae: SparseAutoencoder, config: TrainConfig, comm: Alone = ALONE) -> None:
        super().__init__(sae, config, comm)
        self.workspace, self.wide_workspace = (Workspace(comm, config.gather_dtype) for _ in range(2))
        self.k = config.k

    @classmethod
    def check(cls, config: TrainConfig) -> None:
        config.expect(config.d_sae is None or config.k <= config.d_sae, "k", f"at most d_sae={config.d_sae}")

    def begin(self, step: int, n_steps: int) -> None:
        super().begin(step, n_steps)
        config, anneal_steps = self.config, round(self.config.k_anneal_fraction * n_steps)
        self.k = annealed_k(config.k, config.k_anneal_start, step, anneal_steps, self.d_sae)

    @property
    def uses_dead(self) -> bool:
        return self.config.aux_coeff > 0

    def gradients(self, acts: Tensor, dead: Tensor | None, ramp: float) -> tuple[StepStats, Tensor]:
        """Of reconstruction + aux_coeff · AuxK + multi_topk_coeff · reconstruction from 4 k latents."""
        sae, work, scale = self.sae, self.workspace, 2.0 / len(acts)
        work.fit(acts, sae)
        inputs = self.encoder_inputs(acts, work.inputs)
        targets = self.targets(acts, inputs)
        if multi := self.config.multi_topk_coeff:
            pairs, wide = self.select_nested(inputs, self.k, min(_MULTI * self.k, self.d_sae))
        else:
            pairs, wide = self.select(inputs), None
        work.pass_over(targets, inputs, pairs, sae, scale)
        recons_grad, _, sq_error = work.tokens
        auxk = add_auxk(self, inputs, recons_grad / -scale, dead, work.latents)
        recons_grads = [recons_grad]
        if wide is not None:
            self.wide_workspace.pass_over(targets, inputs, wide, sae, multi * scale)
            for grad, wide_grad in zip(work.latents[:3], self.wide_workspace.latents[:3], strict=True):
                grad += wide_grad
            recons_grads.append(self.wide_workspace.tokens.recons_grad)
        self.write(work.latents, sum(grad.sum(0) for grad in recons_grads))
        self.write_skip_gradient(inputs, *recons_grads)
        self.contract_pairs(pairs.values, pairs.indices, len(acts))
        l0 = self.comm.sum((pairs.values > 0).sum(dtype=acts.dtype)) / len(acts)
        return StepStats(sq_error.mean(), auxk, l0), work.latents.fired

    def write(self, latents: LatentPass, b_dec_grad: Tensor) -> None:
        """Gradients of the latent pass into `.grad`; b_dec_grad: float[d_model], from the reconstructions."""
        dec_grad, enc_grad, bias_grad, _ = latents
        self.sae.b_enc.grad = bias_grad
        self.write_gradients(dec_grad, enc_grad, bias_grad, b_dec_grad)

    def select(self, inputs: Tensor) -> Pairs:
        return Pairs(*self.comm.largest(*self.largest(inputs, self.k), self.k))

    def select_nested(self, inputs: Tensor, k: int, wide_k: int) -> tuple[Pairs, Pairs]:
        values, indices = self.largest(inputs, wide_k)
        few, places = values.topk(min(k, values.shape[1]), dim=1, sorted=False)
        wide = Pairs(*self.comm.largest(values, indices, wide_k))
        return Pairs(*self.comm.largest(few, indices.gather(1, places), k)), wide

    def largest(self, inputs: Tensor, k: int) -> tuple[Tensor, Tensor]:
        """values float[B k] and indices int64[B k], after ReLU; k ≤ d_sae."""
        k = min(k, self.sae.d_sae)
        if (screened := kernels.screened_topk(inputs, self.sae.W_enc.T, self.sae.b_enc, k)) is not None:
            return screened[0].relu_(), screened[1]
        values, start = inputs.new_empty(len(inputs), k), 0
        indices = torch.empty_like(values, dtype=torch.int64)
        for products in ProductChunks(self.sae, inputs, self.workspace.products):
            rows = slice(start, start := start + len(products))
            values[rows], indices[rows] = kernels.select_topk(products, self.sae.b_enc, k)
        return values.relu_(), indices


KIND = TopK


def annealed_k(k: int, start: float, step: int, anneal_steps: int, d_sae: int) -> int:
    """k at a step counted from 0: it falls linearly from start · k, at most d_sae, over anneal_steps."""
    ahead = max(0.0, 1 - step / anneal_steps) if anneal_steps else 0.0
    return k + round(ahead * (min(d_sae, start * k) - k))
