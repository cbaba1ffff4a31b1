"""What an SAE is: the parameters of each kind, by name, shape and role."""

import pytest
import torch

import saelens_lite as sl
from saelens_lite.sae.config import BIAS, KINDS, LOG_GAIN, PARAMETERS, THRESHOLD, WEIGHT

SHARED = {"W_enc": (2, 5), "W_dec": (5, 2), "b_dec": (2,)}
OF_LATENTS = {
    "relu": {"b_enc": BIAS},
    "topk": {"b_enc": BIAS},
    "jumprelu": {"b_enc": BIAS, "threshold": THRESHOLD},
    "gated": {"b_gate": BIAS, "b_mag": BIAS, "r_mag": LOG_GAIN},
}


@pytest.mark.parametrize("kind", KINDS)
def test_the_parameters_of_each_kind(kind):
    config = sl.SAEConfig(d_model=2, d_sae=5, kind=kind, k=3 if kind == "topk" else None)
    expected = SHARED | dict.fromkeys(OF_LATENTS[kind], (5,))
    assert config.shapes == expected
    sae = sl.SparseAutoencoder(config)
    assert {name: tuple(of.shape) for name, of in sae.named_parameters()} == expected
    assert all(not of.any() for of in sae.parameters())
    assert sae.W_enc.stride() == (1, 2)  # latent-major


def test_what_scales_with_the_activations_and_where_latents_lie():
    for kind, of_latents in OF_LATENTS.items():
        roles = {"W_enc": WEIGHT, "W_dec": WEIGHT, "b_dec": BIAS} | of_latents
        assert {name: of.role for name, of in PARAMETERS[kind].items()} == roles
        for name, of in PARAMETERS[kind].items():
            assert of.in_units_of_acts == (name in ("b_dec", "b_enc", "threshold", "b_gate", "b_mag"))
            assert of.latent_dim == {"W_enc": 1, "W_dec": 0, "b_dec": None}.get(name, 0)
            assert of.of_latents == (name in of_latents)


def test_an_sae_in_other_units_gives_the_same_in_them():
    """By hand, for one latent: 2 · (3 − 1) + 4 = 8, and 5 · 8 + 1 = 41."""
    for scale in (1.0, 10.0):
        sae = sl.SparseAutoencoder(sl.SAEConfig(d_model=1, d_sae=1, kind="relu"))
        values = {"W_enc": 2.0, "W_dec": 5.0, "b_dec": 1.0, "b_enc": 4.0}
        with torch.no_grad():
            for name, of in sae.config.parameters.items():
                sae.get_parameter(name).fill_(values[name] * (scale if of.in_units_of_acts else 1))
        assert sae(torch.tensor([3.0 * scale])).recons.item() == 41 * scale
