"""A training that is killed, stopped or crashed goes on with the same call and ends as if nothing had
happened, bit for bit.

Kills are real SIGKILLs of another process, forked from one that has everything loaded.
"""

import json
import random
import shutil
import signal
import time
from pathlib import Path
from typing import get_args

import pytest
import torch

import saelens_lite as sl
from saelens_lite.errors import CheckpointError
from saelens_lite.run_log import Tracker
from saelens_lite.sae.autoencoder import SparseAutoencoder
from saelens_lite.sae.config import SAEConfig
from saelens_lite.train.config import KindName, TrainConfig
from saelens_lite.train.optimise.trainer import Trainer
from saelens_lite.train.rows.store_rows import StoreRows
from saelens_lite.train.runs import run as training
from saelens_lite.train.runs.checkpoints import load_checkpoint
from saelens_lite.train.runs.output import seen

KINDS = get_args(KindName)
N_STEPS = 40
OPTIONS = {
    "k": 4,
    "d_sae": 64,
    "n_steps": N_STEPS,
    "batch_size_rows": 256,
    "buffer_rows": 2048,
    "dead_after_tokens": 512,
    "eval_rows": 256,
    "log_every_steps": 3,
    "device": "cpu",
    "progress": False,
}
RESAMPLED = {"k": None, "resample_every_steps": 5, "l1_warm_up_steps": 0, "lr": 0.05}
OWN = {"relu": {"l1_coeff": 0.5, "k": None}, "gated": {"l1_coeff": 0.5, "k": None}, "jumprelu": {"k": None}}
"""Beside OPTIONS, by kind."""


@pytest.fixture(scope="module")
def store(tmp_path_factory, planted):
    return sl.ActivationStore.from_arrays(
        tmp_path_factory.mktemp("rows") / "store", planted.acts, rows_per_shard=3000
    )


def train(store, output, **fields):
    return sl.train_sae(store, **(OPTIONS | {"output": str(output)} | fields))


def outcome(output):
    """What a run left, but for clocks and where it stands."""
    cfg = json.loads((output / "cfg.json").read_text())
    del cfg["metadata"]["saelens_lite"]["train"]
    lines = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
    for line in lines:
        line.pop("tokens_per_s", None)
    return (output / "sae_weights.safetensors").read_bytes(), cfg, lines


def steps(output):
    return sorted(int(path.name.removeprefix("step_")) for path in (output / "state").glob("step_*"))


# kills

UPDATE, SYNC = (
    "saelens_lite.train.optimise.trainer.Trainer.update",
    "saelens_lite.atomic.sync",
)


@pytest.fixture(scope="module")
def forked(store, fork_server):
    """forked(output, at=(function, signal, nth), **fields): a training in a process of its own; see
    conftest.py."""
    with fork_server(store, OPTIONS) as run:
        yield run


@pytest.fixture(scope="module")
def whole(forked, tmp_path_factory):
    """whole(kind): what a run without interruption leaves."""
    found = {}

    def run(kind):
        if kind not in found:
            output = tmp_path_factory.mktemp(kind)
            assert forked(output, kind=kind, **OWN.get(kind, {})) == 0
            found[kind] = outcome(output)
        return found[kind]

    return run


@pytest.mark.long
def test_killed_at_ten_random_steps_it_ends_with_the_same_bits(forked, whole, tmp_path):
    for i in range(10):
        step = 4 * i + random.Random(i).randint(1, 4)
        assert forked(tmp_path / str(i), (UPDATE, signal.SIGKILL, step)) == -signal.SIGKILL
        assert forked(tmp_path / str(i)) == 0
        assert outcome(tmp_path / str(i)) == whole("topk")
        assert not (tmp_path / str(i) / "state").exists()


@pytest.mark.long
@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_goes_on_exactly_though_killed_again_and_again(forked, whole, tmp_path, kind):
    own = OWN.get(kind, {})
    for nth in (7, 11, 5, 14):  # in the process that goes on at the last checkpoint
        assert forked(tmp_path, (UPDATE, signal.SIGKILL, nth), kind=kind, **own) == -signal.SIGKILL
    assert forked(tmp_path, kind=kind, **own) == 0
    assert outcome(tmp_path) == whole(kind)


@pytest.mark.long
@pytest.mark.parametrize("fields", [{"l1_coeff": 0.5}, {"target_l0": 4.0, "freeze_decoder": True}])
def test_around_the_border_of_the_refit_phase_it_goes_on_exactly(forked, tmp_path, fields):
    """Steps 8 and 9 of 10 are the phase: resumed before its border, on it, and after its first step."""
    fields = {"kind": "relu", "k": None, "n_steps": 10, "checkpoint_every_steps": 1, **fields}
    assert forked(tmp_path / "whole", **fields) == 0
    for done in (7, 8, 9):
        output = tmp_path / str(done)
        assert forked(output, (UPDATE, signal.SIGKILL, done + 1), **fields) == -signal.SIGKILL
        assert steps(output)[-1] == done
        tensors = load_checkpoint(output).state
        assert ("kind.log_magnitude" in tensors) == (done >= 8)
        assert forked(output, **fields) == 0
        assert outcome(output) == outcome(tmp_path / "whole")


@pytest.mark.long
@pytest.mark.parametrize(
    "fields",
    [
        {"freeze_decoder": True},
        {"scale_input": False},
        {"max_norm_ratio": 1.2},
        {"k_anneal_fraction": 0.8, "input_noise": 0.1},
        {"kind": "relu", "l1_coeff": 10.0, **RESAMPLED},
        {"kind": "gated", "l1_coeff": 10.0, **RESAMPLED},
        {"kind": "jumprelu", **RESAMPLED},
    ],
)
def test_with_other_settings_too(forked, tmp_path, fields):
    assert forked(tmp_path / "whole", **fields) == 0
    assert forked(tmp_path / "killed", (UPDATE, signal.SIGKILL, 23), **fields) == -signal.SIGKILL
    assert forked(tmp_path / "killed", **fields) == 0
    assert outcome(tmp_path / "killed") == outcome(tmp_path / "whole")


@pytest.mark.long
@pytest.mark.parametrize(
    ("function", "calls"),
    [
        # between the files of a checkpoint, around its rename, around a removal
        (SYNC, [1, 2, 3, 4, 5, 6, 7, 11, 12, 16]),
        # before a checkpoint, before each file of the SAE and the settings, before a removal
        ("os.replace", [1, 2, 3, 4, 5, 6, 10, 31]),
        ("shutil.rmtree", [1, 2, 8]),
    ],
)
def test_killed_while_a_checkpoint_is_written_it_goes_on_at_one_that_is_whole(
    forked, whole, tmp_path, function, calls
):
    for nth in calls:
        output = tmp_path / str(nth)
        assert forked(output, (function, signal.SIGKILL, nth)) == -signal.SIGKILL
        assert forked(output) == 0
        assert outcome(output) == whole("topk")
        assert [path.name for path in output.iterdir() if path.name.startswith((".", "state"))] == []


@pytest.mark.long
@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_stopped_it_leaves_the_sae_and_goes_on_where_it_was(forked, whole, tmp_path, number, code):
    assert forked(tmp_path, (UPDATE, number, 18)) == code
    assert steps(tmp_path) == [16, 18]
    assert sl.SparseAutoencoder.load(tmp_path).config.metadata["saelens_lite"]["steps"] == 18
    assert forked(tmp_path) == 0
    assert outcome(tmp_path) == whole("topk")


# what is there


@pytest.mark.long
def test_the_newest_checkpoints_are_kept_and_of_a_finished_run_none(store, tmp_path, killed_before, caplog):
    for keep, expected in ((1, [20]), (3, [10, 15, 20])):
        with killed_before(23):
            train(store, tmp_path / str(keep), keep_checkpoints=keep, checkpoint_every_steps=5)
        assert steps(tmp_path / str(keep)) == expected
    assert sl.SparseAutoencoder.load(tmp_path / "3").config.metadata["saelens_lite"]["steps"] == 20
    with caplog.at_level("INFO", logger="saelens_lite.train"):
        train(store, tmp_path / "3")
    assert f"resuming the run in {tmp_path / '3'} at step 20" in caplog.text
    assert not (tmp_path / "3" / "state").exists()
    with caplog.at_level("INFO", logger="saelens_lite.train"):
        train(store, tmp_path / "3")
    assert f"finished already: {tmp_path / '3'}" in caplog.text


def test_what_kills_left_goes_when_the_run_goes_on_or_has_ended(store, tmp_path, monkeypatch):
    def dying(*_, **__):
        raise KeyboardInterrupt

    output = tmp_path / "run"
    with monkeypatch.context() as patch:
        patch.setattr("saelens_lite.sae.folder.settle", lambda _: None)  # a kill in a save
        patch.setattr("saelens_lite.sae.folder.save_file", dying)
        with pytest.raises(KeyboardInterrupt):
            train(store, output)
    SparseAutoencoder(SAEConfig(d_model=4, d_sae=8, k=1)).save(tmp_path / "left")
    (tmp_path / "left").rename(tmp_path / ".run.abcd_123.tmp")  # the same, in a version before
    (output / ".saving-abcd_123").mkdir(parents=True)
    with monkeypatch.context() as patch:
        patch.setattr("saelens_lite.atomic.shutil.rmtree", lambda *_, **__: None)  # killed as it ends
        train(store, output)
    assert (output / ".state.old").exists()
    train(store, output)
    assert not [path for path in tmp_path.rglob("*") if path.name.startswith(".")]


def test_the_format(store, tmp_path, killed_before):
    with killed_before(9):
        train(store, tmp_path, kind="relu", k=None)
    folder = tmp_path / "state" / "step_00000008"
    assert sorted(path.name for path in folder.iterdir()) == ["state.json", "state.safetensors"]
    facts = json.loads((folder / "state.json").read_text())
    assert set(facts) == {
        "format", "version", "run", "values", "progress", "made_by", "tensors_sha256", "sha256",
    }  # fmt: skip
    assert (facts["format"], facts["version"], facts["values"]) == (
        "saelens_lite trainer state",
        1,
        {"steps_done": 8},
    )
    assert facts["run"]["store"] == f"content {store.fingerprint}"
    lines = (tmp_path / "metrics.jsonl").read_bytes()[: facts["progress"]["metrics_bytes"]].splitlines()
    assert json.loads(lines[-1])["step"] == 8  # the evaluation that is due ten times a run
    state = load_checkpoint(tmp_path).state
    assert state["adam.0.exp_avg"].shape == (64, 16)
    assert state["dead.tokens_since_fired"].dtype == torch.int64


@pytest.mark.long
def test_from_a_damaged_checkpoint_it_falls_back_to_the_one_before(store, tmp_path, killed_before, caplog):
    train(store, tmp_path / "whole")
    with killed_before(23):
        train(store, tmp_path / "killed")

    def damage(path, change):
        content = bytearray(path.read_bytes())
        path.write_bytes(change(content))

    def flipped(content):
        content[len(content) // 2] ^= 1
        return content

    newest, before = (tmp_path / "killed" / "state" / f"step_000000{step}" for step in (20, 16))
    facts = [("state.json", change) for change in (flipped, lambda content: content[:99], lambda _: b"[]")]
    for i, (file, change) in enumerate([("state.safetensors", flipped), *facts]):
        output = tmp_path / str(i)
        shutil.copytree(tmp_path / "killed", output)
        damage(output / "state" / newest.name / file, change)
        caplog.clear()
        train(store, output)
        assert f"the checkpoint {output / 'state' / newest.name} is damaged" in caplog.text
        assert outcome(output) == outcome(tmp_path / "whole")

    (before / "state.safetensors").unlink()
    damage(newest / "state.safetensors", flipped)
    with pytest.raises(
        CheckpointError, match=r"all 2 are damaged.*; restore one, or pass overwrite=True to start anew"
    ):
        train(store, tmp_path / "killed")
    train(store, tmp_path / "killed", overwrite=True)
    assert outcome(tmp_path / "killed") == outcome(tmp_path / "whole")


@pytest.mark.long
def test_another_run_is_refused_by_its_differing_fields(store, tmp_path, killed_before, planted):
    with killed_before(23):
        train(store, tmp_path / "run")
    with pytest.raises(
        ValueError, match="stopped at step 20: k expected 4, got 8; lr expected None, got 0.01. Set these"
    ):
        train(store, tmp_path / "run", k=8, lr=0.01)
    other = sl.ActivationStore.from_arrays(tmp_path / "other", planted.acts + 1)
    with pytest.raises(
        ValueError, match=f"expected 'content {store.fingerprint}', got 'content {other.fingerprint}'"
    ):
        train(other, tmp_path / "run")
    assert steps(tmp_path / "run") == [16, 20]
    train(store, tmp_path / "run", k=8, overwrite=True)
    assert sl.SparseAutoencoder.load(tmp_path / "run").config.k == 8


@pytest.mark.long
def test_what_does_not_determine_the_run_may_change(store, tmp_path, killed_before):
    whole = train(store, tmp_path / "whole")
    with killed_before(23):
        train(store, tmp_path / "run")
    shutil.copytree(store.path, tmp_path / "moved")
    (tmp_path / "run").rename(tmp_path / "elsewhere")
    fields = {"log_every_steps": 1, "eval_every_steps": 7, "checkpoint_every_steps": 2, "keep_checkpoints": 1}
    moved = sl.ActivationStore(tmp_path / "moved")
    sae = train(moved, tmp_path / "elsewhere", hook_point=moved.hook_points[0], **fields)
    assert torch.equal(sae.W_enc, whole.W_enc) and torch.equal(sae.W_dec, whole.W_dec)


@pytest.mark.long
def test_lines_beyond_the_checkpoint_are_cut_and_missing_ones_are_reported(
    store, tmp_path, killed_before, caplog
):
    with killed_before(24):
        train(store, tmp_path)
    metrics = tmp_path / "metrics.jsonl"
    assert json.loads(metrics.read_text().splitlines()[-1])["step"] == 24
    train(store, tmp_path)
    found = [
        json.loads(line)["step"] for line in metrics.read_text().splitlines() if "reconstruction" in line
    ]
    assert found == [*range(3, N_STEPS, 3), N_STEPS]

    with killed_before(23):
        train(store, tmp_path, overwrite=True)
    metrics.write_bytes(metrics.read_bytes()[:100])
    train(store, tmp_path)
    assert "lacks lines" in caplog.text
    assert [json.loads(line)["step"] for line in metrics.read_text().splitlines()][:1] == [21]


@pytest.mark.long
def test_a_failure_leaves_the_sae_and_says_where_the_run_goes_on(store, tmp_path, monkeypatch, caplog):
    train(store, tmp_path / "whole")
    log = Tracker.log

    def full_disk(self, step, metrics):
        if step >= 18:
            raise OSError(28, "No space left on device")
        log(self, step, metrics)

    monkeypatch.setattr(Tracker, "log", full_disk)
    with pytest.raises(OSError, match="No space left"):
        train(store, tmp_path / "failed")
    assert (
        "failed after step 18 of 40" in caplog.text
        and "run the same command again to resume at step 16" in caplog.text
    )
    assert sl.SparseAutoencoder.load(tmp_path / "failed").config.metadata["saelens_lite"]["steps"] == 18
    monkeypatch.undo()
    train(store, tmp_path / "failed")
    assert outcome(tmp_path / "failed") == outcome(tmp_path / "whole")


def test_a_second_process_is_kept_out(store, tmp_path):
    with (
        training._alone(tmp_path, seen(tmp_path)),
        pytest.raises(ValueError, match="another process is training into"),
    ):
        train(store, tmp_path)


@pytest.mark.long
def test_wandbs_run_goes_on_under_its_id(store, tmp_path, killed_before, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "offline")
    with killed_before(23):
        train(store, tmp_path, wandb_project="saelens_lite_test")
    time.sleep(1.1)  # wandb names the folders of offline runs by id and second
    train(store, tmp_path, wandb_project="saelens_lite_test")
    runs = [path.name.rpartition("-")[2] for path in (tmp_path / "wandb").glob("offline-run-*")]
    assert len(runs) == 2 and len(set(runs)) == 1


# rows that are not finite


def spoilt_store(acts, folder, row, value):
    """A store of one shard whose file was altered after it was written: the row holds `value`."""
    store = sl.ActivationStore.from_arrays(folder, acts, rows_per_shard=3000)
    [file] = Path(folder).glob("shards/00001/acts.safetensors")
    content = bytearray(file.read_bytes())
    start = content.index(acts[3000].numpy().tobytes()) + row * acts.shape[1] * 4
    content[start : start + 4] = torch.tensor([value]).numpy().tobytes()
    file.write_bytes(content)
    return store


@pytest.mark.long
@pytest.mark.parametrize(
    ("kind", "value"), [*((kind, float("nan")) for kind in KINDS), ("topk", float("inf"))]
)
def test_a_row_that_is_not_finite_stops_the_run_by_name_and_spoils_nothing(
    planted, tmp_path, monkeypatch, kind, value
):
    clean = sl.ActivationStore.from_arrays(tmp_path / "clean", planted.acts, rows_per_shard=3000)
    rows = StoreRows(clean, TrainConfig(**{**OPTIONS, "held_out_fraction": 0.0}))
    place = next(i for i, row in enumerate(rows._buffer.rows(25).tolist()) if 3000 <= row < 6000)
    row = int(rows._buffer.rows(25)[place]) - 3000
    monkeypatch.setattr("saelens_lite.train.runs.sae._INIT_ROWS", 16)
    monkeypatch.setattr("saelens_lite.train.rows.store_rows._SEEN_ROWS", 16)
    store = spoilt_store(planted.acts, tmp_path / "store", row, value)
    named = f"row {row} of shard 1 .*00001.acts.safetensors.*saelens-lite verify"
    fields = {"held_out_fraction": 0.0, "kind": kind, "max_norm_ratio": None}
    if kind not in ("topk", "batchtopk", "matryoshka"):
        fields["k"] = None
    for log_every_steps, when in ((3, r".* is .* at step 2[67]"), (N_STEPS, "a weight .* at step 28")):
        output = tmp_path / str(log_every_steps)
        with pytest.raises(FloatingPointError, match=f"{when}: {named}"):
            train(store, output, log_every_steps=log_every_steps, **fields)
        assert steps(output) == [20, 24]
        sae = sl.SparseAutoencoder.load(output)
        assert sae.config.metadata["saelens_lite"]["steps"] == 24
        assert all(bool(parameter.isfinite().all()) for parameter in sae.parameters())
        assert all(
            bool(t.isfinite().all())
            for t in load_checkpoint(output).state.values()
            if isinstance(t, torch.Tensor)
        )


def test_broken_rows_are_found_before_the_start_among_those_that_it_reads(planted, tmp_path):
    store = spoilt_store(planted.acts, tmp_path / "store", 11, float("nan"))
    for fraction in (0.0, 0.9):
        with pytest.raises(FloatingPointError, match="a row is not finite: row 11 of shard 1"):
            train(store, tmp_path / "sae", held_out_fraction=fraction, eval_rows=8192)
    assert not (tmp_path / "sae").exists()


@pytest.mark.long
def test_a_training_that_diverges_by_itself_says_so(store, tmp_path, monkeypatch):
    update = Trainer.update

    def diverging(self, acts):
        if self.steps_done == 25:
            self.sae.b_dec.data.fill_(torch.inf)
        return update(self, acts)

    monkeypatch.setattr(Trainer, "update", diverging)
    with pytest.raises(
        FloatingPointError, match="at step 27, though all rows since step 24 are: .* Lower lr"
    ):
        train(store, tmp_path)
    assert steps(tmp_path) == [20, 24]
