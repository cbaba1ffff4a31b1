"""Schedules, and what each field of a run does to the update."""

import copy
from typing import get_args

import pytest
import torch
from pytest import approx

from saelens_lite.sae.config import SAEConfig
from saelens_lite.train.config import LEFT_OPEN, KindName, TrainConfig
from saelens_lite.train.kinds.choice import kind_class
from saelens_lite.train.kinds.kind import unit_rows_
from saelens_lite.train.kinds.topk import TopK, annealed_k
from saelens_lite.train.optimise.fold import fold_decoder_norms_, fold_scale
from saelens_lite.train.optimise.initial import initial_sae
from saelens_lite.train.optimise.precision import matmul_precision
from saelens_lite.train.optimise.schedules import default_lr, lr_factor
from saelens_lite.train.optimise.trainer import Trainer
from saelens_lite.train.rows.input_scale import input_scale

D, N = 8, 32


def trainer_of(n_steps=40, d_sae=N, **fields):
    config = TrainConfig(**LEFT_OPEN | {"k": 4, "lr": 1e-3, "batch_size_rows": 64} | fields)
    rows = planted()
    kind = kind_class(config.kind).sae_kind
    sae_config = SAEConfig(d_model=D, d_sae=d_sae, kind=kind, k=4 if kind == "topk" else None)
    return Trainer(initial_sae(sae_config, rows, seed=0), config, n_steps)


def planted(n=64, seed=0):
    gen = torch.Generator().manual_seed(seed)
    return torch.rand(n, 16, generator=gen).mul_(torch.rand(n, 16, generator=gen) < 0.1) @ torch.randn(
        16, D, generator=gen
    )


def test_lr_by_hand():
    # 10 steps, 2 of warm-up, 4 of decay: 1/2, 1, 1, 1, 1, 1, 1, then 3/4, 1/2, 1/4
    assert [lr_factor(s, 10, 2, 4) for s in range(10)] == approx([0.5, 1, 1, 1, 1, 1, 1, 0.75, 0.5, 0.25])


def ramps(trainer, monkeypatch):
    """What the kind is told at each step of the run."""
    seen, gradients = [], trainer.kind.gradients
    monkeypatch.setattr(trainer.kind, "gradients", lambda *args: seen.append(args[2]) or gradients(*args))
    for _ in range(trainer.n_steps):
        trainer.update(planted())
    return seen


def test_the_penalty_rises_from_the_first_step_to_the_last_of_its_warm_up(monkeypatch):
    # over 4 of 6 steps: 1/4, 2/4, 3/4, 4/4, and then all of it
    trainer = trainer_of(n_steps=6, kind="relu", l1_warm_up_steps=4, refit_fraction=0.0)
    assert ramps(trainer, monkeypatch) == [0.25, 0.5, 0.75, 1.0, 1.0, 1.0]
    trainer = trainer_of(n_steps=2, kind="relu", l1_warm_up_steps=0, refit_fraction=0.0)
    assert ramps(trainer, monkeypatch) == [1.0, 1.0]
    # by default a fifth of a short run, 2 of 10 steps, or with the penalty tanh the whole of it
    assert ramps(trainer_of(n_steps=10, kind="jumprelu"), monkeypatch) == [0.5] + 9 * [1.0]
    tanh = trainer_of(n_steps=5, kind="jumprelu", jumprelu_penalty="tanh")
    assert ramps(tanh, monkeypatch) == [0.2, 0.4, 0.6, 0.8, 1.0]


def test_the_ramp_weighs_the_penalty_by_its_share():
    """Gradients at ramp 1/4 of l1_coeff are those of l1_coeff / 4 at ramp 1, and not those of all of it."""

    def bias_grad(l1_coeff, ramp):
        kind = trainer_of(kind="relu", l1_coeff=l1_coeff).kind
        with torch.no_grad():
            kind.gradients(planted(), None, ramp)
        return kind.sae.b_enc.grad

    torch.testing.assert_close(bias_grad(8.0, 0.25), bias_grad(2.0, 1.0))
    assert not torch.allclose(bias_grad(8.0, 0.25), bias_grad(8.0, 1.0))


def test_default_lr_follows_the_square_root_law_and_grows_for_short_runs():
    assert default_lr(2**14, 250_000) == approx(2e-4)
    assert default_lr(2**16, 10**6) == approx(1e-4)
    assert default_lr(3072, 1200) == approx(1e-2)
    assert default_lr(2**14, 10_000) > default_lr(2**14, 100_000)


def test_annealed_k_by_hand():
    # from 3 · 8 to 8 over 4 steps: 24, then 16 · 3/4, 2/4 and 1/4 above 8; the fifth step has 8
    assert [annealed_k(8, 3.0, step, 4, 100) for step in range(6)] == [24, 20, 16, 12, 8, 8]
    assert [annealed_k(8, 3.0, step, 4, 10) for step in range(6)] == [
        10,
        10,
        9,
        8,
        8,
        8,
    ]  # 9.5 is rounded to even
    assert annealed_k(8, 3.0, 0, 0, 100) == 8


@pytest.mark.parametrize("kind", ["topk", "batchtopk", "matryoshka"])
def test_k_falls_to_its_value_and_memory_of_another_k_changes_no_step(kind):
    fields = {"kind": kind, "k_anneal_fraction": 0.5, "k_anneal_start": 2.0, "aux_coeff": 0.0}
    if kind == "topk":
        fields["multi_topk_coeff"] = 0.125
    trainer, l0 = trainer_of(n_steps=8, **fields), []
    rows = torch.randn(64, D, generator=torch.Generator().manual_seed(0))
    for step in range(8):
        sae = copy.deepcopy(trainer.sae)
        fresh = type(trainer.kind)(sae, trainer.config)
        fresh.begin(step, 8)
        with torch.no_grad():
            expected, _ = fresh.gradients(rows, None, 1.0)
        assert trainer.update(rows) == expected
        for name in ("W_dec", "b_dec", "b_enc"):
            assert torch.equal(trainer.sae.get_parameter(name).grad, sae.get_parameter(name).grad), name
        l0.append(float(expected.l0))
    assert l0 == approx([8, 7, 6, 5, 4, 4, 4, 4], abs=0.01)
    assert trainer.sae.config.k == (4 if kind == "topk" else None)


def test_decoder_rows_stay_unit_norm_and_the_loss_falls():
    for kind in get_args(KindName):
        trainer = trainer_of(kind=kind, l1_coeff=0.01, lr=1e-2)
        losses = [float(trainer.update(planted(seed=s)).reconstruction) for s in range(40)]
        torch.testing.assert_close(trainer.sae.W_dec.norm(dim=1), torch.ones(N))
        assert sum(losses[-5:]) < 0.7 * sum(losses[:5])


def test_the_fused_optimiser_does_what_plain_adam_does_to_every_parameter():
    trainer = trainer_of(warm_up_steps=0, decay_fraction=0.0)
    plain = trainer_of().sae
    adam = torch.optim.Adam(plain.parameters(), lr=1e-3, foreach=False)
    kind = TopK(plain, TrainConfig(k=4))
    for seed in range(4):
        with torch.no_grad():
            kind.gradients(planted(seed=seed), None, 1.0)
        adam.step()
        unit_rows_(plain.W_dec)
        trainer.update(planted(seed=seed))
    for (name, ours), theirs in zip(trainer.sae.named_parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6, msg=lambda m, n=name: f"{n}: {m}")


def test_clipping_does_what_clip_grad_norm_does():
    trainer = trainer_of(warm_up_steps=0, decay_fraction=0.0, clip_norm=0.5)
    plain, norms = trainer_of().sae, []
    adam = torch.optim.Adam(plain.parameters(), lr=1e-3, foreach=False)
    kind = TopK(plain, TrainConfig(k=4))
    for seed in range(4):
        with torch.no_grad():
            kind.gradients(
                seed % 2 * planted(seed=seed) + 0.01, None, 1.0
            )  # every second batch has a small gradient
        norms.append(float(torch.nn.utils.clip_grad_norm_(plain.parameters(), 0.5)))
        adam.step()
        unit_rows_(plain.W_dec)
        trainer.update(seed % 2 * planted(seed=seed) + 0.01)
    assert min(norms) < 0.5 < max(norms)
    for (name, ours), theirs in zip(trainer.sae.named_parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6, msg=lambda m, n=name: f"{n}: {m}")


def test_a_frozen_decoder_does_not_move_and_everything_else_does():
    trainer = trainer_of(freeze_decoder=True)
    before = {name: p.clone() for name, p in trainer.sae.named_parameters()}
    trainer.update(planted())
    moved = {name: not torch.equal(p, before[name]) for name, p in trainer.sae.named_parameters()}
    assert moved == {"W_enc": True, "W_dec": False, "b_dec": True, "b_enc": True}


def test_auxk_revives_dead_latents_and_no_auxk_leaves_their_encoder_alone():
    for aux_coeff, expected in ((1 / 32, True), (0.0, False)):
        trainer = trainer_of(aux_coeff=aux_coeff, dead_after_tokens=64)
        with torch.no_grad():
            trainer.sae.b_enc[
                :8
            ] = -100.0  # these cannot be selected; with a pre-activation below 0 nor can AuxK
            trainer.sae.b_enc[8:16] = -0.01
            trainer.sae.W_enc[:, 8:16] *= 1e-3  # weak: never in the top k, but above 0 for some tokens
            trainer.sae.b_enc[8:16] = 1e-3
        before = trainer.sae.W_enc.clone()
        for seed in range(3):
            trainer.update(planted(seed=seed))
        moved = (trainer.sae.W_enc != before).any(0)
        assert moved[8:16].any().item() is expected
        assert not moved[:8].any()


def test_fields_that_change_the_update():
    def weights(**fields):
        trainer = trainer_of(**fields)
        for seed in range(3):
            trainer.update(planted(seed=seed))
        return torch.cat([p.flatten() for p in trainer.sae.parameters()])

    plain, relu = weights(), weights(kind="relu")
    for fields in (
        {"clip_norm": 0.01},
        {"lr": 2e-3}, {"adam_beta1": 0.5}, {"adam_beta2": 0.9}, {"warm_up_steps": 30},
        {"decay_fraction": 1.0},
        {"freeze_decoder": True}, {"n_steps": 3}, {"dead_after_tokens": 1}, {"kind": "relu"},
        {"multi_topk_coeff": 0.125},
    ):  # fmt: skip
        assert not torch.equal(plain, weights(**fields)), fields
    for fields in ({"l1_coeff": 1.0}, {"l1_warm_up_steps": 30}, {"unit_decoder": False}):
        assert not torch.equal(relu, weights(kind="relu", **fields)), fields
    assert not torch.equal(
        weights(kind="matryoshka"), weights(kind="matryoshka", matryoshka_fractions=(0.5, 1))
    )
    step, tanh = {"kind": "jumprelu"}, {"kind": "jumprelu", "jumprelu_penalty": "tanh", "pre_act_coeff": 0.1}
    for base in (step, tanh):
        for fields in (
            {"l0_coeff": 2.0},
            {"bandwidth": 0.7},
            {"initial_threshold": 0.4},
            {"l1_warm_up_steps": 1},
        ):
            assert not torch.equal(weights(**base), weights(**base, **fields)), fields
    assert not torch.equal(weights(**step), weights(**step, target_l0=4))
    assert not torch.equal(weights(**tanh), weights(**{**tanh, "pre_act_coeff": 0.2}))
    wide = {"dead_after_tokens": 1, "d_sae": 512}  # most latents are silent in a batch of 64 rows
    dead = weights(**wide)
    for fields in ({"k_aux": 1}, {"aux_coeff": 1.0}):
        assert not torch.equal(dead, weights(**wide, **fields)), fields


def test_input_scale_and_folding():
    rows = planted(512) * 7
    scale = input_scale(rows.square().sum(1).mean().item(), rows.mean(0))
    assert (scale * (rows - rows.mean(0))).square().sum(1).mean().item() == approx(D, rel=1e-5)
    sae = trainer_of().sae
    folded = fold_scale(sae, scale)
    scaled, plain = sae(rows * scale), folded(rows)
    torch.testing.assert_close(plain.recons, scaled.recons / scale)
    torch.testing.assert_close(plain.latents.to_dense(), scaled.latents.to_dense() / scale)
    torch.testing.assert_close(folded.W_dec.norm(dim=1), torch.ones(N))


@pytest.mark.parametrize("encoder_scale", [1.0, 0.01])
def test_the_encoder_starts_along_the_decoder(planted, encoder_scale):
    sae = initial_sae(SAEConfig(d_model=16, d_sae=64, kind="relu"), planted.acts, 0, encoder_scale)
    torch.testing.assert_close(sae.W_enc, encoder_scale * sae.W_dec.T)
    torch.testing.assert_close(sae.W_dec.norm(dim=1), torch.ones(64))


def test_free_decoder_norms_are_folded_into_the_encoder():
    for kind in ("relu", "jumprelu"):
        trainer = trainer_of(kind=kind, unit_decoder=False, l1_coeff=0.01, lr=1e-2, scale_input=False)
        for seed in range(10):
            trainer.update(planted(seed=seed))
        sae, rows = trainer.sae, planted(seed=99)
        assert (sae.W_dec.norm(dim=1) - 1).abs().max() > 1e-3
        before, latents = sae(rows), sae.encode_dense(rows) * sae.W_dec.norm(dim=1)
        fold_decoder_norms_(sae)
        torch.testing.assert_close(sae(rows).recons, before.recons)
        torch.testing.assert_close(sae.encode_dense(rows), latents)
        torch.testing.assert_close(sae.W_dec.norm(dim=1), torch.ones(N))


def test_on_cuda_products_are_tf32_unless_torch_or_the_configuration_says_otherwise(monkeypatch):
    cuda, cpu, free = torch.device("cuda"), torch.device("cpu"), TrainConfig()
    for as_torch, on_cuda, on_cpu in (("highest", "high", "highest"), ("medium", "medium", "medium")):
        monkeypatch.setattr(torch, "get_float32_matmul_precision", lambda: as_torch)  # noqa: B023
        assert (matmul_precision(free, cuda), matmul_precision(free, cpu)) == (on_cuda, on_cpu)
        assert matmul_precision(TrainConfig(matmul_precision="highest"), cuda) == "highest"


def test_products_have_the_precision_asked_for_during_a_step_only(monkeypatch):
    seen = []
    trainer = trainer_of(matmul_precision="medium")
    gradients = trainer.kind.gradients
    monkeypatch.setattr(
        trainer.kind,
        "gradients",
        lambda *a: seen.append(torch.get_float32_matmul_precision()) or gradients(*a),
    )
    before = torch.get_float32_matmul_precision()
    trainer.update(torch.randn(32, 8))
    assert seen == ["medium"] and torch.get_float32_matmul_precision() == before
    with pytest.raises(
        ValueError, match="matmul_precision expected one of highest, high, medium or None, got 'low'"
    ):
        TrainConfig(matmul_precision="low")
