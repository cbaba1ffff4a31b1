"""Crosscoders trained on rows of two models side by side."""

import json

import pytest
import torch

import saelens_lite as sl
from saelens_lite.kernels.reference import remove_parallel
from saelens_lite.sae.config import SAEConfig
from saelens_lite.sae.crosscoder import Crosscoder
from saelens_lite.store.derived import paired_store
from saelens_lite.train.config import TrainConfig
from saelens_lite.train.crosscoders import side_of, train_crosscoder
from saelens_lite.train.kinds.choice import kind_class
from saelens_lite.train.kinds.kind import unit_rows_

N, SHARED, EXCLUSIVE, WIDTH = 20_000, 12, 4, 20
FIELDS = {"kind": "batchtopk", "k": 3, "d_sae": 32, "n_steps": 400, "batch_size_rows": 512, "progress": False}


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    """Rows of a base and a tuned model in other units: 12 features in both, 4 in the tuned one alone."""
    generator = torch.Generator().manual_seed(0)
    directions = torch.linalg.qr(torch.randn(WIDTH, WIDTH, generator=generator)).Q[: SHARED + EXCLUSIVE]
    on = torch.rand(N, SHARED + EXCLUSIVE, generator=generator).topk(3).indices
    values = 1 + torch.rand(N, 3, generator=generator)
    latents = torch.zeros(N, SHARED + EXCLUSIVE).scatter_(1, on, values)
    folder, documents = tmp_path_factory.mktemp("pair"), torch.arange(N) // 50
    base = latents[:, :SHARED] @ directions[:SHARED] + 0.01 * torch.randn(N, WIDTH, generator=generator)
    tuned = 5 * (latents @ directions)
    make = sl.ActivationStore.from_arrays
    stores = [make(folder / name, acts, documents=documents) for name, acts in (("a", base), ("b", tuned))]
    return stores, directions


@pytest.mark.long
def test_exclusive_features_have_a_row_in_one_model_alone(pair, tmp_path):
    stores, directions = pair
    crosscoder = train_crosscoder(stores, output=str(tmp_path / "crosscoder"), **FIELDS)
    unit = torch.nn.functional.normalize
    tuned = (unit(crosscoder.decoder(1), dim=1) @ directions.T).abs()
    best, latents = tuned.max(0)
    assert (best > 0.97).all()
    lean = crosscoder.lean()[latents]
    assert (lean[SHARED:] > 0.95).all() and ((lean[:SHARED] - 0.5).abs() < 0.2).all()
    base = unit(crosscoder.decoder(0)[latents[:SHARED]], dim=1)
    assert ((base * directions[:SHARED]).sum(1).abs() > 0.95).all()


def test_it_is_the_sae_of_rows_in_the_scale_of_each_side(pair, tmp_path):
    """In the units of the stores: the run's SAE of scaled rows says the same."""
    stores, _ = pair
    short = FIELDS | {"n_steps": 5}
    crosscoder = train_crosscoder(stores, output=str(tmp_path / "c"), **short)
    base, tuned = crosscoder.sides
    for side, store in zip(crosscoder.sides, stores, strict=True):
        rows = store.acts(0).double()
        distance = (rows - rows.mean(0)).square().sum(1).mean()
        assert side.scale == pytest.approx((WIDTH / float(distance)) ** 0.5, rel=1e-3)
    rows = paired_store(stores).acts(0, rows=slice(0, 100))
    scale = torch.tensor([base.scale] * WIDTH + [tuned.scale] * WIDTH)
    run = sl.SparseAutoencoder.load(tmp_path / "c/training")
    with torch.no_grad():
        got, want = crosscoder(rows), run(rows * scale)
    torch.testing.assert_close(got.recons * scale, want.recons, rtol=1e-4, atol=1e-4)
    norms = crosscoder.decoder_norms().square().sum(1)
    torch.testing.assert_close(norms, torch.ones(32), rtol=1e-4, atol=1e-4)
    again = Crosscoder.load(tmp_path / "c")
    assert all(torch.equal(p, q) for p, q in zip(again.parameters(), crosscoder.parameters(), strict=True))


def test_a_finished_one_is_returned_and_a_stopped_one_resumes_bit_for_bit(
    pair, tmp_path, monkeypatch, stop_after
):
    stores, _ = pair
    short = FIELDS | {"n_steps": 12, "checkpoint_every_steps": 4}
    whole = train_crosscoder(stores, output=str(tmp_path / "whole"), **short)
    log = (tmp_path / "whole/training/metrics.jsonl").read_bytes()
    again = train_crosscoder(stores, output=str(tmp_path / "whole"), **short)
    assert (tmp_path / "whole/training/metrics.jsonl").read_bytes() == log

    stop_after(7)
    with pytest.raises(SystemExit):
        train_crosscoder(stores, output=str(tmp_path / "stopped"), **short)
    monkeypatch.undo()
    resumed = train_crosscoder(stores, output=str(tmp_path / "stopped"), **short)
    for of_whole, of_again, of_resumed in zip(
        whole.parameters(), again.parameters(), resumed.parameters(), strict=True
    ):
        assert torch.equal(of_whole, of_again) and torch.equal(of_whole, of_resumed)


def test_what_does_not_go_together_is_refused_before_training(pair, tmp_path):
    stores, _ = pair
    other = sl.ActivationStore.from_arrays(tmp_path / "other", torch.randn(100, WIDTH))
    with pytest.raises(ValueError, match="two stores of one text"):
        train_crosscoder([stores[0], other], output=str(tmp_path / "c"), **FIELDS)
    with pytest.raises(ValueError, match="two stores or more"):
        train_crosscoder(stores[:1], output=str(tmp_path / "c"), **FIELDS)
    assert not (tmp_path / "c").exists()
    assert side_of(stores[0], None).hook_point == stores[0].hook_points[0]


def test_saelens_fields_say_what_it_is(pair, tmp_path):
    stores, _ = pair
    train_crosscoder(stores, output=str(tmp_path / "c"), **FIELDS | {"n_steps": 2})
    assert json.loads((tmp_path / "c/cfg.json").read_text())["architecture"] == "crosscoder"
    with pytest.raises(Exception, match="Crosscoder.load opens it"):
        sl.SparseAutoencoder.load(tmp_path / "c")


def test_gradients_equal_autograds_of_each_side():
    """In float64, from the crosscoder's own equations, side by side; rows in the scale of each."""
    widths, n, k = (5, 9), 24, 3
    generator = torch.Generator().manual_seed(0)

    def randn(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    sae = sl.SparseAutoencoder(SAEConfig(d_model=sum(widths), d_sae=n, k=k, dtype="float64"))
    with torch.no_grad():
        for parameter in sae.parameters():
            parameter.copy_(0.5 * randn(*parameter.shape))
        unit_rows_(sae.W_dec)
    rows = randn(17, sum(widths))
    sides = rows.split(widths, dim=1)
    encoders = [block.detach().clone().requires_grad_() for block in sae.W_enc.split(widths)]
    decoders = [block.detach().clone().requires_grad_() for block in sae.W_dec.split(widths, dim=1)]
    centres = [block.detach().clone().requires_grad_() for block in sae.b_dec.split(widths)]
    b_enc = sae.b_enc.detach().clone().requires_grad_()
    pre_acts = sum((x - c) @ W for x, c, W in zip(sides, centres, encoders, strict=True)) + b_enc
    kept = pre_acts.relu().topk(k, dim=1)
    z = torch.zeros_like(pre_acts).scatter(1, kept.indices, kept.values)
    errors = [x - (z @ W + c) for x, W, c in zip(sides, decoders, centres, strict=True)]
    sum(error.square().sum(1).mean() for error in errors).backward()

    kind = kind_class("topk")(sae, TrainConfig(kind="topk", k=k, aux_coeff=0.0))
    with torch.no_grad():
        kind.gradients(rows, None, 1.0)
    close = {"rtol": 1e-8, "atol": 1e-8}
    torch.testing.assert_close(sae.W_enc.grad, torch.cat([W.grad for W in encoders]), **close)
    torch.testing.assert_close(sae.b_enc.grad, b_enc.grad, **close)
    torch.testing.assert_close(sae.b_dec.grad, torch.cat([c.grad for c in centres]), **close)
    decoder = remove_parallel(torch.cat([W.grad for W in decoders], dim=1), sae.W_dec.detach())
    torch.testing.assert_close(sae.W_dec.grad, decoder, **close)
