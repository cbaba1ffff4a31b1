"""The hand-written gradients of every kind against autograd on a dense formulation, in float64."""

import pytest
import torch
from torch.testing import assert_close

from saelens_lite.kernels.reference import remove_parallel
from saelens_lite.sae.autoencoder import SparseAutoencoder
from saelens_lite.sae.config import SAEConfig
from saelens_lite.train.config import TrainConfig
from saelens_lite.train.kinds.choice import kind_class
from saelens_lite.train.kinds.few_pairs import few_pairs
from saelens_lite.train.kinds.kind import unit_rows_
from saelens_lite.train.optimise.initial import initial_sae
from saelens_lite.train.optimise.trainer import Trainer
from saelens_lite.train.random_streams import row_noise
from saelens_lite.train.rows.input_scale import input_scale

from . import definitions as losses

B, D, N, K, K_AUX = 29, 12, 64, 5, 6
TRAINED = {
    "topk": {"aux_coeff": 0.25},
    "multi-topk": {"kind": "topk", "aux_coeff": 0.25, "multi_topk_coeff": 0.125},
    "batchtopk": {"aux_coeff": 0.25},
    "matryoshka": {"aux_coeff": 0.25, "matryoshka_fractions": (1 / 16, 1 / 4, 1 / 2, 1)},
    "relu": {"l1_coeff": 0.7},
    "relu, free norms": {"kind": "relu", "l1_coeff": 0.7, "unit_decoder": False},
    "gated": {"l1_coeff": 0.7},
    "jumprelu": {"l0_coeff": 0.7, "bandwidth": 0.4},
    "jumprelu, target l0": {"kind": "jumprelu", "l0_coeff": 7.0, "target_l0": 6, "bandwidth": 0.4},
    "jumprelu, tanh": {"kind": "jumprelu", "jumprelu_penalty": "tanh", "l0_coeff": 0.7, "pre_act_coeff": 0.3},
    "jumprelu, tanh, free norms": {
        "kind": "jumprelu", "jumprelu_penalty": "tanh", "l0_coeff": 0.7, "pre_act_coeff": 0.3,
        "unit_decoder": False,
    },
}  # fmt: skip
"""Fields of a run of each kind."""


def kind_of(case, dtype="float64", **fields):
    """A trained kind around an SAE with random parameters."""
    config = TrainConfig(**{"kind": case, "k": K, "k_aux": K_AUX, **TRAINED[case], **fields})
    sae_kind = kind_class(config.kind).sae_kind
    sae = SparseAutoencoder(
        SAEConfig(d_model=D, d_sae=N, kind=sae_kind, k=K if sae_kind == "topk" else None, dtype=dtype)
    )
    gen = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in sae.parameters():
            parameter.copy_(0.3 * torch.randn(parameter.shape, generator=gen, dtype=parameter.dtype))
        if config.unit_decoder:
            unit_rows_(sae.W_dec)
        if sae_kind == "jumprelu":
            sae.threshold.abs_()
    return kind_class(config.kind)(sae, config)


def acts_of(batch="random", dtype=torch.float64):
    acts = torch.randn(B, D, generator=torch.Generator().manual_seed(1), dtype=dtype)
    half = acts[: B // 2]
    return {
        "random": acts,
        "equal rows": acts[:1].expand(B, D).contiguous(),
        "rows twice": torch.cat([half, half]),
    }[batch]


def auxk_loss(sae, acts, seen, recons, dead):
    pre_acts = sae.pre_acts(seen)[:, dead].relu()
    kept = pre_acts.topk(min(K_AUX, len(dead)), dim=1)
    error_recons = torch.zeros_like(pre_acts).scatter(1, kept.indices, kept.values) @ sae.W_dec[dead]
    return losses.auxk(acts - recons, error_recons)


def topk_losses(kind, acts, seen, dead):
    sae = kind.sae
    recons, latents = sae(seen)
    auxk = auxk_loss(sae, acts, seen, recons, dead) if len(dead) else torch.zeros((), dtype=acts.dtype)
    added = kind.config.aux_coeff * auxk
    if kind.config.multi_topk_coeff:
        kept = sae.pre_acts(seen).relu().topk(4 * K, dim=1)
        wide = torch.zeros(len(acts), N, dtype=acts.dtype).scatter(1, kept.indices, kept.values)
        added = added + kind.config.multi_topk_coeff * losses.reconstruction(acts, sae.decode(wide))
    return losses.reconstruction(acts, recons), added, latents.to_dense()


def norms_of(kind):
    return 1.0 if kind.config.unit_decoder else kind.sae.W_dec.norm(dim=1)


def relu_losses(kind, acts, seen, dead):
    latent_acts = kind.sae.encode_dense(seen)
    l1 = losses.l1(latent_acts * norms_of(kind))
    return losses.reconstruction(acts, kind.sae.decode(latent_acts)), kind.config.l1_coeff * l1, latent_acts


def batch_topk(sae, acts):
    pre_acts = sae.pre_acts(acts).relu()
    kept = pre_acts.flatten().argsort(descending=True, stable=True)[: K * len(acts)]
    return pre_acts * torch.zeros(pre_acts.numel(), dtype=acts.dtype).index_fill(0, kept, 1.0).view_as(
        pre_acts
    )


def batchtopk_losses(kind, acts, seen, dead):
    latent_acts = batch_topk(kind.sae, seen)
    recons = kind.sae.decode(latent_acts)
    auxk = auxk_loss(kind.sae, acts, seen, recons, dead) if len(dead) else torch.zeros((), dtype=acts.dtype)
    return losses.reconstruction(acts, recons), kind.config.aux_coeff * auxk, latent_acts


def matryoshka_losses(kind, acts, seen, dead):
    reconstruction, auxk, latent_acts = batchtopk_losses(kind, acts, seen, dead)
    inner = [
        losses.reconstruction(acts, latent_acts[:, :width] @ kind.sae.W_dec[:width] + kind.sae.b_dec)
        for width in (N // 16, N // 4, N // 2)
    ]
    return reconstruction, auxk + sum(inner), latent_acts


def gated_losses(kind, acts, seen, dead):
    sae, config = kind.sae, kind.config
    products = (seen - sae.b_dec) @ sae.W_enc
    gate = (products + sae.b_gate).relu()
    latent_acts = sae.encode_dense(seen)
    gate_recons = gate @ sae.W_dec.detach() + sae.b_dec.detach()
    added = losses.reconstruction(acts, gate_recons) + config.l1_coeff * losses.l1(gate)
    return losses.reconstruction(acts, sae.decode(latent_acts)), added, latent_acts


class Step(torch.autograd.Function):
    """1[pre_acts > threshold]; equation 11 of Rajamanoharan et al. 2024 for the threshold, no gradient for
    pre_acts."""

    @staticmethod
    def forward(ctx, pre_acts, threshold, bandwidth):
        ctx.save_for_backward(pre_acts, threshold)
        ctx.bandwidth = bandwidth
        return (pre_acts > threshold).to(pre_acts.dtype)

    @staticmethod
    def backward(ctx, grad):
        pre_acts, threshold = ctx.saved_tensors
        kernel = (((pre_acts - threshold) / ctx.bandwidth).abs() < 0.5) / ctx.bandwidth
        return None, -(kernel * grad).sum(0), None


class Jump(torch.autograd.Function):
    """pre_acts · 1[pre_acts > threshold]; equation 12."""

    @staticmethod
    def forward(ctx, pre_acts, threshold, bandwidth):
        ctx.save_for_backward(pre_acts, threshold)
        ctx.bandwidth = bandwidth
        return pre_acts * (pre_acts > threshold)

    @staticmethod
    def backward(ctx, grad):
        pre_acts, threshold = ctx.saved_tensors
        kernel = (((pre_acts - threshold) / ctx.bandwidth).abs() < 0.5) / ctx.bandwidth
        return grad * (pre_acts > threshold), -(threshold * kernel * grad).sum(0), None


def jumprelu_losses(kind, acts, seen, dead):
    sae, config, threshold = kind.sae, kind.config, kind.log_threshold.exp()
    pre_acts = sae.pre_acts(seen)
    latent_acts = Jump.apply(pre_acts, threshold, kind.bandwidth)
    reconstruction = losses.reconstruction(acts, sae.decode(latent_acts))
    if config.jumprelu_penalty == "tanh":
        tanh = torch.tanh(4 * latent_acts * norms_of(kind)).sum(1).mean()
        pre_act = ((threshold - pre_acts).relu() * norms_of(kind)).sum(1).mean()
        return reconstruction, kind.l0_coeff * tanh + config.pre_act_coeff * pre_act, latent_acts
    l0 = Step.apply(pre_acts, threshold, kind.bandwidth).sum(1).mean()
    penalty = l0 if config.target_l0 is None else (l0 / config.target_l0 - 1) ** 2
    return reconstruction, kind.l0_coeff * penalty, latent_acts


LOSSES = {
    "topk": topk_losses,
    "batchtopk": batchtopk_losses,
    "matryoshka": matryoshka_losses,
    "relu": relu_losses,
    "gated": gated_losses,
    "jumprelu": jumprelu_losses,
}
"""reconstruction of acts from what is seen of them, what is added to it, latent_acts float[B d_sae]; by dense
torch."""


def contraction(kind, latent_acts):
    """Mean over tokens of the squared derivatives of latents, times their norms, by inputs; which are on is
    given."""
    gains = kind.sae.r_mag.exp() if kind.sae.kind == "gated" else 1.0
    return ((latent_acts > 0) * (norms_of(kind) * gains * kind.sae.W_enc.norm(dim=0)) ** 2).sum(1).mean()


def autograd_of(kind, loss):
    names, parameters = zip(*kind.parameters().items(), strict=True)
    grads = torch.autograd.grad(
        loss, [kind.sae.W_enc, *parameters], allow_unused=True, materialize_grads=True
    )
    grads = dict(zip(("W_enc", *names), grads, strict=True))
    if kind.config.unit_decoder:
        grads["W_dec"] = remove_parallel(grads["W_dec"], kind.sae.W_dec.detach())
    return grads


def assert_equals_autograd(kind, acts, dead):
    config = kind.config
    noise = row_noise(acts, 0, config.seed, kind.step) if config.input_noise else torch.zeros_like(acts)
    reconstruction, added, latent_acts = LOSSES[config.kind](
        kind, acts, acts + config.input_noise * noise, dead
    )
    added = added + config.contractive_coeff * contraction(kind, latent_acts)
    want = autograd_of(kind, reconstruction + added)
    with torch.no_grad():
        stats, fired = kind.gradients(acts, dead if kind.uses_dead else None, 1.0)
    trained = {"W_enc": kind.sae.W_enc, **kind.parameters()}
    for name, parameter in trained.items():
        assert_close(parameter.grad, want[name], rtol=1e-8, atol=1e-10, msg=lambda m, n=name: f"{n}: {m}")
    assert_close(stats.reconstruction, reconstruction.detach())
    assert_close(stats.l0.double(), (latent_acts > 0).double().sum(1).mean())
    assert_close(fired, (latent_acts > 0).any(0))
    return stats


@pytest.mark.parametrize("kind", TRAINED)
@pytest.mark.parametrize("batch", ["random", "equal rows", "rows twice"])
@pytest.mark.parametrize("n_dead", [0, 3, 20, N])
def test_gradients_equal_autograd(kind, batch, n_dead):
    trained = kind_of(kind)
    assert_equals_autograd(trained, acts_of(batch), torch.arange(N - n_dead, N))


OPTIONS = {"noise": {"input_noise": 0.5}, "contraction": {"contractive_coeff": 0.3}}


@pytest.mark.parametrize("kind", TRAINED)
@pytest.mark.parametrize("option", OPTIONS)
def test_gradients_with_options_equal_autograd(kind, option):
    trained, plain = kind_of(kind, **OPTIONS[option]), kind_of(kind)
    for step in (0, 7):
        trained.begin(step, 100)
        assert_equals_autograd(trained, acts_of(), torch.arange(N - 3, N))
    with torch.no_grad():
        plain.gradients(acts_of(), torch.arange(N - 3, N), 1.0)
    assert not torch.equal(trained.sae.W_enc.grad, plain.sae.W_enc.grad)


@pytest.mark.parametrize("kind", ["relu", "topk", "gated", "jumprelu"])
def test_the_contractive_penalty_is_the_squared_jacobian(kind):
    trained, acts = kind_of(kind), acts_of()
    latent_acts = trained.sae.encode_dense(acts)
    jacobian = torch.autograd.functional.jacobian(
        lambda x: trained.sae.encode_dense(x).sum(0), acts
    )  # [N B D]
    assert_close(contraction(trained, latent_acts), jacobian.square().sum() / B)


@pytest.mark.parametrize("kind", ["relu", "gated", "jumprelu", "jumprelu, target l0"])
@pytest.mark.parametrize("batch", ["random", "equal rows"])
@pytest.mark.parametrize("options", [{}, {"input_noise": 0.5, "contractive_coeff": 0.3}])
def test_gradients_of_the_sparse_path_equal_autograd(kind, batch, options, monkeypatch):
    assert few_pairs(torch.ones(2, 2, dtype=torch.bool)) is None
    monkeypatch.setattr(f"{few_pairs.__module__}.SPARSE_BELOW", {"cpu": 1.0})
    trained = kind_of(kind, **options)
    monkeypatch.setattr(trained, "_dense", None)
    assert_equals_autograd(trained, acts_of(batch), torch.arange(0))


@pytest.mark.parametrize("kind", TRAINED)
def test_gradients_where_no_latent_fires(kind):
    trained = kind_of(kind)
    with torch.no_grad():
        for name in ("b_enc", "b_gate"):
            if hasattr(trained.sae, name):
                getattr(trained.sae, name).fill_(-100.0)
    stats = assert_equals_autograd(trained, acts_of(), torch.arange(N))
    assert stats.l0 == 0


@pytest.mark.parametrize("kind", ["topk", "multi-topk", "batchtopk", "matryoshka"])
def test_auxk_reaches_the_encoder_of_dead_latents(kind):
    """sparsify up to 1.3.3 trains only their decoder rows, so that they stay dead."""
    trained, dead = kind_of(kind), torch.arange(N - 20, N)
    with torch.no_grad():
        trained.sae.W_enc[:, dead] *= 1e-3  # weak: never selected, but above 0 for some tokens
        trained.sae.b_enc[dead] = 1e-3
        trained.gradients(acts_of(), dead, 1.0)
    assert (trained.sae.W_enc.grad[:, dead].abs().sum(0) > 0).all()
    assert (trained.sae.W_dec.grad[dead].abs().sum(1) > 0).all()


@pytest.mark.parametrize("kind", TRAINED)
def test_float32_gives_the_same_gradients(kind):
    single, exact, dead = kind_of(kind, "float32"), kind_of(kind), torch.arange(3)
    acts = acts_of(dtype=torch.float32)
    with torch.no_grad():
        for p, q in zip(exact.parameters().values(), single.parameters().values(), strict=True):
            p.copy_(q)
        exact.sae.W_enc.copy_(single.sae.W_enc)
        if kind.startswith("jumprelu"):
            exact.sae.threshold.copy_(single.sae.threshold)
        exact.gradients(acts.double(), dead, 1.0)
        single.gradients(acts, dead, 1.0)
    for p, q in zip(exact.sae.parameters(), single.sae.parameters(), strict=True):
        if p.grad is not None:
            assert_close(q.grad.double(), p.grad, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", TRAINED)
def test_a_frozen_decoder_gets_no_gradient(kind):
    trained = kind_of(kind, freeze_decoder=True)
    with torch.no_grad():
        trained.gradients(acts_of(), torch.arange(3), 1.0)
    assert trained.sae.W_dec.grad is None and "W_dec" not in trained.parameters()
    assert trained.sae.W_enc.grad.abs().sum() > 0
    assert trained.sae.W_enc.grad.stride() == (1, D)  # as the weights are stored, and the optimiser needs it


RECOVERY = {
    "topk": {},
    "batchtopk": {},
    "matryoshka": {"matryoshka_fractions": (0.5, 1.0)},
    "relu": {"l1_coeff": 1.0, "refit_fraction": 0.0},
    "gated": {"l1_coeff": 3.0},
    "jumprelu": {"target_l0": 3},
}


@pytest.mark.long
@pytest.mark.parametrize("kind", RECOVERY)
def test_planted_directions_are_recovered(kind, planted):
    """Mean over the 32 planted directions of the largest cosine with a decoder row; 0.65 for random rows."""
    config = TrainConfig(
        kind=kind, k=3, lr=1e-2, batch_size_rows=512, dead_after_tokens=5120, **RECOVERY[kind]
    )
    sae, _ = trained_on(planted, config, kind_class(kind).encoder_scale, n_steps=600)
    cosines = torch.nn.functional.normalize(sae.W_dec.detach(), dim=1) @ planted.directions.T
    assert cosines.amax(0).mean() > 0.9


def trained_on(planted, config, encoder_scale, n_steps):
    """The SAE after n_steps on the planted rows, and the reconstruction loss of the last."""
    sae_kind = kind_class(config.kind).sae_kind
    acts = planted.acts * input_scale(planted.acts.square().sum(1).mean().item(), torch.zeros(16))
    sae_config = SAEConfig(d_model=16, d_sae=64, kind=sae_kind, k=3 if sae_kind == "topk" else None)
    sae = initial_sae(sae_config, acts, 7, encoder_scale)  # seed 0 would draw the planted directions
    trainer = Trainer(sae, config, n_steps=n_steps)
    for step in range(n_steps):
        stats = trainer.update(acts[512 * step % 8192 :][:512])
    return sae, float(stats.reconstruction)


@pytest.mark.long
def test_the_small_encoder_of_batchtopk_learns_faster(planted):
    config = TrainConfig(kind="batchtopk", k=3, lr=1e-2, batch_size_rows=512)
    own, full = (
        trained_on(planted, config, scale, n_steps=100)[1]
        for scale in (kind_class("batchtopk").encoder_scale, 1.0)
    )
    assert own < 0.95 * full


@pytest.mark.parametrize("kind", TRAINED)
def test_a_trainer_that_takes_over_a_state_goes_on_exactly(kind):
    first, other = (Trainer(kind_of(kind, "float32").sae, kind_of(kind).config, n_steps=8) for _ in range(2))
    batches = torch.randn(8, B, D, generator=torch.Generator().manual_seed(2))
    for acts in batches[:4]:
        first.update(acts)
    other.load_state(
        {name: value.clone() if hasattr(value, "clone") else value for name, value in first.state().items()}
    )
    for acts in batches[4:]:
        assert first.update(acts) == other.update(acts)
    for (name, p), q in zip(first.sae.named_parameters(), other.sae.parameters(), strict=True):
        assert torch.equal(p, q), name
