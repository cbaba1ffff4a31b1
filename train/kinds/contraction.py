"""The contractive penalty, which keeps small how much the latents change with the input.

Rifai et al. 2011, "Contractive Auto-Encoders: Explicit Invariance During Feature Extraction": the mean over
tokens of ‖∂latent_acts/∂acts‖², squared and summed over all entries. A latent that is on has the derivative
gain_i · w_i, with w_i its column of W_enc and gain exp(r_mag) for gated, 1 for all others; one that is off
has 0. So this is Σ_i rate_i · gain_i² · ‖w_i‖², over latents, of which rate_i is the share of tokens that
have it on. Which are on is taken as given.
"""

from __future__ import annotations

from torch import Tensor

from saelens_lite.sae.autoencoder import SparseAutoencoder

from ..config import TrainConfig


def add_contraction(sae: SparseAutoencoder, rates: Tensor, config: TrainConfig) -> None:
    """Add the gradient of contractive_coeff · penalty to `.grad` of W_enc and, for gated, r_mag.

    rates: float[d_sae], the share of tokens that have each latent on
    Where decoder norms are free, their squares weigh the latents, as if they were folded into W_enc already;
    W_dec then gets a part of the gradient.
    """
    weights = 2 * config.contractive_coeff * rates
    if sae.kind == "gated":
        weights = weights * (2 * sae.r_mag).exp()
        sae.r_mag.grad += weights * sae.W_enc.square().sum(0)
    if not config.unit_decoder:
        if not config.freeze_decoder:
            sae.W_dec.grad.addcmul_((weights * sae.W_enc.square().sum(0))[:, None], sae.W_dec)
        weights = weights * sae.W_dec.square().sum(1)
    sae.W_enc.grad.T.addcmul_(weights[:, None], sae.W_enc.T)  # latent-major, as W_enc is stored
