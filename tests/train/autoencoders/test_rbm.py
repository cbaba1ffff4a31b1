"""Restricted Boltzmann machines, against the enumeration of all their states."""

import itertools

import pytest
import torch

from saelens_lite.train.autoencoders.rbm import RBM

STATES_V = torch.tensor(list(itertools.product([0.0, 1.0], repeat=6))).double()
STATES_H = torch.tensor(list(itertools.product([0.0, 1.0], repeat=4))).double()


def machine(seed=0, scale=0.7):
    generator = torch.Generator().manual_seed(seed)
    sizes = [(4, 6), (4,), (6,)]
    return [torch.randn(*size, generator=generator, dtype=torch.float64) * scale for size in sizes]


def energies(weight, c, b):
    """float64[64 16]: E of every state, entry by entry."""
    return torch.stack([torch.stack([-(v @ b) - h @ c - h @ weight @ v for h in STATES_H]) for v in STATES_V])


def test_the_free_energy_is_that_of_all_hidden_states():
    parameters = machine()
    exact = -(-energies(*parameters)).logsumexp(1)
    torch.testing.assert_close(RBM(*parameters).free_energy(STATES_V), exact, rtol=0, atol=1e-10)


def log_likelihood(parameters, rows):
    joint = -energies(*parameters)
    of_states = joint.logsumexp(1) - joint.logsumexp((0, 1))
    places = (rows @ 2.0 ** torch.arange(5, -1, -1).double()).long()
    return of_states[places].mean()


def test_statistics_give_the_exact_gradient_of_the_likelihood():
    """∂ log p(v) = −∂F(v) + E_v′ ∂F(v′), the expectation over all 64 states."""
    parameters = [p.requires_grad_() for p in machine()]
    rows = STATES_V[[3, 17, 60]]
    expected = torch.autograd.grad(log_likelihood(parameters, rows), parameters)
    with torch.no_grad():
        rbm = RBM(*parameters)
        weights = (-rbm.free_energy(STATES_V)).softmax(0)
        each = [rbm.statistics(v[None]) for v in STATES_V]
        of_model = [sum(w * s[i] for w, s in zip(weights, each, strict=True)) for i in range(3)]
        found = [data - model for data, model in zip(rbm.statistics(rows), of_model, strict=True)]
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-10)


@pytest.mark.parametrize("mean", [False, True])
def test_many_updates_average_to_one_step_of_gibbs_sampling(mean):
    rbm, v = RBM(*machine()), STATES_V[[21]]
    p_h = torch.where(STATES_H.bool(), rbm.hidden(v), 1 - rbm.hidden(v)).prod(1)
    means = rbm.visible(STATES_H)
    p_next = sum(p * torch.where(STATES_V.bool(), m, 1 - m).prod(1) for p, m in zip(p_h, means, strict=True))
    assert float(p_next.sum()) == pytest.approx(1)
    each = [rbm.statistics(state[None]) for state in STATES_V]
    if mean:
        p_next, each = p_h, [rbm.statistics(m[None]) for m in means]
    draws, n = torch.Generator().manual_seed(0), 4000
    found = [rbm.divergence(v, draws, mean)[1] for _ in range(n)]
    errors = []
    for i in range(3):
        expected = sum(p * s[i] for p, s in zip(p_next, each, strict=True)) - rbm.statistics(v)[i]
        drawn = torch.stack([f[i] for f in found])
        errors.append(((drawn.mean(0) - expected) / (drawn.std(0) / n**0.5)).flatten())
    errors = torch.cat(errors)
    assert float(errors.abs().max()) < 3.7  # the largest of 34
    assert float(errors.square().mean().sqrt()) < 1.5


def test_training_raises_the_enumerated_likelihood():
    parameters, rows = machine(scale=0.1), STATES_V[[0, 7, 56, 63]].repeat(8, 1)
    before, draws = log_likelihood(parameters, rows), torch.Generator().manual_seed(0)
    for _ in range(1000):
        _, gradients = RBM(*parameters).divergence(rows, draws)
        for parameter, gradient in zip(parameters, gradients, strict=True):
            parameter -= 0.3 * gradient
    after = log_likelihood(parameters, rows)
    assert float(before) < -4 and float(after) > -2.5  # log ¼ is the most, −1.39


def test_gaussian_units_have_the_free_energy_of_their_normal():
    """One visible, one hidden, both Gaussian: −log ∫ exp(−E) dh by a sum over a fine grid, less ½ log 2π."""
    rbm = RBM(*(torch.tensor(x).double() for x in ([[0.4]], [0.3], [0.2])), True, True)
    v, grid = torch.tensor([[1.5]]).double(), torch.linspace(-30, 30, 20_001, dtype=torch.float64)
    energy = (v - 0.2).square().sum() / 2 - grid * (0.4 * 1.5 + 0.3) + grid.square() / 2
    exact = -torch.logsumexp(-energy, 0) - torch.log(grid[1] - grid[0])
    exact += 0.5 * torch.log(torch.tensor(2 * torch.pi))
    torch.testing.assert_close(rbm.free_energy(v)[0], exact, rtol=0, atol=1e-8)
    assert float(rbm.hidden(v)) == pytest.approx(0.9) and float(rbm.visible(v)) == pytest.approx(0.8)


@pytest.mark.parametrize("gaussian", [(False, False), (True, False), (False, True), (True, True)])
def test_statistics_are_the_negative_gradient_of_the_free_energy(gaussian):
    parameters, rows = [p.requires_grad_() for p in machine()], STATES_V[[5, 33]] + 0.25
    rbm = RBM(*parameters, *gaussian)
    expected = torch.autograd.grad(-rbm.free_energy(rows).mean(), parameters)
    for found, other in zip(rbm.statistics(rows), expected, strict=True):
        torch.testing.assert_close(found.detach(), other)
