"""The refit phase: gradients against autograd, a least-squares solution, firings that stay, its border."""

import copy

import pytest
import torch
from pytest import approx
from torch.testing import assert_close

from saelens_lite.kernels.reference import remove_parallel
from saelens_lite.sae.autoencoder import SparseAutoencoder
from saelens_lite.sae.config import SAEConfig
from saelens_lite.train.config import TrainConfig
from saelens_lite.train.kinds.choice import settled
from saelens_lite.train.kinds.gated import Gated
from saelens_lite.train.kinds.kind import unit_rows_
from saelens_lite.train.kinds.refit import Refit
from saelens_lite.train.optimise.initial import initial_sae
from saelens_lite.train.optimise.schedules import Schedule
from saelens_lite.train.optimise.trainer import Trainer

D, N = 8, 24
CONFIG = TrainConfig(kind="relu", lr=0.02, batch_size_rows=64, l1_coeff=1.0, warm_up_steps=0)


def relu_sae(dtype="float64", free_norms=False):
    sae = SparseAutoencoder(SAEConfig(d_model=D, d_sae=N, kind="relu", dtype=dtype))
    gen = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in sae.parameters():
            parameter.copy_(0.5 * torch.randn(parameter.shape, generator=gen, dtype=parameter.dtype))
        if not free_norms:
            unit_rows_(sae.W_dec)
    return sae


def rows(n=64, seed=1, dtype=torch.float64):
    return torch.randn(n, D, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def fires(sae, acts):
    return sae.pre_acts(acts) > 0


@torch.no_grad()
def moved(kind):
    """The kind with magnitudes, rows and b_dec that are not those it began with."""
    gen = torch.Generator().manual_seed(5)
    kind.log_magnitude.add_(0.3 * torch.randn(N, generator=gen, dtype=torch.float64).to(kind.log_magnitude))
    kind.sae.W_dec.add_(0.2 * torch.randn(N, D, generator=gen, dtype=torch.float64).to(kind.sae.W_dec))
    unit_rows_(kind.sae.W_dec)
    kind.sae.b_dec.add_(0.5)
    return kind


def test_the_gradients_are_those_of_autograd():
    kind = moved(Refit(relu_sae(), CONFIG))
    acts, sae = rows(), kind.sae
    with torch.no_grad():
        stats, fired = kind.gradients(acts, None, 1.0)
    parameters = kind.parameters()
    got = {name: p.grad.clone() for name, p in parameters.items()}
    on = ((acts - kind.centre) @ sae.W_enc + sae.b_enc).relu().detach()
    with torch.enable_grad():
        recons = (on * kind.log_magnitude.exp()) @ sae.W_dec + sae.b_dec
        loss = (recons - acts).square().sum(1).mean()
        expected = dict(zip(parameters, torch.autograd.grad(loss, list(parameters.values())), strict=True))
    expected["W_dec"] = remove_parallel(expected["W_dec"], sae.W_dec.detach())
    for name, grad in expected.items():
        assert_close(got[name], grad)
    assert_close(stats.reconstruction, loss.detach())
    assert stats.l0 == approx(float((on > 0).sum()) / len(acts))
    assert torch.equal(fired, (on > 0).any(0))


def test_the_folded_sae_reconstructs_and_fires_as_the_phase_does():
    kind = moved(Refit(relu_sae(), CONFIG))
    acts, sae = rows(), kind.sae
    on = ((acts - kind.centre) @ sae.W_enc + sae.b_enc).relu()
    expected = (on * kind.log_magnitude.exp()) @ sae.W_dec + sae.b_dec
    folded = kind.folded()
    assert_close(folded(acts).recons, expected)
    assert torch.equal(fires(folded, acts), on > 0)
    assert_close(torch.linalg.vector_norm(folded.W_dec, dim=1), torch.ones(N, dtype=torch.float64))


@pytest.mark.parametrize("free_norms", [False, True])
def test_the_phase_begins_with_the_sae_that_was_learned(free_norms):
    sae = relu_sae(free_norms=free_norms)
    acts, before = rows(), sae(rows()).recons.detach().clone()
    config = TrainConfig(kind="relu", unit_decoder=not free_norms)
    assert_close(Refit(sae, config).folded()(acts).recons, before)


@pytest.mark.long
def test_it_ends_at_the_least_squares_solution():
    """Rows times magnitudes and b_dec over all firings are linear in the reconstruction: one solution."""
    sae, acts = relu_sae(), rows(400)
    on = sae.pre_acts(acts).relu().detach()
    solution = torch.linalg.lstsq(torch.cat([on, on.new_ones(len(on), 1)], 1), acts).solution
    schedule = Schedule(
        learning_steps=0, refit_steps=1200, lr=0.03, warm_up_steps=0, decay_steps=1, ramp_steps=0
    )
    trainer = Trainer(sae, CONFIG, 1200, Refit(sae, CONFIG, n_steps=160), schedule)
    for _ in range(1200):
        trainer.update(acts)
    residual = torch.cat([on, on.new_ones(len(on), 1)], 1) @ solution - acts
    recons = trainer.kind.folded()(acts).recons
    assert_close((recons - acts).square().sum(), residual.square().sum(), rtol=1e-6, atol=0)


def trainer_of(n_steps=10, **fields):
    config = TrainConfig(**{"kind": "relu", "lr": 0.02, "batch_size_rows": 64, "l1_coeff": 1.0, **fields})
    sae = initial_sae(SAEConfig(d_model=D, d_sae=N, kind="relu"), rows(dtype=torch.float32), 0, 0.1)
    return Trainer(sae, config, n_steps)


def trained(trainer, n, first=0):
    for step in range(first, first + n):
        trainer.update(rows(seed=step, dtype=torch.float32))
    return trainer


def test_the_last_fifth_of_a_run_changes_no_firing_and_no_bit_of_the_encoder():
    trainer = trained(trainer_of(), 8)
    assert isinstance(trainer.kind, Refit)  # after the 8th of 10 steps
    acts, encoder = rows(500, 9, torch.float32), copy.deepcopy(trainer.sae)
    trained(trainer, 2, 8)
    assert torch.equal(trainer.sae.W_enc, encoder.W_enc) and torch.equal(trainer.sae.b_enc, encoder.b_enc)
    assert not torch.equal(trainer.sae.W_dec, encoder.W_dec)
    assert torch.equal(fires(trainer.kind.folded(), acts), fires(encoder, acts))


def test_without_the_phase_no_bit_changes():
    """8 steps without it are the first 8 of 10 with it."""
    alone, first = trained(trainer_of(8, refit_fraction=0.0), 8), trained(trainer_of(10), 8)
    assert not isinstance(alone.kind, Refit)
    for name, value in alone.sae.state_dict().items():
        assert torch.equal(value, first.sae.state_dict()[name]), name


def test_the_frozen_baseline_keeps_its_directions():
    trainer = trainer_of(freeze_decoder=True)
    before = trainer.sae.W_dec.detach().clone()
    trained(trainer, 10)
    assert_close(trainer.kind.folded().W_dec, before)
    assert (trainer.kind.log_magnitude != 0).any()


def test_schedules_by_hand():
    # 20 steps, the last 4 of them refit: lr rises over 2, falls over a quarter of 16, and again over all of 4
    fields = {"refit_fraction": 0.2, "warm_up_steps": 2, "decay_fraction": 0.25, "l1_warm_up_steps": 3}
    trainer = trainer_of(20, **fields)
    schedule = trainer.schedule
    assert (schedule.learning_steps, schedule.refit_steps) == (16, 4)
    rates = [0.5, *11 * [1], 1, 0.75, 0.5, 0.25, 1, 0.75, 0.5, 0.25]
    assert [schedule.rate_at(step) for step in range(20)] == approx(rates)
    assert [schedule.ramp_at(step) for step in range(4)] == approx([1 / 3, 2 / 3, 1, 1])
    # log magnitudes have 8 / 400 at the peak, or a tenth in a short phase, entries of rows 1 / sqrt(8) of it
    assert Refit(relu_sae(), CONFIG, n_steps=400).rates == approx(
        {"log_magnitude": 0.02, "W_dec": 0.02 / 8**0.5}
    )
    assert Refit(relu_sae(), CONFIG, n_steps=4).rates == approx({"log_magnitude": 0.1, "W_dec": 0.1 / 8**0.5})


@pytest.mark.long
def test_the_refit_recovers_the_scale_that_the_penalty_took():
    """8 orthogonal features of magnitude 2, each on in an eighth of the rows: the true activations are 2."""
    gen = torch.Generator().manual_seed(0)
    on = torch.rand(20_000, D, generator=gen) < 1 / 8
    acts = 2.0 * on.float() @ torch.linalg.qr(torch.randn(D, D, generator=gen)).Q

    def strengths(refit_fraction):
        config = TrainConfig(
            kind="relu", lr=0.01, batch_size_rows=500, l1_coeff=0.5, refit_fraction=refit_fraction
        )
        trainer = Trainer(
            initial_sae(SAEConfig(d_model=D, d_sae=16, kind="relu"), acts[:500], 1, 0.1), config, 600
        )
        for step in range(600):
            trainer.update(acts[500 * step % 20_000 :][:500])
        sae, alone, none = trainer.kind.folded(), acts[on.sum(1) == 1], acts[on.sum(1) == 0]
        with torch.no_grad():  # along the one feature that is on, of norm 2, from where none is on
            moved = sae(alone).recons - sae(none[:1]).recons
            return float((moved * alone).sum(1).mean()) / 2

    assert strengths(0.2) == approx(2.0, rel=0.02)
    assert strengths(0.0) < 1.9


def test_a_kind_whose_magnitudes_do_not_shrink_has_no_phase_and_refuses_one():
    config = TrainConfig(kind="gated", lr=0.01)
    kind = Gated(SparseAutoencoder(SAEConfig(d_model=D, d_sae=N, kind="gated")), config)
    assert Schedule.of(config, kind, 100).refit_steps == 0
    with pytest.raises(ValueError, match="refit_fraction"):
        settled(TrainConfig(kind="gated", refit_fraction=0.1))
