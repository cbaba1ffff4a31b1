"""train_sae on a small harvested store: what it writes, what it repeats, how it stops."""

import json
import os
import signal
import time

import pytest
import torch
from torch.testing import assert_close

import saelens_lite as sl
from saelens_lite.sae.folder import load_log_sparsity
from saelens_lite.train.config import TrainConfig
from saelens_lite.train.optimise.trainer import Trainer
from saelens_lite.train.rows.input_scale import input_scale
from saelens_lite.train.rows.joined_stores import JoinedStores
from saelens_lite.train.rows.protocol import n_steps as steps_of
from saelens_lite.train.rows.protocol import spread
from saelens_lite.train.rows.row_buffer import RowBuffer
from saelens_lite.train.rows.row_order import RowOrder
from saelens_lite.train.rows.store_rows import StoreRows

HOOK_POINT = "blocks.0.hook_resid_post"


@pytest.fixture(scope="module")
def store(tmp_path_factory, byte_tokenizer):
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=259, n_positions=64, n_embd=32, n_layer=2, n_head=4, bos_token_id=1, eos_token_id=2
    )
    texts = [f"document {i} speaks of {i * i} things, and of {chr(97 + i % 26) * 5}" for i in range(200)]
    return sl.harvest_activations(
        GPT2LMHeadModel(config).eval(),
        texts,
        [HOOK_POINT],
        tmp_path_factory.mktemp("store"),
        max_tokens=6000,
        context_length=64,
        dtype="float32",
        tokenizer=byte_tokenizer,
        progress=False,
    )


def train(store, output, **fields):
    defaults = {"kind": "topk", "k": 4, "d_sae": 64, "n_steps": 30, "batch_size_rows": 256, "device": "cpu"}
    defaults["checkpoint_every_steps"] = 100  # what a checkpoint holds: test_checkpoints.py
    return sl.train_sae(store, output=str(output), **{**defaults, "progress": False, **fields})


def lines(output):
    return [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.long
@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"kind": "relu", "k": None, "l1_coeff": 0.5},
        {"freeze_decoder": True},
        {"kind": "batchtopk"},
        {"kind": "matryoshka"},
        {"kind": "gated", "k": None, "l1_coeff": 0.5},
        {"kind": "jumprelu", "k": None, "target_l0": 8},
        {"kind": "relu", "k": None, "l1_coeff": 0.5, "unit_decoder": False},
    ],
)
def test_the_saved_sae_is_the_returned_one_in_the_units_of_the_store(store, tmp_path, fields):
    sae = train(store, tmp_path, n_steps=60, **fields)
    loaded = sl.SparseAutoencoder.load(tmp_path)
    acts = store.gather(torch.arange(500))
    assert_close(loaded(acts).recons, sae(acts).recons)
    assert_close(loaded.W_dec.norm(dim=1), torch.ones(64))
    assert loaded.config.hook_point == HOOK_POINT
    held_out = store.gather(store.held_out_rows().nonzero().view(-1)).double()
    error = sae(held_out).recons.detach() - held_out
    fvu = float(error.square().sum() / (held_out - held_out.mean(0)).square().sum())
    assert fvu < 0.8
    # the firing that gave a kind its threshold may be on either side of it in the units of training
    rel = 1e-3 if sae.config.kind == "jumprelu" else 1e-5
    assert lines(tmp_path)[-1]["held_out_fvu"] == pytest.approx(fvu, rel=rel)


@pytest.mark.long
@pytest.mark.parametrize("kind", ["batchtopk", "matryoshka"])
def test_what_keeps_k_of_a_batch_is_saved_with_a_threshold_for_k_on_held_out_rows(store, tmp_path, kind):
    sae = train(store, tmp_path, kind=kind, n_steps=60)
    loaded = sl.SparseAutoencoder.load(tmp_path)
    assert loaded.kind == "jumprelu"
    assert torch.equal(loaded.threshold, sae.threshold)
    held_out = store.gather(store.held_out_rows().nonzero().view(-1))
    assert float(loaded.encode(held_out).l0().mean()) == pytest.approx(4, rel=0.01)
    assert lines(tmp_path)[-1]["held_out_l0"] == pytest.approx(4, rel=0.01)


def test_metrics_name_the_window_of_the_dead_and_the_held_out_rows(store, tmp_path):
    train(store, tmp_path, log_every_steps=5, eval_every_steps=15, dead_after_tokens=512)
    training = [line for line in lines(tmp_path) if "reconstruction" in line]
    assert [line["step"] for line in training] == [5, 10, 15, 20, 25, 30]
    assert all("dead@512" in line and line["tokens"] == 256 * line["step"] for line in training)
    assert all(isinstance(line["dead@512"], float) for line in training)
    assert training[-1]["reconstruction"] < training[0]["reconstruction"]
    assert [line["step"] for line in lines(tmp_path) if "held_out_fvu" in line] == [15, 30]


def test_the_progress_bar_counts_every_step(store, tmp_path, capsys):
    train(store, tmp_path, n_steps=7, progress=True)
    assert "| 7/7 [" in capsys.readouterr().err


def test_a_dead_share_needs_as_many_tokens_as_its_window(store, tmp_path):
    train(store, tmp_path, log_every_steps=10, dead_after_tokens=20 * 256)
    shares = [line["dead@5120"] for line in lines(tmp_path) if "dead@5120" in line]
    assert shares[0] is None and shares[1] is not None


@pytest.mark.long
def test_the_same_seed_gives_the_same_sae_and_another_seed_another(store, tmp_path):
    weights = [train(store, tmp_path / str(i), seed=seed).W_dec for i, seed in enumerate((0, 0, 1))]
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])


def test_held_out_documents_are_never_trained_on(store, tmp_path, monkeypatch):
    seen, order = [], RowOrder.rows
    monkeypatch.setattr(RowOrder, "rows", lambda self, key: seen.append(order(self, key)) or seen[-1])
    train(store, tmp_path, held_out_fraction=0.3)
    held_out = store.held_out_rows(0.3).nonzero().view(-1)
    assert len(held_out) > 500
    assert not set(held_out.tolist()) & set(torch.cat(seen).flatten().tolist())


@pytest.mark.long
def test_the_input_scale_is_optional(store, tmp_path):
    assert not torch.equal(
        train(store, tmp_path / "a").W_dec, train(store, tmp_path / "b", scale_input=False).W_dec
    )


def test_epochs_give_the_number_of_steps(store, tmp_path):
    train(store, tmp_path, n_steps=None, n_epochs=2.0, expansion=2, d_sae=None, log_every_steps=1)
    n_train_rows = int((~store.held_out_rows()).sum())
    assert lines(tmp_path)[-1]["step"] == 2 * (n_train_rows // 256)
    assert sl.SparseAutoencoder.load(tmp_path).d_sae == 64


@pytest.mark.long
def test_an_earlier_sae_is_not_replaced_unasked(store, tmp_path):
    first = train(store, tmp_path).W_dec
    with pytest.raises(ValueError, match="holds another run, finished: seed expected 0, got 1. Set these"):
        train(store, tmp_path, seed=1)
    assert torch.equal(sl.SparseAutoencoder.load(tmp_path).W_dec, first)
    assert not torch.equal(train(store, tmp_path, seed=1, overwrite=True).W_dec, first)


@pytest.mark.long
def test_a_finished_run_is_returned_and_nothing_is_written(store, tmp_path, monkeypatch, caplog):
    first = train(store, tmp_path, baseline=True)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    monkeypatch.setattr(Trainer, "update", lambda *_: pytest.fail("it trains again"))
    with caplog.at_level("INFO", logger="saelens_lite.train"):
        again = train(store, tmp_path, baseline=True, log_every_steps=3)
    assert f"finished already: {tmp_path}" in caplog.text
    assert all(
        torch.equal(now, then) for now, then in zip(again.parameters(), first.parameters(), strict=True)
    )
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


def test_a_baseline_that_is_asked_for_later_is_trained_beside_the_finished_run(store, tmp_path):
    first = train(store, tmp_path)
    assert torch.equal(train(store, tmp_path, baseline=True).W_dec, first.W_dec)
    assert sl.SparseAutoencoder.load(tmp_path / "frozen").config.metadata["saelens_lite"]["steps"] == 30


def test_an_sae_that_no_run_made_is_not_replaced_unasked(store, tmp_path):
    sl.SparseAutoencoder(sl.SAEConfig(d_model=32, d_sae=64, k=4)).save(tmp_path)
    with pytest.raises(ValueError, match="holds an SAE already: choose another output, or overwrite=True"):
        train(store, tmp_path)


def test_a_failure_on_the_way_leaves_the_sae_as_it_stands(store, tmp_path, monkeypatch):
    def full_disk(self, step, metrics):
        if step >= 20:
            raise OSError(28, "No space left on device")

    monkeypatch.setattr("saelens_lite.run_log.Tracker.log", full_disk)
    with pytest.raises(OSError, match="No space left"):
        train(store, tmp_path)
    assert sl.SparseAutoencoder.load(tmp_path).config.metadata["saelens_lite"]["steps"] == 20


@pytest.mark.long
@pytest.mark.parametrize("broken", ["checkpoints.save_file", "run.save_checkpoint"])
def test_an_error_before_the_first_checkpoint_does_not_hold_up_the_same_call(
    store, tmp_path, monkeypatch, broken
):
    def full_disk(*_, **__):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(f"saelens_lite.train.runs.{broken}", full_disk)
        with pytest.raises((OSError, sl.CheckpointError), match="No space left"):
            train(store, tmp_path / "run", checkpoint_every_steps=3)
    assert sl.SparseAutoencoder.load(tmp_path / "run").config.metadata["saelens_lite"]["steps"] == 3
    with pytest.raises(ValueError, match="holds another run"):
        train(store, tmp_path / "run", seed=1)
    assert torch.equal(train(store, tmp_path / "run").W_dec, train(store, tmp_path / "whole").W_dec)
    steps = [line["step"] for line in lines(tmp_path / "run")]
    assert steps == [line["step"] for line in lines(tmp_path / "whole")] and steps[-1] == 30


def test_of_two_calls_at_once_the_later_one_looks_again(store, tmp_path, monkeypatch):
    from saelens_lite.train.runs import sae_learner as training

    inner = training.starting_sae

    def meanwhile(*args):
        monkeypatch.setattr(training, "starting_sae", inner)
        train(store, tmp_path)
        return inner(*args)

    monkeypatch.setattr(training, "starting_sae", meanwhile)
    with pytest.raises(
        ValueError, match="another process trained into .* meanwhile: run the same command again"
    ):
        train(store, tmp_path)
    assert sl.SparseAutoencoder.load(tmp_path).config.metadata["saelens_lite"]["steps"] == 30


def test_rows_spread_over_very_large_stores_stay_inside():
    class Rows:
        def __len__(self):
            return 33_554_436

        def __getitem__(self, index):
            return index

    places = spread(Rows(), 32_768)
    assert (places[0], places[-1], len(places)) == (0, 33_554_435, 32_768)
    assert bool((places.diff() > 0).all())


def test_float32_stores_are_trained_on_in_float32(store, tmp_path, monkeypatch):
    dtypes, load = set(), RowBuffer._load
    monkeypatch.setattr(
        RowBuffer, "_load", lambda self, *key: (a := load(self, *key), dtypes.add(a.dtype))[0]
    )
    train(store, tmp_path)
    assert dtypes == {torch.float32}


def test_an_unknown_field_names_the_nearest(store, tmp_path):
    with pytest.raises(ValueError, match=r"unknown key 'expanson' \(did you mean 'expansion'\?\)"):
        train(store, tmp_path, expanson=8)


def test_a_loss_that_is_not_finite_stops_the_run_and_names_the_step(store, tmp_path, monkeypatch):
    acts = store.gather(torch.arange(store.n_rows))
    acts[7] = float("nan")
    monkeypatch.setattr(
        JoinedStores, "gather", lambda self, rows, dtype=torch.float32, out=None: acts[rows].to(dtype)
    )
    monkeypatch.setattr("saelens_lite.train.runs.sae._INIT_ROWS", 4)
    with pytest.raises(FloatingPointError, match="loss is nan at step .*: row 7 of shard 0"):
        train(store, tmp_path, held_out_fraction=0.0, n_steps=60, checkpoint_every_steps=60)
    with pytest.raises(FloatingPointError, match="a weight is not finite at step 40: row 7 of shard 0"):
        train(
            store, tmp_path, held_out_fraction=0.0, n_steps=60, log_every_steps=60, checkpoint_every_steps=40
        )
    assert not (tmp_path / "cfg.json").exists()


def test_the_folder_tells_how_often_each_latent_fires_on_held_out_rows(store, tmp_path):
    sae = train(store, tmp_path, held_out_fraction=0.2)
    rows = store.held_out_rows(0.2).nonzero().flatten()
    fires = sae.encode_dense(store.gather(rows)) > 0
    assert_close(load_log_sparsity(tmp_path), (fires.double().mean(0) + 1e-10).log10().float())


def test_the_settings_of_a_run_are_whole_or_those_of_the_run_before(store, tmp_path, monkeypatch):
    train(store, tmp_path, seed=1)
    before, replace = (tmp_path / "train_config.json").read_bytes(), os.replace

    def failing(source, target):
        if os.fspath(target).endswith("train_config.json"):
            raise OSError(28, "No space left on device")
        replace(source, target)

    monkeypatch.setattr(os, "replace", failing)
    with pytest.raises(OSError, match="No space left"):
        train(store, tmp_path, seed=2, overwrite=True)
    assert (tmp_path / "train_config.json").read_bytes() == before
    assert json.loads(before)["seed"] == 1 and not list(tmp_path.glob("train_config.json.*"))


def test_saves_on_the_way(store, tmp_path):
    train(store, tmp_path, checkpoint_every_steps=10, n_steps=15)
    facts = json.loads((tmp_path / "cfg.json").read_text())["metadata"]["saelens_lite"]
    assert (facts["steps"], facts["tokens"]) == (15, 15 * 256)
    assert facts["store"] == store.fingerprint


@pytest.mark.long
def test_wandb_offline_writes_a_run(store, tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "offline")
    train(store, tmp_path, wandb_project="saelens_lite_test")
    assert list((tmp_path / "wandb").glob("offline-run-*/*.wandb"))


@pytest.mark.long
@pytest.mark.parametrize("number", [pytest.param(signal.SIGTERM, marks=pytest.mark.slow), signal.SIGINT])
def test_a_stopped_run_leaves_a_loadable_sae(store, tmp_path, forked_python, number):
    code = (
        "import sys, saelens_lite as sl\n"
        "sl.train_sae(sys.argv[1], output=sys.argv[2], k=4, d_sae=64, n_steps=10**6, batch_size_rows=256,"
        " device='cpu', progress=False)"
    )
    process = forked_python.start("-c", code, store.path, tmp_path)
    metrics = tmp_path / "metrics.jsonl"
    while not (metrics.exists() and metrics.stat().st_size) and process.poll() is None:
        time.sleep(0.01)
    process.send_signal(number)
    assert process.wait() == (143 if number == signal.SIGTERM else -signal.SIGINT)
    facts = sl.SparseAutoencoder.load(tmp_path).config.metadata["saelens_lite"]
    assert 0 < facts["steps"] < 10**6


def test_rows_of_extreme_norm_are_left_out_of_training_when_asked_for(planted, tmp_path, monkeypatch, caplog):
    """Rows of norm about 2.8, of which every hundredth is made 50 times as long; their documents are held out
    as ever."""
    acts = planted.acts.clone()
    acts[::100] *= 50
    store = sl.ActivationStore.from_arrays(tmp_path / "store", acts, rows_per_shard=3000)
    norms = acts.norm(dim=1)
    assert store.median_norm() == pytest.approx(float(norms.median()))
    allowed = norms <= 10 * norms.median()
    train_rows = ~store.held_out_rows()
    share = 1 - float((allowed & train_rows).sum() / train_rows.sum())
    assert 0.005 < share < 0.015

    seen, order = [], RowOrder.rows
    monkeypatch.setattr(RowOrder, "rows", lambda self, key: seen.append(order(self, key)) or seen[-1])
    scored, gather = [], JoinedStores.gather
    monkeypatch.setattr(
        JoinedStores, "gather", lambda self, rows, *a: scored.append(rows) or gather(self, rows, *a)
    )
    with caplog.at_level("INFO", logger="saelens_lite.train.rows"):
        sae = train(store, tmp_path / "sae", max_norm_ratio=10.0, n_epochs=1.0, n_steps=None)
    trained_on, expected = (
        torch.cat(seen).flatten().tolist(),
        (allowed & train_rows).nonzero().flatten().tolist(),
    )
    assert (
        set(trained_on) <= set(expected)
        and len(trained_on) == len(set(trained_on)) == len(expected) // 256 * 256
    )
    assert torch.equal(scored[-1], (~train_rows).nonzero().flatten())  # evaluation reads every held-out row
    assert f"{100 * share:.4f}% of the training rows are left out: norm above 10 × the median" in caplog.text
    assert sae.config.metadata["saelens_lite"]["left_out_share"] == pytest.approx(share)
    assert [line["left_out_share"] for line in lines(tmp_path / "sae") if "l0" in line] == [
        pytest.approx(share)
    ] * 3

    seen.clear()
    sae = train(store, tmp_path / "all", n_epochs=1.0, n_steps=None)
    assert len(torch.cat(seen).flatten()) == int(train_rows.sum()) // 256 * 256
    assert "left_out_share" not in sae.config.metadata["saelens_lite"]


def test_the_scale_is_that_of_the_rows_trained_on(planted, tmp_path):
    """The rows left out are 2500 times the others in squared norm: they would make the scale five times too
    small."""
    acts = planted.acts.clone()
    acts[::100] *= 50
    spoilt = sl.ActivationStore.from_arrays(tmp_path / "spoilt", acts)
    clean = sl.ActivationStore.from_arrays(tmp_path / "clean", planted.acts)
    scales = [
        StoreRows(store, TrainConfig(max_norm_ratio=10.0, batch_size_rows=256)).scale
        for store in (spoilt, clean)
    ]
    assert scales[0] == pytest.approx(scales[1], rel=0.01)
    assert StoreRows(spoilt, TrainConfig(batch_size_rows=256, device="cpu")).scale < 0.3 * scales[0]


def test_a_wrong_norm_ratio_is_refused():
    with pytest.raises(ValueError, match="max_norm_ratio expected above 0 or None, got 0"):
        TrainConfig(max_norm_ratio=0)


@pytest.mark.parametrize(("n_epochs", "n_steps"), [(0.29, 29), (0.57, 57), (1.15, 115), (2, 200), (1e-9, 1)])
def test_a_decimal_number_of_epochs_is_taken_as_it_is_written(n_epochs, n_steps):
    assert steps_of(TrainConfig(n_epochs=n_epochs), 100) == n_steps


@pytest.mark.long
@pytest.mark.parametrize("size", [1e-20, 1e18])
def test_rows_of_any_size_that_float32_holds_are_trained_on(planted, tmp_path, size):
    numbers = []
    for scale in (1.0, size):
        store = sl.ActivationStore.from_arrays(tmp_path / f"{scale}", planted.acts * scale)
        sae = train(store, tmp_path / f"sae {scale}")
        numbers.append(sae.config.metadata["saelens_lite"]["held_out_fvu"])
        assert bool(sae(planted.acts * scale).recons.isfinite().all())
    assert numbers[0] == pytest.approx(numbers[1], rel=0.02)


def test_rows_below_the_numbers_of_float32_are_refused_as_too_small():
    with pytest.raises(ValueError, match="more than 1e-21, .* distance of 1e-76 from .*: multiply the rows"):
        input_scale(1e-76, torch.zeros(16))


@pytest.mark.long
@pytest.mark.parametrize("kind", ["batchtopk", "matryoshka"])
def test_without_held_out_rows_the_threshold_lets_k_through_on_rows_trained_on(store, tmp_path, kind):
    sae = train(store, tmp_path, kind=kind, n_steps=60, held_out_fraction=0.0)
    rows = store.gather(torch.arange(store.n_rows))
    assert float(sae.encode(rows).l0().mean()) == pytest.approx(4, rel=0.01)


def test_a_store_is_not_trained_into(planted, tmp_path):
    store = sl.ActivationStore.from_arrays(tmp_path / "store", planted.acts)
    with pytest.raises(ValueError, match="store is the folder of an activation store: choose another output"):
        train(store, tmp_path / "store")
    assert store.verify() == []
