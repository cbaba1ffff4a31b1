"""The same SAE in other units: inputs scaled, decoder rows brought to norm 1."""

from __future__ import annotations

import torch
from torch import Tensor

from saelens_lite.device import in_float64
from saelens_lite.sae.autoencoder import SparseAutoencoder


@torch.no_grad()
def fold_scale(sae: SparseAutoencoder, scale: float) -> SparseAutoencoder:
    """The SAE that does to x what `sae` does to scale · x, in x's own units.

    Activations are homogeneous in (x, biases, thresholds), so only those are divided.
    """
    folded = type(sae)(sae.config).to(sae.device)
    for name, of in sae.config.parameters.items():
        parameter = sae.get_parameter(name)
        folded.get_parameter(name).copy_(parameter / scale if of.in_units_of_acts else parameter)
    return folded


@torch.no_grad()
def fold_pair(
    transcoder: SparseAutoencoder, scales: tuple[float, float], centre: Tensor
) -> SparseAutoencoder:
    """The transcoder of x to y, of one that maps scales[0] · (x − centre) to scales[1] · y.

    Latents are divided by scales[1], so that decoder rows keep their norms: W_enc and W_skip times
    scales[0] / scales[1], biases and thresholds / scales[1]. The centre goes into the biases:
    b_enc − centre · W_enc and b_dec − centre · W_skipᵀ. In float64, as the centre's part may be far larger
    than what it leaves.
    centre: float[d_model], in the units of x
    """
    s_in, s_out = scales
    folded = type(transcoder)(transcoder.config).to(transcoder.device)
    state = {name: in_float64(parameter) for name, parameter in transcoder.named_parameters()}
    for name, of in transcoder.config.parameters.items():
        if of.in_units_of_acts:
            state[name] = state[name] / s_out
    centre = in_float64(centre.to(transcoder.device))
    state["W_enc"] = state["W_enc"] * (s_in / s_out)
    state["b_enc"] = state["b_enc"] - centre @ state["W_enc"]
    if "W_skip" in state:
        state["W_skip"] = state["W_skip"] * (s_in / s_out)
        state["b_dec"] = state["b_dec"] - centre @ state["W_skip"].T
    for name, parameter in folded.named_parameters():
        parameter.copy_(state[name])
    return folded


_SAME_NORM = 2**-8
"""Norms that differ by less, as a share of the largest, count as equal: unit rows kept in bfloat16 do."""
_FLOAT32_ROUNDING = 1e-6
"""Norms that differ by less are folded row by row in TopK too: selections then differ by rounding only."""


@torch.no_grad()
def fold_decoder_norms_(sae: SparseAutoencoder) -> SparseAutoencoder:
    """Bring decoder rows to norm 1 and let the latents carry the norms, in place; reconstructions stay.

    A latent is on where its pre-activation is above 0 or its threshold, whatever scales both. TopK compares
    latents with each other, so its rows must have one norm, by which all are divided. A latent whose row is
    zero writes nothing; it is silent afterwards.
    raises: ValueError for a TopK SAE whose rows have different norms, before anything is changed
    """
    norms = torch.linalg.vector_norm(sae.W_dec, dim=1)
    written = norms > 0
    if sae.kind == "topk" and written.any():
        least, most = float(norms[written].min()), float(norms.max())
        if least < (1 - _SAME_NORM) * most:
            raise ValueError(
                f"expected decoder rows of one norm in a TopK SAE, got norms from {least:.3g} to {most:.3g}: "
                "with rows of norm 1 it would keep other latents, and be another SAE. Normalise its rows "
                "where it was trained, or train a fresh SAE (init_from=None)"
            )
        if least < (1 - _FLOAT32_ROUNDING) * most:
            norms = norms[written].mean() * written
    sae.W_dec.div_(torch.where(written, norms, 1)[:, None])
    sae.W_enc.mul_(norms)
    for name, of in sae.config.parameters.items():
        if of.of_latents and of.in_units_of_acts:
            sae.get_parameter(name).mul_(norms)
    return sae
