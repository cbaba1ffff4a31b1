"""Penalties of losses, against autograd, closed forms and the SAE's own."""

import math
from types import SimpleNamespace

import pytest
import torch

import saelens_lite as sl
from saelens_lite.autoencoders.penalties import (
    contraction,
    estimated_contraction,
    normal_divergence,
    rate_divergence,
)
from saelens_lite.sae.config import SAEConfig
from saelens_lite.train.kinds.contraction import add_contraction
from tests.autoencoders.test_network import made


def jacobian_norms(encode, rows):
    """‖J‖² of each row by autograd."""
    return torch.stack([torch.autograd.functional.jacobian(encode, row).square().sum() for row in rows])


@pytest.fixture
def rows():
    return torch.randn(7, 5, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


@pytest.mark.parametrize("activation", ["sigmoid", "relu", "linear"])
def test_the_contraction_of_one_layer_is_autograds_jacobian(rows, activation):
    one = made(5, kind="contractive", code_size=4, activation=activation).double()
    found = contraction(one.code(rows), one.encoder[0].weight, activation)
    torch.testing.assert_close(found, jacobian_norms(one.code, rows), rtol=0, atol=1e-10)


def test_hutchinsons_estimate_is_unbiased(rows):
    deep = made(5, kind="contractive", hidden=(6,), code_size=4, activation="sigmoid").double()
    draws = torch.Generator().manual_seed(0)
    found = torch.stack([estimated_contraction(deep.code, rows, draws).detach() for _ in range(2000)])
    error = (found.mean(0) - jacobian_norms(deep.code, rows)) / (found.std(0) / len(found) ** 0.5)
    assert float(error.abs().max()) < 3.5  # the largest of seven
    assert float(error.square().mean().sqrt()) < 2


def test_the_estimate_has_a_gradient_where_one_is_taken(rows):
    deep = made(5, kind="contractive", hidden=(6,), code_size=4, activation="sigmoid").double()
    deep.loss(rows, torch.Generator().manual_seed(0)).penalty.backward()
    assert float(deep.encoder[0].weight.grad.abs().sum()) > 0
    with torch.no_grad():
        assert not deep.loss(rows, torch.Generator().manual_seed(0)).penalty.requires_grad


def test_an_saes_contraction_is_the_same_number():
    """Its gradient is written by hand; by autograd of ours it is the same."""
    sae = sl.SparseAutoencoder(SAEConfig(d_model=5, d_sae=4, kind="relu"))
    acts = torch.randn(9, 5, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        sae.W_enc.normal_(generator=torch.Generator().manual_seed(3))
    codes = torch.relu(acts @ sae.W_enc)
    for parameter in sae.parameters():
        parameter.grad = torch.zeros_like(parameter)
    settings = SimpleNamespace(contractive_coeff=1.0, unit_decoder=True, freeze_decoder=False)
    add_contraction(sae, (codes > 0).float().mean(0), settings)
    weights = sae.W_enc.detach().T.clone().requires_grad_()
    contraction(codes.detach(), weights, "relu").mean().backward()
    torch.testing.assert_close(sae.W_enc.grad.T, weights.grad)


def test_the_divergence_of_rates_by_hand():
    """ρ = 1/4, means 1/2 and 1/4: ¼ log ½ + ¾ log 3⁄2, and 0."""
    codes = torch.tensor([[0.25, 0.25], [0.75, 0.25]])
    expected = 0.25 * math.log(0.5) + 0.75 * math.log(1.5)
    assert float(rate_divergence(codes, 0.25)) == pytest.approx(expected, rel=1e-5)


def test_the_divergence_of_normals_is_torchs():
    mean, log_var = torch.randn(2, 6, 3, generator=torch.Generator().manual_seed(0)).double()
    q = torch.distributions.Normal(mean, (log_var / 2).exp())
    p = torch.distributions.Normal(torch.zeros_like(mean), torch.ones_like(mean))
    torch.testing.assert_close(normal_divergence(mean, log_var), torch.distributions.kl_divergence(q, p))
