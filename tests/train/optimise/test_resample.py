"""Resampling of dead latents: what it draws, what it changes, what it leaves, and that it revives."""

import copy

import pytest
import torch
from torch.testing import assert_close

from saelens_lite.sae.config import SAEConfig
from saelens_lite.train.config import LEFT_OPEN, TrainConfig
from saelens_lite.train.kinds.choice import kind_class, settled
from saelens_lite.train.optimise.initial import initial_sae
from saelens_lite.train.optimise.resample import draw_rows
from saelens_lite.train.optimise.trainer import Trainer
from saelens_lite.train.rows.input_scale import input_scale

KINDS = {
    "relu": {"l1_coeff": 0.5},
    "relu, free norms": {"kind": "relu", "l1_coeff": 0.5, "unit_decoder": False},
    "gated": {"l1_coeff": 0.5},
    "jumprelu": {"initial_threshold": 0.25},
}
D, N, N_DEAD, B = 16, 64, 40, 512


def trainer_of(case, acts, **fields):
    """A trainer whose first 40 latents are dead: their bias keeps them silent for ever."""
    config = TrainConfig(
        **{
            "kind": case,
            "lr": 1e-2,
            "batch_size_rows": B,
            "dead_after_tokens": 2 * B,
            **KINDS[case],
            **fields,
        }
    )
    kind = kind_class(config.kind)
    sae = initial_sae(SAEConfig(d_model=D, d_sae=N, kind=kind.sae_kind), acts, 7, kind.encoder_scale)
    with torch.no_grad():
        getattr(sae, "b_gate" if case == "gated" else "b_enc")[:N_DEAD] = -100.0
        if case == "gated":
            sae.b_mag[:N_DEAD], sae.r_mag[:N_DEAD] = -100.0, 1.0
    return Trainer(sae, config, n_steps=200)


@pytest.fixture
def rows(planted):
    acts = planted.acts * input_scale(planted.acts.square().sum(1).mean().item(), torch.zeros(D))
    return lambda step: acts[B * step % len(acts) :][:B]


def latent_tensors(trainer):
    """Everything of which a latent has a row or an entry, by name; also the moments of Adam."""
    sae = trainer.sae
    named = {name: p.detach() for name, p in sae.named_parameters() if name not in ("W_enc", "b_dec")}
    named["W_enc"] = sae.W_enc.detach().T
    if trainer.config.kind == "jumprelu":
        named["log_threshold"] = trainer.kind.log_threshold.detach()
    for name, value in trainer.state().items():
        if name.startswith("adam.") and value.ndim and len(value) == N:
            named[name] = value
    return named


@pytest.mark.parametrize("case", KINDS)
def test_what_a_resampling_changes_and_what_it_leaves(case, rows):
    plain, trainer = trainer_of(case, rows(0)), trainer_of(case, rows(0), resample_every_steps=4)
    for step in range(3):
        plain.update(rows(step))
        trainer.update(rows(step))
    with torch.no_grad():
        for p in plain.adam.param_groups[0]["params"]:  # as if dead latents had once had gradients
            plain.adam.state[p]["exp_avg"] += 0.1
            plain.adam.state[p]["exp_avg_sq"] += 1.0
    trainer.load_state(copy.deepcopy(plain.state()))
    plain.update(rows(3))
    trainer.update(rows(3))
    dead = plain.dead_tracker.dead()
    assert set(range(N_DEAD)) <= set(dead.tolist()) and not trainer.dead_tracker.dead().numel()
    alive = torch.ones(N, dtype=torch.bool).index_fill_(0, dead, False)
    before, after = latent_tensors(plain), latent_tensors(trainer)
    assert len(before) > 6
    for name, tensor in before.items():
        assert torch.equal(after[name][alive], tensor[alive]), name

    W_dec, W_enc = after["W_dec"][dead], after["W_enc"][dead]
    directions = torch.nn.functional.normalize(rows(3) - plain.sae.b_dec.detach(), dim=1)
    assert_close((W_dec @ directions.T).amax(1), torch.ones(len(dead)))
    assert len(W_dec.unique(dim=0)) == len(dead)
    assert_close(W_enc, 0.2 * before["W_enc"][alive].norm(dim=1).mean() * W_dec)
    for name in after.keys() - {"W_dec", "W_enc"}:
        fresh = {"threshold": 0.25, "log_threshold": torch.tensor(0.25).log().item()}.get(name, 0.0)
        assert_close(
            after[name][dead], torch.full_like(after[name][dead], fresh), msg=lambda m, n=name: f"{n}: {m}"
        )
        assert "adam" not in name or before[name][dead].any(), name
    assert torch.equal(trainer.sae.b_dec, plain.sae.b_dec)
    assert not trainer.dead_tracker.tokens_since_fired[dead].any()


@pytest.mark.long
@pytest.mark.parametrize("case", KINDS)
def test_resampled_latents_revive_and_others_stay_dead(case, rows):
    """dictionary_learning's resampling writes to a copy, so that nothing changes and latents stay dead."""
    shares = {}
    for every in (None, 20):
        trainer = trainer_of(case, rows(0), resample_every_steps=every)
        for step in range(100):
            trainer.update(rows(step))
        shares[every] = len(trainer.dead_tracker.dead()) / N
    assert shares[None] >= N_DEAD / N
    assert shares[20] < 0.1


def test_it_happens_every_so_many_steps_until_its_share_of_the_run(rows):
    trainer = trainer_of(
        "relu", rows(0), resample_every_steps=10, resample_fraction=0.2
    )  # of 160 steps before the refit: at 10, 20, 30
    found = []
    for step in range(45):
        trainer.dead_tracker.tokens_since_fired[5] = 10**6
        with torch.no_grad():
            trainer.sae.b_enc[5] = -100.0
        trainer.update(rows(step))
        if trainer.sae.b_enc[5] == 0:
            found.append(step + 1)
    assert found == [10, 20, 30]


def test_rows_are_drawn_by_their_squared_loss():
    losses = torch.tensor([1.0, 2.0, 0.0, 3.0])
    firsts = (
        torch.stack([draw_rows(losses, 1, 0, step) for step in range(7000)]).view(-1).bincount(minlength=4)
    )
    assert_close(firsts / 7000, torch.tensor([1 / 14, 4 / 14, 0, 9 / 14]), atol=0.02, rtol=0)


def test_no_row_is_drawn_twice_none_without_a_loss_and_the_draw_follows_seed_and_step():
    losses = torch.rand(100, generator=torch.Generator().manual_seed(0)) * (torch.arange(100) < 60)
    drawn = draw_rows(losses, 30, 1, 2)
    assert len(drawn.unique()) == 30 and drawn.max() < 60
    assert sorted(draw_rows(losses, 80, 1, 2).tolist()) == list(range(60))
    assert torch.equal(draw_rows(losses, 30, 1, 2), drawn)
    assert not torch.equal(draw_rows(losses, 30, 1, 3), drawn) and not torch.equal(
        draw_rows(losses, 30, 2, 2), drawn
    )


def test_of_more_dead_latents_than_rows_those_silent_for_longest_come_first(rows):
    trainer = trainer_of("relu", rows(0), resample_every_steps=1)
    trainer.dead_tracker.tokens_since_fired[:N_DEAD] = 10_000 + torch.arange(N_DEAD)
    trainer.update(rows(0)[:30])
    assert trainer.dead_tracker.dead().tolist() == list(range(10))


def test_where_every_latent_is_dead_all_start_again(rows):
    trainer = trainer_of("relu", rows(0), resample_every_steps=1)
    with torch.no_grad():
        trainer.sae.b_enc.fill_(-100.0)
    trainer.dead_tracker.tokens_since_fired.fill_(10_000)
    trainer.update(rows(0))
    assert_close(trainer.sae.W_enc.norm(dim=0), torch.full((N,), 0.02))  # 0.2 of the 0.1 that they began with
    assert not trainer.sae.b_enc.any()


def test_wrong_use_is_refused():
    with pytest.raises(
        ValueError, match="expected None with freeze_decoder, whose rows stay as they are, got 100"
    ):
        TrainConfig(kind="relu", freeze_decoder=True, resample_every_steps=100)
    for fields in ({"resample_every_steps": 100}, {"input_noise": 0.1}, {"contractive_coeff": 0.1}):
        with pytest.raises(ValueError, match=f"{next(iter(fields))} expected (0|None) with end_to_end"):
            settled(TrainConfig(**LEFT_OPEN | {"kind": "relu"}, init_from="there", end_to_end="kl", **fields))
    with pytest.raises(ValueError, match="resample_every_steps expected at least 1 or None, got 0"):
        TrainConfig(kind="relu", resample_every_steps=0)
    with pytest.raises(ValueError, match="resample_fraction expected at least 0 and at most 1, got 2"):
        TrainConfig(kind="relu", resample_fraction=2.0)
