"""One training step's gradients, written into `.grad` by hand: what autograd would give, without its dense tensors.

`topk_step` never builds a second [B, d_sae] tensor and takes no gradient of the input; `relu_step` is the dense case.
Each is tested against autograd on the losses of losses.py.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from saelens_lite import kernels
from saelens_lite.sae import SparseAutoencoder

_CHUNK_BYTES = 32 * 2**20


class Workspace:
    """Memory that topk_step uses again: asking the system for it anew costs a tenth of a step on a CPU.

    What a step returned or left in `.grad` is overwritten by the next step with the same workspace.
    """

    def __init__(self) -> None:
        self.inputs: Tensor | None = None
        self.products: Tensor | None = None
        self.tokens: kernels.TokenPass | None = None
        self.latents: kernels.LatentPass | None = None

    def fit(self, acts: Tensor, sae: SparseAutoencoder) -> None:
        """Make or keep buffers for a batch: inputs float[B d_model], products float[chunk d_sae]."""
        if self.inputs is None or self.inputs.shape != acts.shape:
            chunk_rows = max(1, min(len(acts), _CHUNK_BYTES // (sae.d_sae * acts.element_size())))
            self.inputs, self.products = torch.empty_like(acts), acts.new_empty(chunk_rows, sae.d_sae)
            self.tokens = self.latents = None


class StepStats(NamedTuple):
    """Device scalars of one step, in the scale of training: no wait for the device until they are read.

    reconstruction: mean ‖x − x̂‖²; sparsity: Σ latents a token (relu) or the AuxK loss (topk); l0: latents a token
    """

    reconstruction: Tensor
    sparsity: Tensor
    l0: Tensor


def topk_step(
    sae: SparseAutoencoder, acts: Tensor, dead: Tensor | None, *, k_aux: int, aux_coeff: float, train_decoder: bool = True,
    workspace: Workspace | None = None,
) -> tuple[StepStats, Tensor]:
    """Gradients of reconstruction + aux_coeff · AuxK for a batch.

    acts: float[B d_model]; dead: int64[m], latents that AuxK may use, or None for no AuxK
    returns: the stats and fired bool[d_sae]
    """
    assert sae.config.k is not None and sae.config.apply_b_dec_to_input
    if dead is None:
        dead = torch.empty(0, dtype=torch.int64, device=acts.device)
    n_tokens, scale = acts.shape[0], 2.0 / acts.shape[0]
    work = workspace or Workspace()
    work.fit(acts, sae)
    inputs = torch.sub(acts, sae.b_dec, out=work.inputs)
    values, indices = _select(sae, inputs, sae.config.k, work.products)

    work.tokens = kernels.token_pass(acts, values, indices, sae.W_dec, sae.b_dec, scale, work.tokens)
    recons_grad, pair_grads, sq_error = work.tokens
    work.latents = kernels.latent_pass(
        recons_grad, inputs, values.view(-1), pair_grads, indices.view(-1), sae.W_dec, work.latents
    )
    dec_grad, enc_grad, bias_grad, fired = work.latents
    aux = acts.new_zeros(())
    if dead.numel():
        error = recons_grad / -scale
        aux, aux_dec, aux_enc, aux_bias = _auxk(sae, inputs, error, dead, k_aux, aux_coeff)
        dec_grad.index_add_(0, dead, kernels.remove_parallel(aux_dec, sae.W_dec[dead]))
        enc_grad.index_add_(0, dead, aux_enc)
        bias_grad.index_add_(0, dead, aux_bias)

    sae.W_dec.grad = dec_grad if train_decoder else None
    sae.W_enc.grad = enc_grad.T
    sae.b_enc.grad = bias_grad
    sae.b_dec.grad = recons_grad.sum(0) - sae.W_enc @ bias_grad  # the second part: b_dec is subtracted from the input
    l0 = (values > 0).sum() / n_tokens
    return StepStats(sq_error.mean(), aux, l0), fired


def _select(sae: SparseAutoencoder, inputs: Tensor, k: int, workspace: Tensor) -> tuple[Tensor, Tensor]:
    """Encode chunk by chunk: latents float[B k] after ReLU, and their indices.

    workspace: float[chunk d_sae]
    """
    n_tokens, chunk_rows = inputs.shape[0], workspace.shape[0]
    values, indices = inputs.new_empty(n_tokens, k), torch.empty(n_tokens, k, dtype=torch.int64, device=inputs.device)
    for start in range(0, n_tokens, chunk_rows):
        rows = slice(start, min(start + chunk_rows, n_tokens))
        products = torch.mm(inputs[rows], sae.W_enc, out=workspace[: rows.stop - start])
        values[rows], indices[rows] = kernels.select_topk(products, sae.b_enc, k)
    return values.relu_(), indices


def _auxk(
    sae: SparseAutoencoder, inputs: Tensor, error: Tensor, dead: Tensor, k_aux: int, aux_coeff: float
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """AuxK over the dead latents: loss float[""], gradients of W_dec[dead], W_enc[:, dead]ᵀ float[m d], b_enc[dead].

    The gradient reaches the encoder as well as the decoder: without that a dead latent never learns to fire.
    Gao et al. 2024, section 2.4. Dense over the dead, since k_aux is a large part of them, by chunks of tokens.
    """
    m, n_tokens = dead.numel(), inputs.shape[0]
    dec_rows, enc_rows, bias = sae.W_dec[dead], sae.W_enc.T[dead], sae.b_enc[dead]
    loss, bias_grad = error.new_zeros(()), torch.zeros_like(bias)
    dec_grad, enc_grad = torch.zeros_like(dec_rows), torch.zeros_like(enc_rows)
    chunk_rows = max(1, _CHUNK_BYTES // (m * inputs.element_size()))
    for x, e in zip(inputs.split(chunk_rows), error.split(chunk_rows), strict=True):
        latent_acts = torch.addmm(bias, x, enc_rows.T).relu_()
        if m > k_aux:
            kept = torch.topk(latent_acts, k_aux, dim=1, sorted=False)
            latent_acts = torch.zeros_like(latent_acts).scatter_(1, kept.indices, kept.values)
        residual = torch.addmm(e, latent_acts, dec_rows, beta=-1)
        loss += residual.square().sum()
        residual_grad = residual.mul_(2.0 * aux_coeff / n_tokens)
        pre_grad = (residual_grad @ dec_rows.T).mul_(latent_acts > 0)
        dec_grad.addmm_(latent_acts.T, residual_grad)
        enc_grad.addmm_(pre_grad.T, x)
        bias_grad += pre_grad.sum(0)
    return loss / n_tokens, dec_grad, enc_grad, bias_grad


def relu_step(
    sae: SparseAutoencoder, acts: Tensor, *, l1_coeff: float, train_decoder: bool = True
) -> tuple[StepStats, Tensor]:
    """Gradients of reconstruction + l1_coeff · L1 for a batch; five products, none for the input.

    acts: float[B d_model]
    returns: the stats and fired bool[d_sae]
    """
    assert sae.config.apply_b_dec_to_input
    n_tokens = acts.shape[0]
    inputs = acts - sae.b_dec
    latent_acts = torch.addmm(sae.b_enc, inputs, sae.W_enc).relu_()
    error = torch.addmm(sae.b_dec, latent_acts, sae.W_dec).sub_(acts)
    reconstruction = torch.linalg.vecdot(error, error).mean()
    recons_grad = error.mul_(2.0 / n_tokens)

    # Signs are 0 or 1: they count firings and cut the gradient, and become that gradient in place.
    l1 = latent_acts.sum() / n_tokens
    dec_grad = latent_acts.T @ recons_grad
    signs = latent_acts.sign_()
    n_fired = signs.sum(0)
    pre_grad = (recons_grad @ sae.W_dec.T).add_(l1_coeff / n_tokens).mul_(signs)

    sae.W_dec.grad = kernels.remove_parallel(dec_grad, sae.W_dec) if train_decoder else None
    sae.W_enc.grad = (pre_grad.T @ inputs).T
    sae.b_enc.grad = pre_grad.sum(0)
    sae.b_dec.grad = recons_grad.sum(0) - sae.W_enc @ sae.b_enc.grad
    return StepStats(reconstruction, l1, n_fired.sum() / n_tokens), n_fired > 0


class DeadTracker:
    """Training tokens since each latent last fired; int64[d_sae]."""

    def __init__(self, d_sae: int, dead_after_tokens: int, device: torch.device) -> None:
        self.tokens_since_fired = torch.zeros(d_sae, dtype=torch.int64, device=device)
        self.dead_after_tokens = dead_after_tokens

    def update(self, fired: Tensor, n_tokens: int) -> None:
        """fired: bool[d_sae], for a batch of n_tokens."""
        self.tokens_since_fired += n_tokens
        self.tokens_since_fired.masked_fill_(fired, 0)

    def dead(self) -> Tensor:
        """int64[m]: latents silent for at least dead_after_tokens."""
        return (self.tokens_since_fired >= self.dead_after_tokens).nonzero().view(-1)


@torch.no_grad()
def unit_rows_(W_dec: Tensor) -> None:
    """Rescale each decoder row to norm 1, in place; float[d_sae d_model]."""
    W_dec.div_(torch.linalg.vector_norm(W_dec, dim=1, keepdim=True))
