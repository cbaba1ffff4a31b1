"""What the kinds share in a step; their gradients are tested in test_kinds.py."""

import pytest
import torch

from saelens_lite.kernels import reference
from saelens_lite.kernels.reference import remove_parallel
from saelens_lite.sae.autoencoder import SparseAutoencoder
from saelens_lite.sae.config import SAEConfig
from saelens_lite.train.config import TrainConfig
from saelens_lite.train.kinds.auxk import auxk_gradients
from saelens_lite.train.kinds.few_pairs import SPARSE_BELOW, few_pairs
from saelens_lite.train.kinds.topk import TopK
from saelens_lite.train.kinds.workspace import Pairs, ProductChunks, Workspace
from saelens_lite.train.optimise.dead import DeadTracker, default_dead_after_tokens

B, D, N, K = 29, 12, 64, 5


def test_dead_latents_are_counted_in_tokens():
    tracker = DeadTracker(3, dead_after_tokens=20, device=torch.device("cpu"))
    tracker.update(torch.tensor([True, False, False]), 10)
    assert tracker.tokens_since_fired.tolist() == [0, 10, 10]
    tracker.update(torch.tensor([False, True, False]), 10)
    assert tracker.tokens_since_fired.tolist() == [10, 0, 20]
    assert tracker.dead().tolist() == [2]


def test_dead_latents_are_the_same_where_their_number_is_sent_ahead():
    """As on CUDA, with an event that is there at once; what changes the counts from outside makes the number
    void."""

    class Event:
        def record(self): ...
        def synchronize(self): ...

    tracker = DeadTracker(4, dead_after_tokens=20, device=torch.device("cpu"))
    tracker._arrived = Event()
    assert tracker.dead().tolist() == []
    for _ in range(3):
        tracker.update(torch.tensor([False, True, False, True]), 10)
    assert int(tracker._n_dead) == 2
    assert tracker.dead().tolist() == tracker.dead().tolist() == [0, 2]
    tracker.tokens_since_fired[1] = 20
    assert tracker.dead().tolist() == [0, 1, 2]
    tracker.update(torch.tensor([True, False, False, False]), 10)
    assert tracker.dead().tolist() == [1, 2]


def test_product_chunks_are_the_encoder_product_and_can_be_gone_through_again():
    sae = SparseAutoencoder(SAEConfig(d_model=D, d_sae=N, kind="relu"))
    inputs = torch.randn(B, D)
    with torch.no_grad():
        sae.W_enc.normal_()
        chunks = ProductChunks(sae, inputs, torch.empty(8, N))
        for _ in range(2):
            torch.testing.assert_close(torch.cat([chunk.clone() for chunk in chunks]), inputs @ sae.W_enc)
        assert [len(chunk) for chunk in chunks] == [8, 8, 8, 5]


def test_encoder_gradient_and_adam_state_keep_the_latent_major_layout():
    sae = SparseAutoencoder(SAEConfig(d_model=D, d_sae=N, kind="topk", k=K))
    adam = torch.optim.Adam(sae.parameters(), fused=True)
    with torch.no_grad():
        TopK(sae, TrainConfig(k=K)).gradients(torch.randn(B, D), None, 1.0)
    adam.step()
    assert sae.W_enc.stride() == (1, D)
    assert sae.W_enc.grad.stride() == (1, D)
    assert adam.state[sae.W_enc]["exp_avg"].stride() == (1, D)
    assert sae.to(torch.float64).W_enc.stride() == (1, D)


def test_a_step_gathers_from_rounded_copies_and_sums_in_the_dtype_of_the_rows():
    """Against the definition of both passes in float64, given rows, inputs and error gradients as bf16."""
    gen = torch.Generator().manual_seed(0)
    sae, acts = SparseAutoencoder(SAEConfig(d_model=D, d_sae=N, kind="topk", k=K)), torch.randn(B, D)
    with torch.no_grad():
        for parameter in sae.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=gen))
        work, exact, inputs = Workspace(gather_dtype="bfloat16"), Workspace(), acts - sae.b_dec
        values, indices = reference.select_topk(inputs @ sae.W_enc, sae.b_enc, K)
        for workspace in (work, exact):
            workspace.fit(acts, sae)
            workspace.pass_over(acts, inputs, Pairs(values.relu(), indices), sae, 2 / B)

        rounded = sae.W_dec.bfloat16().double()
        z, flat = values.relu().double(), indices.view(-1)
        tokens = reference.token_pass(acts.double(), z, indices, rounded, sae.b_dec.double(), 2 / B)
        grads, rows = (t.bfloat16().double() for t in (work.tokens.recons_grad, inputs))
        pair_grads, W_dec = work.tokens.pair_grads.double(), sae.W_dec.double()
        latents = reference.latent_pass(grads, rows, z.view(-1), pair_grads, flat, W_dec)
    for got, want in zip((*work.tokens, *work.latents[:3]), (*tokens, *latents[:3]), strict=True):
        assert got.dtype == torch.float32
        torch.testing.assert_close(got.double(), want, rtol=1e-5, atol=1e-5 * float(want.abs().max()))
    off = (work.latents.dec_grad - exact.latents.dec_grad).norm() / exact.latents.dec_grad.norm()
    assert 1e-4 < off < 2**-7  # bf16 keeps 8 bits


def test_a_dense_kind_turns_to_the_kernels_where_less_than_a_sixteenth_is_on():
    mask = torch.zeros(4, 32, dtype=torch.bool)
    mask[0, :3] = mask[2, 5:9] = mask[3, 31] = True
    tokens, indices, offsets = few_pairs(mask)
    assert (tokens.tolist(), indices.tolist()) == ([0, 0, 0, 2, 2, 2, 2, 3], [0, 1, 2, 5, 6, 7, 8, 31])
    assert offsets.tolist() == [0, 3, 3, 7, 8]
    mask[1, 0] = True
    assert few_pairs(mask) is None


@pytest.mark.parametrize("bias", [-1.0, -100.0])
def test_auxk_of_few_latents_above_0_equals_the_dense_one(bias, monkeypatch):
    gen = torch.Generator().manual_seed(0)
    sae = SparseAutoencoder(SAEConfig(d_model=12, d_sae=64, kind="topk", k=4, dtype="float64"))
    inputs, error = (torch.randn(33, 12, generator=gen, dtype=torch.float64) for _ in range(2))
    dead, results = torch.arange(20, 40), []
    kind = TopK(sae, TrainConfig(k=4, k_aux=3, aux_coeff=0.25))
    with torch.no_grad():
        sae.W_dec.copy_(
            torch.nn.functional.normalize(torch.randn(64, 12, generator=gen, dtype=torch.float64), dim=1)
        )
        sae.W_enc.copy_(sae.W_dec.T)
        sae.b_enc.fill_(bias)
        for share in (0.0, 1.0):
            monkeypatch.setitem(SPARSE_BELOW, "cpu", share)
            loss, dec_grad, enc_grad, bias_grad = auxk_gradients(kind, inputs, error, dead, len(dead))
            results.append((loss, remove_parallel(dec_grad, sae.W_dec[dead]), enc_grad, bias_grad))
    for dense, sparse in zip(*results, strict=True):
        torch.testing.assert_close(sparse, dense, rtol=1e-10, atol=1e-12)
    assert bool(results[0][2].any()) is (bias > -100)


def test_a_short_run_of_a_wide_dictionary_gives_its_latents_time_to_fire():
    assert default_dead_after_tokens(1_000_000, 3072, 32) == 100_000
    assert default_dead_after_tokens(10**9, 3072, 32) == 10_000_000
    assert default_dead_after_tokens(20 * 1024, 2**20, 32) == 10 * 2**15
    assert default_dead_after_tokens(20 * 1024, 2**20, None) == 2048
    assert default_dead_after_tokens(5, 2, 32) == 1
