"""What the kinds share in a training step: gradients written into `.grad` by hand, without autograd's dense tensors.

The sparse kinds (topk, batchtopk, matryoshka) never build a second [B, d_sae] tensor and take no gradient of the input:
each selects its pairs (token, latent) and leaves the rest to the functions here. Every kind is tested against autograd.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from saelens_lite import distributed, kernels
from saelens_lite.sae import SparseAutoencoder

from . import parallel
from .config import TrainConfig

_CHUNK_BYTES = {"cpu": 32 * 2**20}
_CHUNK_BYTES_ELSEWHERE = 512 * 2**20
"""Every chunk reads all of W_enc: on a GPU a thousand rows hide that, on a CPU the chunk should stay in the cache."""

SPARSE_BELOW = {"cpu": 1 / 16, "cuda": 1 / 48, "cuda tf32": 1 / 256}
"""Share of latents on below which a dense kind turns to the kernels, by device; "cuda tf32" where torch may multiply float32
in tf32. Assign to change it.

cpu: measured. On a core four dense products take as long as the kernels at 0.1 (d_model 192 and 512), four to six times as
long at 0.01.
cuda: by arithmetic, on an H100, not measured. A dense product of one token takes 2 n d / R s, a gather of its k float32 rows
4 k d / (0.7 · 3.35e12) s: equal at k/n = 1.2e12 / R. R is about 5e13 in float32 and 3e14 in tf32.
"""
_SPARSE_BELOW_ELSEWHERE = 1 / 256


class Pairs(NamedTuple):
    """The latents of a batch as the kernels take them: [B k], or [P] with offsets int64[B + 1]. Values are 0 or more."""

    values: Tensor
    indices: Tensor
    offsets: Tensor | None = None


class Workspace:
    """Memory that a sparse step uses again: asking the system for it anew costs a tenth of a step on a CPU.

    What a step returned or left in `.grad` is overwritten by the next step with the same workspace.
    """

    def __init__(self) -> None:
        self.inputs: Tensor | None = None
        self.products: Tensor | None = None
        self.tokens: kernels.TokenPass | None = None
        self.latents: kernels.LatentPass | None = None

    def fit(self, acts: Tensor, sae: SparseAutoencoder) -> None:
        """Make or keep buffers for a batch: inputs float[B d_model], on a CPU products float[chunk d_sae]."""
        if self.inputs is None or self.inputs.shape != acts.shape:
            self.inputs = torch.empty_like(acts)
            if acts.device.type == "cpu":  # elsewhere torch keeps freed memory, and the product may never be written
                self.products = _product_chunk(acts, sae.d_sae)
            self.tokens = self.latents = None

    def pass_over(self, acts: Tensor, inputs: Tensor, pairs: Pairs, sae: SparseAutoencoder, scale: float) -> None:
        """Decode and send scale/2 · Σ ‖recons − acts‖² back to the weights: fills `tokens` and `latents`."""
        values, indices, offsets = pairs
        reuse = self.tokens if self.tokens is not None and len(self.tokens.pair_grads) == values.numel() else None
        self.tokens = parallel.token_pass(acts, values, indices, sae.W_dec, sae.b_dec, scale, reuse, offsets)
        recons_grad, pair_grads, _ = self.tokens
        self.latents = kernels.latent_pass(
            recons_grad, inputs, values.view(-1), pair_grads, indices.view(-1), sae.W_dec, self.latents, offsets
        )


class StepStats(NamedTuple):
    """Device scalars of one step, in the scale of training: no wait for the device until they are read.

    reconstruction: mean ‖x − x̂‖²; sparsity: the loss that `Kind.sparsity_name` names, before its coefficient;
    l0: latents a token. All of them over all shards of the latents.
    """

    reconstruction: Tensor
    sparsity: Tensor
    l0: Tensor


class ProductChunks:
    """inputs @ W_enc, a chunk of rows at a time: float[rows d_sae], overwritten by the next. May be gone through again."""

    def __init__(self, sae: SparseAutoencoder, inputs: Tensor, workspace: Tensor | None = None) -> None:
        self.sae, self.inputs = sae, inputs
        self.workspace = _product_chunk(inputs, sae.d_sae) if workspace is None else workspace

    def __iter__(self) -> Iterator[Tensor]:
        for rows in self.inputs.split(len(self.workspace)):
            yield torch.mm(rows, self.sae.W_enc, out=self.workspace[: len(rows)])


def _product_chunk(inputs: Tensor, d_sae: int) -> Tensor:
    return inputs.new_empty(_chunk_rows(inputs, d_sae), d_sae)


def _chunk_rows(inputs: Tensor, n: int) -> int:
    """How many rows of n latents fit a chunk."""
    chunk_bytes = _CHUNK_BYTES.get(inputs.device.type, _CHUNK_BYTES_ELSEWHERE)
    return max(1, min(len(inputs), chunk_bytes // (n * inputs.element_size())))


def add_auxk(
    sae: SparseAutoencoder,
    inputs: Tensor,
    error: Tensor,
    dead: Tensor | None,
    latents: kernels.LatentPass,
    config: TrainConfig,
) -> Tensor:
    """Add the gradients of config.aux_coeff · AuxK to those in `latents`, in place; its loss float[""].

    inputs: float[B d_model], acts − b_dec; error: float[B d_model], acts − recons
    dead: int64[m], latents that AuxK may use, or None for no AuxK
    """
    if dead is None or not distributed.largest(dead.numel(), "latents"):
        return error.new_zeros(())
    k_aux = config.k_aux or max(1, sae.d_model // 2)
    loss, aux_dec, aux_enc, aux_bias = _auxk(sae, inputs, error, dead, k_aux, config.aux_coeff)
    latents.dec_grad.index_add_(0, dead, kernels.remove_parallel(aux_dec, sae.W_dec[dead]))
    latents.enc_grad.index_add_(0, dead, aux_enc)
    latents.bias_grad.index_add_(0, dead, aux_bias)
    return loss


def _auxk(
    sae: SparseAutoencoder, inputs: Tensor, error: Tensor, dead: Tensor, k_aux: int, aux_coeff: float
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """AuxK over the dead latents: loss float[""], gradients of W_dec[dead], W_enc[:, dead]ᵀ float[m d], b_enc[dead].

    The gradient reaches the encoder as well as the decoder: without that a dead latent never learns to fire.
    Gao et al. 2024, section 2.4. By chunks of tokens; dense over the dead, since k_aux is a large part of them, unless few
    of them come above 0 (looked into on a CPU only: elsewhere the host would wait for their number). dec_grad may or may
    not have a part along the decoder's rows.
    """
    widest, n_tokens = distributed.largest(dead.numel(), "latents"), inputs.shape[0]
    scale, no_bias = 2.0 * aux_coeff / n_tokens, torch.zeros_like(sae.b_dec)
    dec_rows, enc_rows, bias = sae.W_dec[dead], sae.W_enc.T[dead], sae.b_enc[dead]
    loss, bias_grad = error.new_zeros(()), torch.zeros_like(bias)
    dec_grad, enc_grad = torch.zeros_like(dec_rows), torch.zeros_like(enc_rows)
    chunk_rows = _chunk_rows(inputs, widest)
    for x, e in zip(inputs.split(chunk_rows), error.split(chunk_rows), strict=True):
        latent_acts = parallel.keep_topk_(torch.addmm(bias, x, enc_rows.T), k_aux, widest)
        if inputs.device.type == "cpu" and (pairs := few_pairs(latent_acts > 0)) is not None:
            values = latent_acts[pairs.tokens, pairs.indices]
            tokens = parallel.token_pass(e, values, pairs.indices, dec_rows, no_bias, scale, offsets=pairs.offsets)
            latents = kernels.latent_pass(
                tokens.recons_grad, x, values, tokens.pair_grads, pairs.indices, dec_rows, offsets=pairs.offsets
            )
            loss += tokens.sq_error.sum()
            dec_grad, enc_grad = dec_grad.add_(latents.dec_grad), enc_grad.add_(latents.enc_grad)
            bias_grad += latents.bias_grad
            continue
        residual = parallel.decode(latent_acts, dec_rows, e, sign=-1)
        loss += residual.square().sum()
        residual_grad = residual.mul_(scale)
        pre_grad = torch.ops.aten.threshold_backward(residual_grad @ dec_rows.T, latent_acts, 0)  # cut where ReLU was 0
        dec_grad.addmm_(latent_acts.T, residual_grad)
        enc_grad.addmm_(pre_grad.T, x)
        bias_grad += pre_grad.sum(0)
    return loss / n_tokens, dec_grad, enc_grad, bias_grad


class PairPlaces(NamedTuple):
    """Tokens int64[P] and latents int64[P] of ragged pairs, with offsets int64[B + 1]."""

    tokens: Tensor
    indices: Tensor
    offsets: Tensor


def few_pairs(mask: Tensor) -> PairPlaces | None:
    """The pairs where bool[B d_sae] is set, if the kernels are faster on so few than dense products, else None."""
    if not mask.numel():
        return None
    device = mask.device.type
    if device == "cuda" and torch.get_float32_matmul_precision() != "highest":
        device = "cuda tf32"
    if int(mask.count_nonzero()) > SPARSE_BELOW.get(device, _SPARSE_BELOW_ELSEWHERE) * mask.numel():
        return None
    tokens, indices = mask.nonzero(as_tuple=True)
    return PairPlaces(tokens, indices, torch.searchsorted(tokens, torch.arange(len(mask) + 1, device=mask.device)))


def write_gradients(
    sae: SparseAutoencoder,
    dec_grad: Tensor,
    enc_grad: Tensor,
    product_grad: Tensor,
    b_dec_grad: Tensor,
    *,
    train_decoder: bool,
) -> None:
    """Into `.grad` of W_dec, W_enc and b_dec; of a shard, its part of that of b_dec.

    dec_grad, enc_grad: float[d_sae d_model], latent-major; product_grad: float[d_sae], of inputs @ W_enc, summed over tokens
    b_dec_grad: float[d_model], ∂L/∂recons summed over tokens, for every reconstruction that adds b_dec
    """
    sae.W_dec.grad = dec_grad if train_decoder else None
    sae.W_enc.grad = enc_grad.T
    # The second part, as b_dec is subtracted from the input, is a sum over latents; the first is the same in all shards.
    sae.b_dec.grad = b_dec_grad / parallel.n_shards() - sae.W_enc @ product_grad


def default_dead_after_tokens(n_tokens: int, d_sae: int, k: int | None) -> int:
    """Tokens of silence after which a latent is dead, in a run of n_tokens: min(10M, 10 % of it).

    With a floor for kinds that have a k: a latent of d_sae that takes its even share of k firings a token fires once in
    d_sae / k tokens. In ten times that it is silent by chance with probability e⁻¹⁰, in less a wide dictionary would look
    dead because the run is short.
    """
    return max(1, min(10_000_000, n_tokens // 10), 0 if k is None else 10 * d_sae // k)


class DeadTracker:
    """Training tokens since each latent last fired; int64[d_sae].

    On CUDA `update` sends the number of dead latents to the host, so that `dead` does not wait for what was queued since.
    """

    def __init__(self, d_sae: int, dead_after_tokens: int, device: torch.device) -> None:
        self.tokens_since_fired = torch.zeros(d_sae, dtype=torch.int64, device=device)
        self.dead_after_tokens = dead_after_tokens
        self._arrived = torch.cuda.Event() if device.type == "cuda" else None
        self._n_dead = torch.zeros((), dtype=torch.int64, pin_memory=self._arrived is not None)
        self._counted_version = -1

    def update(self, fired: Tensor, n_tokens: int) -> None:
        """fired: bool[d_sae], for a batch of n_tokens."""
        self.tokens_since_fired += n_tokens
        self.tokens_since_fired.masked_fill_(fired, 0)
        if self._arrived is not None:
            self._n_dead.copy_(self._silent().sum(), non_blocking=True)
            self._arrived.record()
            self._counted_version = self.tokens_since_fired._version

    def dead(self) -> Tensor:
        """int64[m]: latents silent for at least dead_after_tokens."""
        if self._arrived is None or self._counted_version != self.tokens_since_fired._version:  # or changed from outside
            return self._silent().nonzero().view(-1)
        self._arrived.synchronize()
        return torch.nonzero_static(self._silent(), size=int(self._n_dead)).view(-1)

    def _silent(self) -> Tensor:
        return self.tokens_since_fired >= self.dead_after_tokens


@torch.no_grad()
def unit_rows_(W_dec: Tensor) -> None:
    """Rescale each decoder row to norm 1, in place; float[d_sae d_model]."""
    W_dec.div_(torch.linalg.vector_norm(W_dec, dim=1, keepdim=True))
