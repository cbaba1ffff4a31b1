"""A weight that holds l0 at a target: by hand, where it lands, and after a resume."""

import pytest
import torch
from pytest import approx

from saelens_lite.sae.autoencoder import SparseAutoencoder
from saelens_lite.sae.config import SAEConfig
from saelens_lite.train.config import TrainConfig
from saelens_lite.train.kinds.choice import kind_class, settled
from saelens_lite.train.optimise.initial import initial_sae
from saelens_lite.train.optimise.schedules import Schedule
from saelens_lite.train.optimise.trainer import Trainer

D, N, B = 16, 64, 256


def kind_of(name, **fields):
    config = settled(TrainConfig(kind=name, **fields))
    return kind_class(name)(SparseAutoencoder(SAEConfig(d_model=D, d_sae=N, kind=name)), config)


def followed(kind, l0, lr=0.01, ramp_steps=100):
    kind.follow(torch.tensor(l0), lr, ramp_steps)
    return float(kind.weight.log())


@pytest.mark.parametrize("name", ["relu", "gated"])
def test_the_weight_follows_the_distance_by_hand(name):
    """It begins at ln 5 − 4, and each step adds 3 % of the distance, and the distance of that step beside."""
    kind, log = kind_of(name, target_l0=8.0), 5.0
    start = torch.tensor(log).log().item() - 4
    assert kind.l1_coeff(0.25) == approx(torch.tensor(start).exp().item())  # however far its rise is
    assert followed(kind, 8.0) == approx(start)
    assert followed(kind, 8.0 * 2.718281828**0.5) == approx(start + 0.03 * 0.5 + 0.5)
    # far above, a hundredth of the rise of 4 a step, and of the distance 1 at most
    assert followed(kind, 800.0) == approx(start + 0.015 + 0.04 + 1)
    # at a small learning rate it moves 3 lr of the distance
    assert followed(kind, 8.0 * 2.718281828**-0.5, lr=0.001) == approx(
        start + 0.055 - 0.003 * 0.5 - 0.5, abs=1e-6
    )


def test_without_a_target_the_weight_is_the_share_of_the_coefficient():
    kind = kind_of("relu", l1_coeff=3.0)
    followed(kind, 1000.0)
    assert kind.l1_coeff(0.5) == 1.5 and kind.state() == {} and kind.metrics() == {}


def test_a_target_needs_a_weight_to_begin_with():
    with pytest.raises(ValueError, match="l1_coeff expected more than 0 with target_l0"):
        settled(TrainConfig(kind="relu", target_l0=8.0, l1_coeff=0.0))


@pytest.mark.parametrize("name", ["relu", "gated"])
def test_the_default_rate_by_hand(name):
    """2.5 times the law of the long runs, and in short ones at most 5 / d_model, or 0.08."""

    def rate(d_model, d_sae, n_steps, **fields):
        sae = SparseAutoencoder(SAEConfig(d_model=d_model, d_sae=d_sae, kind=name))
        config = settled(TrainConfig(kind=name, **fields))
        return Schedule.of(config, kind_class(name)(sae, config), n_steps).lr

    none = {"refit_fraction": 0.0} if name == "relu" else {}
    assert rate(768, 2**14, 250_000, **none) == approx(5e-4)
    assert rate(192, 1536, 300) == approx(5 / 192)
    assert rate(16, 64, 300) == 0.08
    assert rate(192, 1536, 300, lr=0.01) == 0.01


def rows(n):
    gen = torch.Generator().manual_seed(0)
    atoms = torch.nn.functional.normalize(torch.randn(48, D, generator=gen), dim=1)
    on = torch.rand(n, 48, generator=gen) < 0.1
    acts = (torch.rand(n, 48, generator=gen) + 0.5) * on @ atoms
    acts -= acts.mean(0)
    return acts * (D / acts.square().sum(1).mean()) ** 0.5


def trainer_of(kind, acts, n_steps, **fields):
    config = settled(TrainConfig(kind=kind, batch_size_rows=B, **fields))
    sae = initial_sae(SAEConfig(d_model=D, d_sae=N, kind=kind), acts, 0, kind_class(kind).encoder_scale)
    return Trainer(sae, config, n_steps)


@pytest.mark.long
@pytest.mark.parametrize("target", [3.0, 8.0])
@pytest.mark.parametrize("kind", ["relu", "gated"])
def test_a_run_ends_with_the_latents_a_token_that_were_asked_for(kind, target):
    acts = rows(20_000)
    trainer = trainer_of(kind, acts, 300, target_l0=target)
    for step in range(300):
        trainer.update(acts[B * step % 19_000 :][:B])
    l0 = float((trainer.kind.folded()(acts).latents.values > 0).sum() / len(acts))
    assert l0 == approx(target, rel=0.1)


def test_a_resumed_run_holds_the_weight_that_it_had():
    acts = rows(2000)
    whole, first, other = (trainer_of("relu", acts, 20, target_l0=4.0) for _ in range(3))
    batches = [acts[B * step % 1700 :][:B] for step in range(20)]
    for batch in batches:
        whole.update(batch)
    for batch in batches[:9]:
        first.update(batch)
    state = {name: v.clone() if isinstance(v, torch.Tensor) else v for name, v in first.whole_state().items()}
    other.load_state(state)
    for batch in batches[9:]:
        other.update(batch)
    for name, value in whole.kind.folded().state_dict().items():
        assert torch.equal(value, other.kind.folded().state_dict()[name]), name
