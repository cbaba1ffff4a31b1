"""The refit phase: what an L1 penalty shrank is fitted again without it, while every firing stays as it is.

The penalty selects latents, and makes those that it selects too weak: they reconstruct less than they could
("feature suppression", Wright & Sharkey 2024, "Addressing Feature Suppression in SAEs"). Once the selection
is learned it stays, and decoder rows, one positive magnitude a latent and b_dec learn from the squared error
alone, over the pairs that fire: least squares after selection (Belloni & Chernozhukov 2013), the end of the
relaxed lasso (Meinshausen 2007). ReLU is homogeneous, so that magnitudes fold into the encoder.
"""

from __future__ import annotations

import torch
from torch import Tensor

from saelens_lite.device import in_float64
from saelens_lite.kernels import dispatch as kernels
from saelens_lite.sae.autoencoder import SparseAutoencoder

from ..comm import ALONE, Alone
from ..config import TrainConfig
from .few_pairs import pairs_of
from .kind import Kind, StepStats, unit_rows_

_REACH, _FASTEST = 8.0, 0.1
"""Log magnitudes move by at most half of the first over a phase whose rate falls to 0, and by the second a
step; directions by as much for their length. Against least squares (fvu .1563), a reach of 8 ended at .1585,
.1567 and .1563 after 60, 240 and 1,000 steps, one of 2 at .1587, .1573 and .1571."""


class Refit(Kind):
    """A ReLU SAE whose encoder is frozen: W_enc, b_enc, and b_dec where the encoder subtracts it.

    sae: W_dec, of unit rows, and b_dec learn in place. The SAE as it stands is `folded`
    n_steps: of the phase; train_decoder: False leaves W_dec's directions as they are
    """

    sae_kind = "relu"
    sparsity_name = "l1"
    trains_encoder = False
    adam_beta2 = 0.95
    """Gradients fall towards a minimum here, and 0.999 remembers how large they were: on a small case the
    distance from least squares is 2e-10 for 8 % of the error after 3,000 steps; on batches all do alike."""
    shared_state = frozenset({"centre"})

    def __init__(
        self,
        sae: SparseAutoencoder,
        config: TrainConfig,
        comm: Alone = ALONE,
        n_steps: int = 1,
        train_decoder: bool = True,
    ) -> None:
        super().__init__(sae, config, comm)
        self.n_steps = n_steps
        self.train_decoder = train_decoder
        self.centre = sae.b_dec.detach().clone()
        self._folded: SparseAutoencoder | None = None
        self.log_magnitude = torch.nn.Parameter(torch.zeros_like(sae.b_enc))
        if not config.unit_decoder:
            with torch.no_grad():
                self.log_magnitude.copy_(self.decoder_norms().log())
            unit_rows_(sae.W_dec)

    def parameters(self) -> dict[str, torch.nn.Parameter]:
        trained = {"W_dec": self.sae.W_dec} if self.train_decoder else {}
        return {**trained, "b_dec": self.sae.b_dec, "log_magnitude": self.log_magnitude}

    @property
    def rates(self) -> dict[str, float]:
        """Magnitudes and directions reach what they must in a phase of any length, whatever lr is."""
        rate = min(_FASTEST, _REACH / self.n_steps)
        return {"log_magnitude": rate, "W_dec": rate / self.sae.d_model**0.5}

    def gradients(self, acts: Tensor, dead: Tensor | None, ramp: float) -> tuple[StepStats, Tensor]:
        """Of the reconstruction alone, over the pairs that fire."""
        sae, n_tokens, inputs = self.sae, len(acts), acts - self.centre
        latent_acts = torch.addmm(sae.b_enc, inputs, sae.W_enc).relu_()
        tokens, indices, offsets = pairs_of(latent_acts > 0)
        values = latent_acts[tokens, indices] * self.log_magnitude.exp()[indices]
        recons_grad, pair_grads, sq_error = self.comm.token_pass(
            acts, values, indices, sae.W_dec, sae.b_dec, 2.0 / n_tokens, offsets=offsets
        )
        dec_grad, _, _, fired = kernels.latent_pass(
            recons_grad, inputs, values, pair_grads, indices, sae.W_dec, offsets=offsets
        )
        sae.W_dec.grad = dec_grad if self.train_decoder else None
        sae.b_dec.grad = recons_grad.sum(0) / self.comm.n_shards
        self.log_magnitude.grad = torch.zeros_like(sae.b_enc).index_add_(0, indices, pair_grads * values)
        l1, l0 = values.sum() / n_tokens, acts.new_tensor(len(values) / n_tokens)
        return StepStats(sq_error.mean(), self.comm.sum(l1), self.comm.sum(l0)), fired

    def after_update(self) -> None:
        self._folded = None
        if self.train_decoder:
            unit_rows_(self.sae.W_dec)

    def folded(self) -> SparseAutoencoder:
        """The SAE of unit rows that reconstructs so: each latent's encoder times its magnitude.

        b_enc takes up that the encoder now subtracts another b_dec. In float64, so that a latent fires as
        before but where its pre-activation is all but 0. A checkpoint asks for it several times: it is made
        once a step, and not to be altered.
        """
        if self._folded is None:
            self._folded = self._fold()
        return self._folded

    @torch.no_grad()
    def _fold(self) -> SparseAutoencoder:
        sae, magnitude = self.sae, in_float64(self.log_magnitude).exp()
        W_enc, b_enc, b_dec = map(in_float64, (sae.W_enc, sae.b_enc, sae.b_dec))
        shift = (b_dec - in_float64(self.centre)) @ W_enc
        folded = SparseAutoencoder(sae.config).to(sae.device)
        folded.W_enc.copy_(W_enc * magnitude)
        folded.b_enc.copy_((b_enc + shift) * magnitude)
        folded.W_dec.copy_(sae.W_dec)
        folded.b_dec.copy_(sae.b_dec)
        return folded

    def state(self) -> dict[str, Tensor]:
        return {"log_magnitude": self.log_magnitude.detach(), "centre": self.centre}

    @torch.no_grad()
    def load_state(self, state: dict[str, Tensor]) -> None:
        self._folded = None
        self.log_magnitude.copy_(state["log_magnitude"])
        self.centre = state["centre"]
