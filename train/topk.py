"""TopK: the k largest pre-activations of each token, and AuxK for the dead. Gao et al. 2024, arXiv:2406.04093."""

from __future__ import annotations

import torch
from torch import Tensor

from saelens_lite import kernels
from saelens_lite.sae import SparseAutoencoder

from .config import TrainConfig
from .kinds import Kind
from .step import Pairs, ProductChunks, StepStats, Workspace, add_auxk, write_gradients


class TopK(Kind):
    """Selection, decoding and both weight gradients by the kernels, over k pairs a token."""

    sae_kind = "topk"

    def __init__(self, sae: SparseAutoencoder, config: TrainConfig) -> None:
        super().__init__(sae, config)
        self.workspace = Workspace()

    @property
    def uses_dead(self) -> bool:
        return self.config.aux_coeff > 0

    def gradients(self, acts: Tensor, dead: Tensor | None, ramp: float) -> tuple[StepStats, Tensor]:
        """Of reconstruction + aux_coeff · AuxK."""
        sae, work, scale = self.sae, self.workspace, 2.0 / len(acts)
        work.fit(acts, sae)
        inputs = torch.sub(acts, sae.b_dec, out=work.inputs)
        pairs = self.select(inputs)
        work.pass_over(acts, inputs, pairs, sae, scale)
        recons_grad, _, sq_error = work.tokens
        auxk = add_auxk(sae, inputs, recons_grad / -scale, dead, work.latents, self.config)
        self.write(work.latents, recons_grad.sum(0))
        l0 = (pairs.values > 0).sum() / len(acts)
        return StepStats(sq_error.mean(), auxk, l0), work.latents.fired

    def write(self, latents: kernels.LatentPass, b_dec_grad: Tensor) -> None:
        """Gradients of the latent pass into `.grad`; b_dec_grad float[d_model] by way of the reconstructions."""
        dec_grad, enc_grad, bias_grad, _ = latents
        self.sae.b_enc.grad = bias_grad
        write_gradients(self.sae, dec_grad, enc_grad, bias_grad, b_dec_grad, train_decoder=self.train_decoder)

    def select(self, inputs: Tensor) -> Pairs:
        """Encode chunk by chunk: the k largest of each token, after ReLU."""
        return self.select_k(inputs, self.config.k)

    def select_k(self, inputs: Tensor, k: int) -> Pairs:
        if (screened := kernels.screened_topk(inputs, self.sae.W_enc.T, self.sae.b_enc, k)) is not None:
            return Pairs(screened[0].relu_(), screened[1])
        n_tokens = len(inputs)
        values, indices = inputs.new_empty(n_tokens, k), torch.empty(n_tokens, k, dtype=torch.int64, device=inputs.device)
        start = 0
        for products in ProductChunks(self.sae, inputs, self.workspace.products):
            rows = slice(start, start := start + len(products))
            values[rows], indices[rows] = kernels.select_topk(products, self.sae.b_enc, k)
        return Pairs(values.relu_(), indices)


KIND = TopK
