"""The rows of a run, of one store or of several that are mixed."""

import json
import threading

import pytest
import torch

import saelens_lite as sl
from saelens_lite.train.config import TrainConfig
from saelens_lite.train.optimise.trainer import Trainer
from saelens_lite.train.rows.store_rows import StoreRows

OPTIONS = {
    "k": 3,
    "d_sae": 32,
    "n_steps": 12,
    "batch_size_rows": 100,
    "buffer_rows": 1000,
    "device": "cpu",
    "progress": False,
}


@pytest.fixture(scope="module")
def stores(tmp_path_factory, planted):
    """Three stores: 5,000 rows, 3,192 rows three times as long, and 700 of them again in float16."""
    folder, make = tmp_path_factory.mktemp("stores"), sl.ActivationStore.from_arrays
    return [
        make(folder / "a", planted.acts[:5000], rows_per_shard=2000),
        make(folder / "b", 3 * planted.acts[5000:], rows_per_shard=1500),
        make(folder / "c", planted.acts[:700], dtype="float16"),
    ]


def rows_of(stores, **fields):
    return StoreRows(stores, TrainConfig(**{**OPTIONS, **fields}))


def is_long(acts):
    """Rows of b have norm 6 or more, the others less."""
    return acts.norm(dim=1) > 6


def test_the_planted_rows_are_told_apart_by_length(planted):
    norms = planted.acts.norm(dim=1)
    assert norms.max() < 6 < 3 * norms.median()


def test_every_batch_has_the_share_of_each_store(stores):
    store = [torch.cat([s.acts(i) for i in range(s.n_shards)]).norm(dim=1) for s in stores[:2]]
    lengths = torch.cat(store)
    rows = rows_of(stores[:2], store_weights=(0.7, 0.3))
    for step in (0, 1, 5, 11):
        batch = rows.batch(step)
        assert batch.shape == (100, 16) and batch.dtype == torch.float32
        places = [int((lengths - norm).abs().argmin()) for norm in batch.norm(dim=1)]
        assert sum(place >= 5000 for place in places) == 30


def test_one_store_in_a_list_is_that_store(stores):
    for step in (0, 7, 60):
        assert torch.equal(rows_of([stores[0]]).batch(step), rows_of(stores[0]).batch(step))
    assert rows_of([stores[0]]).identity == rows_of(stores[0]).identity


def test_by_default_an_epoch_shows_each_row_once(stores):
    rows = rows_of(stores[:2])
    seen = torch.cat([rows.batch(step) for step in range(rows.steps_per_epoch)])
    held_out = sum(int(store.held_out_rows().sum()) for store in stores[:2])
    assert len(seen) == (8192 - held_out) // 100 * 100
    assert len(seen.unique(dim=0)) == len(seen)


def test_held_out_rows_are_those_of_all_stores_and_never_trained_on(stores):
    rows = rows_of(stores[:2], held_out_fraction=0.3)
    expected = torch.cat([s.gather(s.held_out_rows(0.3).nonzero().view(-1)) for s in stores[:2]])
    assert torch.equal(rows.held_out(), expected)
    seen = torch.cat([rows.batch(step) for step in range(2 * rows.steps_per_epoch)])
    assert not {tuple(row) for row in expected.tolist()} & {tuple(row) for row in seen.tolist()}


def test_the_scale_is_of_the_distances_from_the_mean_of_a_batch(stores):
    a, b = (store.gather(torch.arange(store.n_rows)).double() for store in stores[:2])
    mean = 0.75 * a.mean(0) + 0.25 * b.mean(0)
    distances = [float((rows - mean).square().sum(1).mean()) for rows in (a, b)]
    expected = (16 / (0.75 * distances[0] + 0.25 * distances[1])) ** 0.5
    assert rows_of(stores[:2], store_weights=(3.0, 1.0)).scale == pytest.approx(expected, rel=1e-6)
    assert rows_of(stores[0]).scale == pytest.approx(
        (16 / float((a - a.mean(0)).square().sum(1).mean())) ** 0.5, rel=1e-6
    )


def test_a_mean_that_all_rows_share_and_rows_that_are_left_out_do_not_change_the_scale(planted, tmp_path):
    acts = planted.acts[:2000]
    make, fields = sl.ActivationStore.from_arrays, {"documents": torch.arange(2000) // 20}
    plain = rows_of(make(tmp_path / "plain", acts, dtype="float32", **fields)).scale
    offset = torch.linspace(-3, 3, 16) * 10
    moved = make(tmp_path / "moved", acts + offset, dtype="float32", **fields)
    assert rows_of(moved).scale == pytest.approx(plain, rel=1e-4)
    massive = make(
        tmp_path / "massive", torch.cat([acts, 500 * acts[:20]]), documents=torch.arange(2020) // 20,
        dtype="float32",
    )  # fmt: skip
    assert rows_of(massive, max_norm_ratio=50.0).scale == pytest.approx(plain, rel=1e-5)
    with pytest.raises(ValueError, match="expected activations that differ"):
        rows_of(make(tmp_path / "alike", acts[:1].expand(2000, 16), **fields))


def test_rows_of_extreme_norm_are_those_of_their_own_store(stores):
    """Each row of b is three times as long as those of a, and none is extreme among its own."""
    assert rows_of(stores[:2], max_norm_ratio=2.0).left_out_share == 0
    assert rows_of(stores[:2], max_norm_ratio=1.0).left_out_share == pytest.approx(0.5, abs=0.01)


def test_stores_of_other_dtypes_meet_in_float32(stores):
    a, c = stores[0], stores[2]
    batch = rows_of([a, c], store_weights=(0.5, 0.5), held_out_fraction=0.0).batch(3)
    exact = {tuple(row) for row in a.acts(0).tolist() + a.acts(1).tolist() + a.acts(2).tolist()}
    assert sum(tuple(row) in exact for row in batch.tolist()) == 50


def test_stores_that_do_not_go_together_are_named(stores, planted, tmp_path):
    make = sl.ActivationStore.from_arrays
    narrow, other = (
        make(tmp_path / "narrow", planted.acts[:, :9]),
        make(tmp_path / "other", {"mlp": planted.acts}),
    )
    with pytest.raises(
        ValueError, match=f"one width at acts, {stores[0].path} has 16 and {narrow.path} has 9"
    ):
        rows_of([stores[0], narrow])
    with pytest.raises(
        ValueError, match=f"share a hook point, {stores[0].path} has acts and {other.path} has mlp"
    ):
        rows_of([stores[0], other])
    one_document = make(tmp_path / "one", planted.acts[:9], documents=torch.full((9,), 3))
    assert one_document.held_out_rows(0.999).all()
    with pytest.raises(ValueError, match=f"{one_document.path} has no rows to train on"):
        rows_of([stores[0], one_document], held_out_fraction=0.999, batch_size_rows=1)
    for weights, expected in (
        ((1.0,), "2 numbers, one for each store, got 1"),
        ((1.0, 0.0), "above 0 or None"),
    ):
        with pytest.raises(ValueError, match=f"store_weights expected {expected}"):
            sl.train_sae(stores[:2], **OPTIONS, store_weights=weights)


def test_a_broken_row_is_named_with_its_store(stores, planted, tmp_path):
    spoilt = sl.ActivationStore.from_arrays(tmp_path / "spoilt", planted.acts, rows_per_shard=3000)
    [file] = spoilt.path.glob("shards/00001/acts.safetensors")
    content = bytearray(file.read_bytes())
    at = content.index(planted.acts[3011].numpy().tobytes())
    content[at : at + 4] = torch.tensor([torch.nan]).numpy().tobytes()
    file.write_bytes(content)
    rows = rows_of([stores[0], spoilt], held_out_fraction=0.0)
    with pytest.raises(
        FloatingPointError, match=f"a row is not finite: row 11 of shard 1 .*spoilt.*verify {spoilt.path}"
    ):
        rows.sample(10**6)
    with pytest.raises(FloatingPointError, match="loss: row 11 of shard 1 .*spoilt"):
        rows.check_steps(0, rows.steps_per_epoch, "loss")


@pytest.mark.long
def test_a_mixture_is_trained_on_recorded_and_told_from_others(stores, tmp_path, monkeypatch):
    sae = sl.train_sae(stores[:2], **OPTIONS, output=tmp_path / "sae", store_weights=(0.75, 0.25))
    record = sae.config.metadata["saelens_lite"]
    assert record["stores"] == [
        {"store": stores[0].fingerprint, "share": 0.75},
        {"store": stores[1].fingerprint, "share": 0.25},
    ]
    settings = json.loads((tmp_path / "sae" / "train_config.json").read_text())
    assert settings["store"] == [str(store.path) for store in stores[:2]]
    again = sl.train_sae(settings.pop("store"), **settings | {"output": str(tmp_path / "again")})
    assert torch.equal(again.W_dec, sae.W_dec)
    assert rows_of(stores[:2]).identity != rows_of(stores[1::-1]).identity
    assert sl.evaluate_sae(sae, stores[1]).same_store and not sl.evaluate_sae(sae, stores[2]).same_store


@pytest.mark.long
def test_reading_ahead_leaves_no_bit_different_and_no_thread_behind(stores, tmp_path, monkeypatch):
    alone, ahead = (
        sl.train_sae(stores[:2], **OPTIONS, output=tmp_path / str(prefetch), prefetch=prefetch)
        for prefetch in (False, True)
    )
    assert torch.equal(alone.W_dec, ahead.W_dec) and torch.equal(alone.W_enc, ahead.W_enc)
    update = Trainer.update
    monkeypatch.setattr(
        Trainer, "update", lambda self, acts: update(self, acts) if self.steps_done < 5 else 1 / 0
    )
    with pytest.raises(ZeroDivisionError):
        sl.train_sae(stores[:2], **OPTIONS, output=tmp_path / "failed", prefetch=True)
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("saelens_lite-ahead")]
