"""The variational autoencoder: its loss by torch.distributions, its bound, samples and lines between rows."""

import math

import pytest
import torch

from tests.autoencoders.test_network import made


@pytest.fixture
def vae():
    vae = made(4, kind="variational", hidden=(5,), code_size=2, beta=2.0).double()
    with torch.no_grad():
        vae.log_output_var.fill_(-1.0)
    return vae


@pytest.fixture
def rows():
    return torch.randn(6, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def test_the_loss_is_that_of_torchs_distributions(vae, rows):
    mean, log_var = vae.posterior(rows)
    q = torch.distributions.Normal(mean, (log_var / 2).exp())
    noise = torch.empty_like(mean).normal_(generator=torch.Generator().manual_seed(7))
    p = torch.distributions.Normal(vae.reconstruct(q.loc + q.scale * noise), math.exp(-0.5))
    divergence = torch.distributions.kl_divergence(q, torch.distributions.Normal(0.0, 1.0)).sum(1).mean()
    loss = vae.loss(rows, torch.Generator().manual_seed(7))
    torch.testing.assert_close(loss.error, -p.log_prob(rows).sum(1).mean())
    torch.testing.assert_close(loss.penalty, 2 * divergence)


def test_free_bits_are_free(rows):
    """Units that carry less than 8 bits cost 8 bits, and pull at nothing."""
    vae = made(4, kind="variational", hidden=(5,), code_size=2, free_bits=8.0).double()
    loss = vae.loss(rows, torch.Generator().manual_seed(0))
    assert loss.penalty.item() == pytest.approx(2 * 8 * math.log(2))
    loss.penalty.backward()
    assert all(p.grad is None or not p.grad.any() for p in vae.parameters())


def test_the_bound_lies_below_the_likelihood_of_a_linear_one(rows):
    """y = V z + c: x ~ N(c, V Vᵀ + σ² I), whose log density the bound cannot exceed on average."""
    vae = made(4, kind="variational", hidden=(), code_size=2).double()
    decoder = vae.decoder[0]
    covariance = decoder.weight @ decoder.weight.T + torch.eye(4, dtype=torch.float64)
    exact = torch.distributions.MultivariateNormal(decoder.bias, covariance).log_prob(rows).detach()
    assert bool((vae.elbo(rows, n_draws=1000) < exact + 0.05).all())


def test_the_exact_posterior_of_a_linear_one_makes_the_bound_tight(rows):
    """V = v e₁, σ² = 1: the posterior is N(v x₁ / (1 + v²), 1 / (1 + v²)), and the bound log p(x)."""
    vae, v = made(4, kind="variational", hidden=(), code_size=1).double(), 2.0
    with torch.no_grad():
        vae.decoder[0].weight.zero_()[0, 0] = v
        vae.encoder[0].weight.zero_()[0, 0] = v / (1 + v * v)
        vae.log_var.weight.zero_()
        vae.log_var.bias.fill_(-math.log(1 + v * v))
    covariance = torch.diag(torch.tensor([1 + v * v, 1, 1, 1], dtype=torch.float64))
    exact = torch.distributions.MultivariateNormal(torch.zeros(4).double(), covariance).log_prob(rows)
    torch.testing.assert_close(vae.elbo(rows, n_draws=4000), exact, rtol=0, atol=0.1)


def test_samples_depend_on_the_seed_alone_and_lines_end_at_reconstructions(vae, rows):
    vae = vae.float()
    rows = rows.float()
    assert torch.equal(vae.sample(5, seed=3), vae.sample(5, seed=3))
    assert vae.sample(5, seed=3).shape == (5, 4) and not torch.equal(vae.sample(5), vae.sample(5, seed=3))
    line = vae.interpolate(rows[0], rows[1], 3)
    torch.testing.assert_close(line[[0, 2]], vae(rows[:2]).recons)
    torch.testing.assert_close(line[1], vae.decode(vae.encode(rows[:2]).mean(0)))
