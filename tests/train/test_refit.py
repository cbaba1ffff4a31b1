"""refit_sae: against dense least squares in float64, firings that stay, foreign conventions, refusals."""

import logging

import pytest
import torch
from pytest import approx
from scipy.optimize import lsq_linear
from torch.testing import assert_close

import saelens_lite as sl
from saelens_lite.sae.autoencoder import SparseAutoencoder
from saelens_lite.sae.config import SAEConfig
from saelens_lite.sae.metrics import ReconstructionSums
from saelens_lite.train import refit_sae

D, N, ROWS = 8, 24, 600


def rows(offset=3.0):
    gen = torch.Generator().manual_seed(1)
    return torch.randn(ROWS, D, generator=gen) * torch.linspace(0.5, 2, D) + offset


def relu_sae(**fields):
    """Too weak by half, as a penalty leaves it."""
    gen = torch.Generator().manual_seed(0)
    dtype = fields.pop("dtype", "float32")
    sae = SparseAutoencoder(SAEConfig(d_model=D, d_sae=N, kind="relu", dtype=dtype, **fields))
    with torch.no_grad():
        rows_of = torch.randn(N, D, generator=gen)
        sae.W_dec.copy_(torch.nn.functional.normalize(rows_of, dim=1))
        sae.W_enc.copy_(0.2 * sae.W_dec.T)
        sae.b_enc.copy_(0.1 * torch.randn(N, generator=gen))
        sae.b_dec.fill_(3.0)
    return sae


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    folder = tmp_path_factory.mktemp("rows") / "store"
    return sl.ActivationStore.from_arrays(folder, rows(), dtype="float32", documents=torch.arange(ROWS) // 5)


def fvu(sae, acts):
    sums = ReconstructionSums(D)
    sums.update(acts, sae(acts).recons)
    return sums.fvu


@pytest.mark.long
@torch.no_grad()
@pytest.mark.parametrize(("decoder", "n_steps", "rel"), [(True, 300, 1e-4), (False, 300, 3e-3)])
def test_it_ends_at_least_squares_over_the_same_firings(store, decoder, n_steps, rel):
    """Decoder rows times magnitudes, or magnitudes above 0, and b_dec are linear in the reconstruction."""
    sae, acts = relu_sae(), rows().double()
    refitted = refit_sae(
        sae, store, decoder=decoder, n_steps=n_steps, batch_size_rows=ROWS, held_out_fraction=0.0
    )
    on = sae.encode_dense(rows()).double()
    if decoder:
        design, target, least = torch.cat([on, on.new_ones(ROWS, 1)], 1), acts, None
        solution = torch.linalg.lstsq(design, target).solution
    else:
        written = torch.einsum("bn,nd->bdn", on, sae.W_dec.double()).reshape(ROWS * D, N)
        constant = torch.eye(D, dtype=torch.float64).repeat(ROWS, 1)
        design, target = torch.cat([written, constant], 1), acts.flatten()
        least = [0.0] * N + [-torch.inf] * D
        solution = torch.from_numpy(lsq_linear(design.numpy(), target.numpy(), (least, torch.inf)).x)
    best = float((design @ solution - target).square().sum())

    def error(of):
        return float((of(rows()).recons.double() - acts).square().sum())

    assert error(refitted) == approx(best, rel=rel)
    assert error(sae) > 3 * best
    assert refitted.config.metadata["saelens_lite"]["refit"]["after"]["held_out_fvu"] is None


def test_every_firing_stays_and_the_given_sae_too(store):
    sae = relu_sae()
    given = {name: value.clone() for name, value in sae.state_dict().items()}
    refitted = refit_sae(sae, store, n_steps=30, batch_size_rows=128)
    on = sae.pre_acts(rows()) > 0
    assert torch.equal(refitted.pre_acts(rows()) > 0, on) and 0.2 < on.float().mean() < 0.8
    for name, value in sae.state_dict().items():
        assert torch.equal(value, given[name]), name
    assert_close(torch.linalg.vector_norm(refitted.W_dec, dim=1), torch.ones(N))


def test_without_the_decoder_every_direction_stays(store):
    sae = relu_sae()
    refitted = refit_sae(sae, store, decoder=False, n_steps=30, batch_size_rows=128)
    assert_close(refitted.W_dec, sae.W_dec)
    assert not torch.allclose(refitted.W_enc, sae.W_enc, rtol=0.1)
    record = refitted.config.metadata["saelens_lite"]["refit"]
    assert record["cosine_mean"] == approx(1, abs=1e-6) and record["magnitude_median"] > 1.5


def test_what_it_did_is_recorded(store):
    sae, held_out = relu_sae(model_name="tiny", metadata={"layer": 3}), store.held_out_rows(0.2)
    refitted = refit_sae(sae, store, n_steps=30, batch_size_rows=128, held_out_fraction=0.2, seed=4)
    facts, acts = refitted.config.metadata["saelens_lite"], rows()[held_out]
    record = facts["refit"]
    assert record["store"] == store.fingerprint
    assert (record["steps"], record["rows"], record["seed"], record["decoder"]) == (30, 3840, 4, True)
    assert record["before"]["held_out_fvu"] == approx(fvu(sae, acts), rel=1e-4)
    assert record["after"]["held_out_fvu"] == approx(fvu(refitted, acts), rel=1e-4)
    assert facts["held_out_fvu"] == record["after"]["held_out_fvu"] < 0.7 * record["before"]["held_out_fvu"]
    assert record["firings"] == int((sae.pre_acts(acts) > 0).sum()) and record["changed_firings"] == 0
    cosines = torch.nn.functional.cosine_similarity(sae.W_dec, refitted.W_dec).detach()
    assert record["latents"] == N
    assert record["cosine_mean"] == approx(float(cosines.mean()), abs=1e-5)
    assert record["cosine_least"] == approx(float(cosines.min()), abs=1e-5)
    assert refitted.config.model_name == "tiny" and refitted.config.metadata["layer"] == 3


@pytest.mark.parametrize(
    "fields", [{"apply_b_dec_to_input": False}, {"dtype": "bfloat16"}, {"hook_point": "hook"}]
)
def test_an_sae_of_other_conventions_begins_as_what_it_is(store, tmp_path, fields):
    """Free norms, an encoder that sees b_dec, 16 bits: before the fit it scores as in its own form."""
    sae = relu_sae(**fields)
    with torch.no_grad():
        norms = torch.linspace(0.5, 2, N)
        sae.W_dec.mul_(norms[:, None])
        sae.W_enc.div_(norms)
        sae.b_enc.div_(norms)
    on = sae.float().pre_acts(rows()) > 0
    folder = sae.save(tmp_path / "sae")
    if "hook_point" in fields:
        store = sl.ActivationStore.from_arrays(tmp_path / "s", {"hook": rows()}, dtype="float32")
    refitted = refit_sae(folder, store, n_steps=10, batch_size_rows=128, held_out_fraction=0.2)
    record = refitted.config.metadata["saelens_lite"]["refit"]
    acts = rows()[store.held_out_rows(0.2)]
    assert record["before"]["held_out_fvu"] == approx(fvu(sae.float(), acts), rel=1e-4)
    assert refitted.config.apply_b_dec_to_input and refitted.dtype == torch.float32
    assert torch.equal(refitted.pre_acts(rows()) > 0, on)
    refitted.save(tmp_path / "refitted")
    opened = SparseAutoencoder.load(tmp_path / "refitted")
    assert_close(opened(acts).recons, refitted(acts).recons)


def test_an_sae_that_nothing_shrank_is_told(store, caplog):
    better = refit_sae(relu_sae(), store, n_steps=100, batch_size_rows=400, held_out_fraction=0.1)
    with caplog.at_level(logging.WARNING, logger="saelens_lite.train.refit"):
        refit_sae(better, store, n_steps=1, batch_size_rows=32, held_out_fraction=0.1)
    assert "was not shrunk on these rows" in caplog.text


REFUSED = {"topk": "the k largest", "jumprelu": "counts latents", "gated": "acts on gates"}


@pytest.mark.parametrize("kind", REFUSED)
def test_kinds_without_shrinkage_are_refused_with_the_reason(store, kind):
    sae = SparseAutoencoder(SAEConfig(d_model=D, d_sae=N, kind=kind, k=3 if kind == "topk" else None))
    with pytest.raises(ValueError, match=f"expected a relu SAE .* got {kind}: .*{REFUSED[kind]}"):
        refit_sae(sae, store)


def test_what_does_not_fit_the_rows_is_refused(store):
    with pytest.raises(ValueError, match="normalize_activations='layer_norm'"):
        refit_sae(relu_sae(normalize_activations="layer_norm"), store)
    with pytest.raises(ValueError, match="d_model=4, got 8"):
        refit_sae(SparseAutoencoder(SAEConfig(d_model=4, d_sae=N, kind="relu")), store)
    with pytest.raises(ValueError, match="rows of blocks.3.hook_resid_post, on which the SAE was trained"):
        refit_sae(relu_sae(hook_point="blocks.3.hook_resid_post"), store)
    for name in ("n_steps", "batch_size_rows"):
        with pytest.raises(ValueError, match=f"{name} expected"):
            refit_sae(relu_sae(), store, **{name: 0})


@pytest.mark.long
def test_it_finds_strengths_of_planted_features_and_loses_none(tmp_path):
    """A small twin of the part `planted` of tests/bench/l1.py, where directions become truer too."""
    world = sl.synthetic.SyntheticActivations(sl.synthetic.SyntheticConfig(d_model=32, n_features=96, l0=5))
    store = world.to_store(tmp_path / "store", 20_000)
    options = {"d_sae": 64, "batch_size_rows": 512, "n_steps": 200, "l1_coeff": 3.0, "refit_fraction": 0.0}
    options |= {"kind": "relu", "output": tmp_path / "sae", "device": "cpu", "progress": False}
    shrunk = sl.train_sae(store, **options)
    refitted = refit_sae(shrunk, store, n_steps=100, batch_size_rows=512)
    before, after = (
        sl.ground_truth.evaluate_recovery(sae, world, n_rows=5000).rows[0] for sae in (shrunk, refitted)
    )
    assert after.mcc > before.mcc - 0.01 > 0.9
    assert after.norm_ratio > before.norm_ratio + 0.1
    assert after.f1 > before.f1 - 0.01
    assert after.fvu < 0.8 * before.fvu
