"""The hand-written gradients against autograd on losses.py, in float64."""

import pytest
import torch
from torch.testing import assert_close

from saelens_lite import losses
from saelens_lite.kernels import remove_parallel
from saelens_lite.sae import SAEConfig, SparseAutoencoder
from saelens_lite.train.step import DeadTracker, relu_step, topk_step, unit_rows_

B, D, N, K = 29, 12, 64, 5


def sae_of(kind, dtype="float64"):
    sae = SparseAutoencoder(SAEConfig(d_model=D, d_sae=N, kind=kind, k=K if kind == "topk" else None, dtype=dtype))
    gen = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in sae.parameters():
            parameter.copy_(0.3 * torch.randn(parameter.shape, generator=gen, dtype=parameter.dtype))
        unit_rows_(sae.W_dec)
    return sae


def acts_of(dtype=torch.float64):
    return torch.randn(B, D, generator=torch.Generator().manual_seed(1), dtype=dtype)


def autograd_of(sae, loss):
    names, parameters = zip(*sae.named_parameters(), strict=True)
    grads = dict(zip(names, torch.autograd.grad(loss, parameters), strict=True))
    grads["W_dec"] = remove_parallel(grads["W_dec"], sae.W_dec.detach())
    return grads


def assert_grads(sae, want, tolerance=1e-10):
    for name, parameter in sae.named_parameters():
        assert_close(parameter.grad, want[name], rtol=tolerance, atol=tolerance, msg=lambda m, n=name: f"{n}: {m}")


@pytest.mark.parametrize("n_dead", [0, 3, 20])
def test_topk_step_equals_autograd_with_auxk_reaching_encoder_and_decoder(n_dead):
    sae, acts, k_aux, coeff = sae_of("topk"), acts_of(), 6, 0.25
    dead = torch.arange(N - n_dead, N)
    recons, latents = sae(acts)
    loss = losses.reconstruction(acts, recons)
    aux = torch.zeros((), dtype=torch.float64)
    if n_dead:
        pre_acts = sae.pre_acts(acts)[:, dead].relu()
        kept = pre_acts.topk(min(k_aux, n_dead), dim=1)
        aux = losses.auxk(acts - recons, torch.zeros_like(pre_acts).scatter(1, kept.indices, kept.values) @ sae.W_dec[dead])
    want = autograd_of(sae, loss + coeff * aux)

    with torch.no_grad():
        stats, fired = topk_step(sae, acts, dead, k_aux=k_aux, aux_coeff=coeff)
    assert_grads(sae, want)
    assert_close(stats.reconstruction, loss.detach())
    assert_close(stats.sparsity, aux.detach())
    assert_close(stats.l0.double(), latents.l0().double().mean())
    assert_close(fired, (latents.to_dense() > 0).any(0))
    if n_dead:
        assert sae.W_enc.grad[:, dead].abs().sum() > 0


def test_relu_step_equals_autograd():
    sae, acts = sae_of("relu"), acts_of()
    latent_acts = sae.encode_dense(acts)
    loss = losses.reconstruction(acts, sae.decode(latent_acts)) + 0.7 * losses.l1(latent_acts)
    want = autograd_of(sae, loss)
    with torch.no_grad():
        stats, fired = relu_step(sae, acts, l1_coeff=0.7)
    assert_grads(sae, want)
    assert_close(stats.reconstruction + 0.7 * stats.sparsity, loss.detach())
    assert_close(stats.l0.double(), (latent_acts > 0).double().sum(1).mean())
    assert_close(fired, (latent_acts > 0).any(0))


def test_the_compiled_path_gives_the_same_gradients_in_float32():
    sae, acts = sae_of("topk", "float32"), acts_of(torch.float32)
    exact = sae_of("topk")
    with torch.no_grad():
        for p, q in zip(exact.parameters(), sae.parameters(), strict=True):
            p.copy_(q)
        topk_step(exact, acts.double(), torch.arange(3), k_aux=2, aux_coeff=0.1)
        topk_step(sae, acts, torch.arange(3), k_aux=2, aux_coeff=0.1)
    for p, q in zip(exact.parameters(), sae.parameters(), strict=True):
        assert_close(q.grad.double(), p.grad, rtol=1e-4, atol=1e-5)


def test_a_frozen_decoder_gets_no_gradient():
    for kind, step in (("topk", lambda s, a: topk_step(s, a, torch.arange(0), k_aux=1, aux_coeff=1, train_decoder=False)),
                       ("relu", lambda s, a: relu_step(s, a, l1_coeff=1.0, train_decoder=False))):  # fmt: skip
        sae = sae_of(kind)
        with torch.no_grad():
            step(sae, acts_of())
        assert sae.W_dec.grad is None
        assert sae.W_enc.grad.abs().sum() > 0


def test_dead_latents_are_counted_in_tokens():
    tracker = DeadTracker(3, dead_after_tokens=20, device=torch.device("cpu"))
    tracker.update(torch.tensor([True, False, False]), 10)
    assert tracker.tokens_since_fired.tolist() == [0, 10, 10]
    tracker.update(torch.tensor([False, True, False]), 10)
    assert tracker.tokens_since_fired.tolist() == [10, 0, 20]
    assert tracker.dead().tolist() == [2]


def test_encoder_gradient_and_adam_state_keep_the_latent_major_layout():
    sae = sae_of("topk", "float32")
    adam = torch.optim.Adam(sae.parameters(), fused=True)
    with torch.no_grad():
        topk_step(sae, acts_of(torch.float32), torch.arange(0), k_aux=1, aux_coeff=0.0)
    adam.step()
    assert sae.W_enc.stride() == (1, D)
    assert sae.W_enc.grad.stride() == (1, D)
    assert adam.state[sae.W_enc]["exp_avg"].stride() == (1, D)
    assert sae.to(torch.float64).W_enc.stride() == (1, D)
