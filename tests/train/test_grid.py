"""A grid: every member is the run that it would be alone, the rows are read once, and a killed one goes on,
bit for bit.

Kills are real SIGKILLs of another process, forked from one that has everything loaded.
"""

import gc
import json
import random
import signal
import weakref
from pathlib import Path

import pytest
import torch
from torch.testing import assert_close

import saelens_lite as sl
from saelens_lite.cli.commands import main
from saelens_lite.run_log import Tracker
from saelens_lite.train.config import TrainConfig
from saelens_lite.train.grid import grid_members, parsed_grid
from saelens_lite.train.optimise.trainer import Trainer
from saelens_lite.train.rows.protocol import ROW_FIELDS
from saelens_lite.train.rows.row_buffer import RowBuffer
from saelens_lite.train.rows.store_rows import StoreRows

ROOT = Path(__file__).parents[2]
N_STEPS = 24
OPTIONS = {
    "k": 3,
    "d_sae": 32,
    "n_steps": N_STEPS,
    "batch_size_rows": 256,
    "buffer_rows": 2048,
    "dead_after_tokens": 512,
    "log_every_steps": 3,
    "eval_every_steps": 2,
    "eval_rows": 256,
    "checkpoint_every_steps": 5,
    "keep_checkpoints": 1,
    "hook_point": "a",
    "device": "cpu",
    "progress": False,
}


@pytest.fixture(scope="module")
def store(tmp_path_factory, planted):
    rows = {"a": planted.acts, "b": planted.acts.roll(1, 1)}
    return sl.ActivationStore.from_arrays(
        tmp_path_factory.mktemp("rows") / "store", rows, rows_per_shard=3000
    )


def train(store, output, grid, **fields):
    return sl.train_grid(store, grid, **(OPTIONS | {"output": str(output)} | fields))


def outcome(output):
    """What a run left, but for clocks and where it stands."""
    cfg = json.loads((output / "cfg.json").read_text())
    del cfg["metadata"]["saelens_lite"]["train"]
    return (output / "sae_weights.safetensors").read_bytes(), cfg, lines(output)


def lines(output):
    found = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in line.items() if name != "tokens_per_s"} for line in found]


def outcomes(output):
    """Of every run below a folder; what a kill left half written is hidden."""
    folders = [
        path.parent for path in sorted(output.rglob("cfg.json")) if not path.parent.name.startswith(".")
    ]
    return {str(folder.relative_to(output)): outcome(folder) for folder in folders}


# the members


def test_members_are_named_by_what_tells_them_apart_and_have_one_row_order(store):
    members = grid_members(store, {"k": [2, 4], "seed": (0, 1)}, output="runs/grid", d_sae=32, seed=7)
    assert list(members) == ["k=2,seed=0", "k=2,seed=1", "k=4,seed=0", "k=4,seed=1"]
    last = members["k=4,seed=1"]
    assert (last.k, last.seed, last.order_seed, last.d_sae) == (4, 1, 7, 32)
    assert last.output == str(Path("runs/grid/k=4,seed=1"))
    explicit = grid_members(
        store, [{"hook_point": "a/b", "k": 2}, {"order_seed": 3}], TrainConfig(order_seed=5)
    )
    assert {name: config.order_seed for name, config in explicit.items()} == {
        "hook_point=a-b,k=2": 5,
        "order_seed=3": 3,
    }
    preset = grid_members(store, {"preset": ["openai-topk", "anthropic-l1"]}, batch_size_rows=256)
    assert [config.kind for config in preset.values()] == ["topk", "relu"]
    shares = grid_members(store, {"matryoshka_fractions": [(0.5, 1.0)]}, kind="matryoshka")
    assert list(shares) == ["matryoshka_fractions=0.5-1.0"]


@pytest.mark.parametrize(
    ("grid", "message"),
    [
        ([], "tell members apart.*got none"), ({}, "tell members apart.*got none"), ([{}], "tell members "
                                                                                           "apart.*got none"),
        ({"k": []}, r"a list of values for k, got \[\]"), ({"kind": "topk"}, "a list of values for kind, "
                                                                             "got 'topk'"),
        ({"k": [2, 2]}, "members that differ, got k=2 twice"),
        ({"output": ["x"]}, "tell members apart.*got output, which all members share"),
        ({"kk": [2]}, "unknown key 'kk'"), ({"k": ["2"]}, r"k expected int \| None, got str"),
    ],
)  # fmt: skip
def test_a_grid_that_is_none_is_refused(store, tmp_path, grid, message):
    with pytest.raises(ValueError, match=message):
        train(store, tmp_path, grid)
    assert not list(tmp_path.iterdir())


def test_the_grid_of_a_command_line():
    words = ["k=16,32", "l1-coeff=0.5,1e-3", "kind=topk", "d_sae=None", "scale_input=True,false"]
    assert parsed_grid(words) == {
        "k": [16, 32], "l1_coeff": [0.5, 1e-3], "kind": ["topk"], "d_sae": [None],
        "scale_input": [True, False],
    }  # fmt: skip
    for wrong in (["k"], ["k=1", "k=2"]):
        with pytest.raises(ValueError, match="--grid expected each field once"):
            parsed_grid(wrong)


@pytest.mark.long
@pytest.mark.parametrize(
    "grid",
    [
        {"k": [2, 4], "seed": [0, 1]},
        {"kind": ["batchtopk", "matryoshka", "relu", "gated", "jumprelu"]},
        {"d_sae": [32, 48], "hook_point": ["a", "b"]},
        [{"kind": "relu", "refit_fraction": f, "target_l0": 4.0, "k": None} for f in (0.0, 0.25, 0.5)],
        [{"n_steps": 9}, {"n_steps": 24}, {"batch_size_rows": 128}, {"l1_coeff": 1.0, "kind": "relu"}],
    ],
)
def test_a_member_is_the_run_that_it_is_alone(store, tmp_path, grid):
    saes = train(store, tmp_path / "grid", grid, baseline=isinstance(grid, dict) and "kind" in grid)
    for name, sae in saes.items():
        config = json.loads((tmp_path / "grid" / name / "train_config.json").read_text())
        alone = sl.train_sae(store, TrainConfig(**config), output=tmp_path / "alone" / name)
        assert all(
            torch.equal(parameter, alone.get_parameter(key)) for key, parameter in sae.named_parameters()
        )
    assert outcomes(tmp_path / "grid") == outcomes(tmp_path / "alone")
    assert len({weights for weights, _, _ in outcomes(tmp_path / "grid").values()}) >= len(saes)


# reading


@pytest.fixture
def reads(monkeypatch):
    """The rows of every read of a store, in order."""
    found, gather_into = [], sl.ActivationStore.gather_into

    def noted(self, out, places, rows, *args, **kwargs):
        found.append(rows.tolist())
        gather_into(self, out, places, rows, *args, **kwargs)

    monkeypatch.setattr(sl.ActivationStore, "gather_into", noted)
    return found


@pytest.mark.long
def test_many_members_read_what_one_reads(store, tmp_path, reads):
    sl.train_sae(store, output=tmp_path / "one", **OPTIONS)
    alone = list(reads)
    n_rows, train_rows = sum(map(len, alone)), int((~store.held_out_rows()).sum())
    assert n_rows > train_rows  # one pass over them, a sample, and what is held out, as often as it is scored
    reads.clear()
    train(store, tmp_path / "grid", {"k": [1, 2, 3, 4], "seed": [0, 1]}, baseline=True)
    assert reads == alone
    reads.clear()
    train(store, tmp_path / "two", {"k": [1, 2, 3, 4], "hook_point": ["a", "b"]})
    assert reads == alone + alone


@pytest.mark.long
def test_groups_follow_each_other_with_one_buffer_in_memory(store, tmp_path, monkeypatch):
    buffers, trainers, found = weakref.WeakSet(), weakref.WeakSet(), []
    batch, update = RowBuffer.batch, Trainer.update

    def counted(self, step):
        buffers.add(self)
        rows = batch(self, step)
        if step == 0:
            gc.collect()
        found.append((sum(buffer._buffers._made is not None for buffer in buffers), len(trainers)))
        return rows

    def breaking(self, acts):
        trainers.add(self)
        return update(self, acts * (float("nan") if self.config.k == 2 else 1))

    monkeypatch.setattr(RowBuffer, "batch", counted)
    monkeypatch.setattr(Trainer, "update", breaking)
    with pytest.raises(
        FloatingPointError, match="3 of 6 members broke"
    ):  # what broke keeps no weights either
        train(store, tmp_path, {"k": [2, 3], "order_seed": [0, 1, 2]}, n_steps=12, log_every_steps=1)
    assert [n for n, _ in found] == [1] * 12 * 3  # of each group a batch a step
    assert [n for _, n in found[::12]] == [0] * 3


def test_the_rows_depend_on_the_fields_that_decide_who_shares_them(store):
    read = set()

    class Noted:
        def __getattr__(self, name):
            read.add(name)
            return getattr(TrainConfig(batch_size_rows=256, hook_point="a", max_norm_ratio=10.0), name)

    rows = StoreRows(store, Noted())
    rows.batch(0), rows.sample(10), rows.held_out(), rows.check_held_out(), rows.check_steps(0, 1, "")
    assert read | {"end_to_end"} == set(ROW_FIELDS)


# kills

UPDATE, SYNC = (
    "saelens_lite.train.optimise.trainer.Trainer.update",
    "saelens_lite.atomic.sync",
)
GRID = [{"k": 2}, {"kind": "batchtopk", "seed": 1}, {"d_sae": 48, "n_steps": 17}]
"""Six runs with their baselines: 24 + 24 + 24 + 24 + 17 + 17 = 130 updates."""


@pytest.fixture(scope="module")
def forked(store, fork_server):
    """forked(output, at=(function, signal, nth)): GRID with baselines in a process of its own; see
    conftest.py."""
    with fork_server(store, OPTIONS | {"baseline": True}, GRID) as run:
        yield run


@pytest.fixture(scope="module")
def whole(forked, tmp_path_factory):
    """What the grid leaves without interruption."""
    output = tmp_path_factory.mktemp("whole")
    assert forked(output) == 0
    found = outcomes(output)
    assert len(found) == 6
    return found


@pytest.mark.slow
def test_killed_at_random_steps_it_ends_with_the_same_bits(forked, whole, tmp_path):
    for i in range(3):
        at = random.Random(i).randint(43 * i + 1, 43 * (i + 1))
        assert forked(tmp_path / str(i), (UPDATE, signal.SIGKILL, at)) == -signal.SIGKILL
        assert forked(tmp_path / str(i)) == 0
        assert outcomes(tmp_path / str(i)) == whole
        assert not list((tmp_path / str(i)).rglob("state"))


@pytest.mark.long
@pytest.mark.parametrize(
    ("function", "calls"),
    [
        (SYNC, [6, 14, 31, 60]),  # between the files of a checkpoint, between members' checkpoints
        ("os.replace", [2, 11, 40]),
        ("saelens_lite.train.runs.run.remove_checkpoints", [7, 10]),  # when a member is finished
    ],
)
def test_killed_between_the_members_it_ends_with_the_same_bits(forked, whole, tmp_path, function, calls):
    for nth in calls:
        assert forked(tmp_path / str(nth), (function, signal.SIGKILL, nth)) == -signal.SIGKILL
        assert forked(tmp_path / str(nth)) == 0
        assert outcomes(tmp_path / str(nth)) == whole


@pytest.mark.long
def test_killed_again_and_again_and_stopped(forked, whole, tmp_path):
    for nth in (31, 40, 17):
        assert forked(tmp_path, (UPDATE, signal.SIGKILL, nth)) == -signal.SIGKILL
    assert forked(tmp_path, (UPDATE, signal.SIGTERM, 20)) == 143
    states = {
        str(path.parent.parent.relative_to(tmp_path)): path.name for path in tmp_path.glob("**/state/step_*")
    }
    assert states.keys() == whole.keys()
    assert (
        len(set(states.values())) == 1
    )  # those behind had caught up: the stop finds and saves all at one step
    assert forked(tmp_path) == 0
    assert outcomes(tmp_path) == whole


# what is there


def test_over_kinds_a_field_is_left_out_where_it_is_not_used_and_named_once(store, tmp_path, caplog):
    options = {**OPTIONS, "n_steps": 2, "k": 3, "l1_coeff": 0.7, "baseline": False}
    with caplog.at_level("WARNING", logger="saelens_lite.train"):
        saes = sl.train_grid(store, {"kind": ["topk", "relu", "gated"]}, output=tmp_path, **options)
    assert caplog.text.count("k is left out where the kind does not use it: relu, gated") == 1
    assert caplog.text.count("l1_coeff is left out where the kind does not use it: topk") == 1
    trained = {name: sae.config.metadata["saelens_lite"]["train"] for name, sae in saes.items()}
    assert [facts["k"] for facts in trained.values()] == [3, 32, 32]
    assert [facts["l1_coeff"] for facts in trained.values()] == [5.0, 0.7, 0.7]
    with pytest.raises(ValueError, match="bandwidth expected None for the kind topk .* got 8"):
        sl.train_grid(store, {"kind": ["topk", "relu"]}, output=tmp_path / "b", bandwidth=8.0, **OPTIONS)
    with pytest.raises(ValueError, match="kind=relu,k=2 and kind=relu,k=3: the kind relu does not use k"):
        sl.train_grid(store, {"kind": ["topk", "relu"], "k": [2, 3]}, output=tmp_path / "c")


@pytest.mark.long
def test_members_of_a_release_that_let_unused_fields_be_set_are_known_again(store, tmp_path, monkeypatch):
    grid = {"kind": ["topk", "relu"]}
    first = train(store, tmp_path, grid)
    for name in first:  # as they were recorded then
        for file, entries in (("cfg.json", ("metadata", "saelens_lite", "train")), ("train_config.json", ())):
            content = json.loads((tmp_path / name / file).read_text())
            record = content
            for entry in entries:
                record = record[entry]
            record |= {"k": 3, "l1_coeff": 0.25 if name == "kind=topk" else 5.0, "bandwidth": 0.125}
            (tmp_path / name / file).write_text(json.dumps(content))
    monkeypatch.setattr(Trainer, "update", lambda *_: pytest.fail("it trains again"))
    assert train(store, tmp_path, grid).keys() == first.keys()


@pytest.mark.long
def test_what_is_finished_stays_and_what_is_new_is_trained(store, tmp_path, monkeypatch, caplog):
    first = train(store, tmp_path, {"k": [2, 3]})
    before = outcomes(tmp_path)
    updates, update = [], Trainer.update
    monkeypatch.setattr(
        Trainer, "update", lambda self, acts: updates.append(self.config.k) or update(self, acts)
    )
    with caplog.at_level("INFO", logger="saelens_lite.train"):
        again = train(store, tmp_path, {"k": [2, 3, 4]})
    assert "finished already: k=2, k=3" in caplog.text
    assert updates == [4] * N_STEPS
    assert list(again) == ["k=2", "k=3", "k=4"]
    assert all(torch.equal(first[name].W_enc, again[name].W_enc) for name in first)
    assert before.items() <= outcomes(tmp_path).items()
    with pytest.raises(
        ValueError, match=r"k=2 holds another run, finished: lr expected None, got 0.01. Set these"
    ):
        train(store, tmp_path, {"k": [2, 5]}, lr=0.01)
    assert not (tmp_path / "k=5").exists()
    updates.clear()
    train(store, tmp_path, {"k": [2, 3]}, overwrite=True)
    assert sorted(updates) == [2] * N_STEPS + [3] * N_STEPS
    assert before.items() <= outcomes(tmp_path).items()


@pytest.mark.long
def test_an_sae_that_failed_before_its_first_checkpoint_is_not_taken_for_a_finished_one(
    store, tmp_path, monkeypatch
):
    log = Tracker.log

    def full_disk(self, step, metrics):
        if step >= 3:
            raise OSError(28, "No space left on device")
        log(self, step, metrics)

    monkeypatch.setattr(Tracker, "log", full_disk)
    with pytest.raises(OSError, match="No space left"):
        train(store, tmp_path, {"k": [2, 3]})
    assert {path.parent.name for path in tmp_path.rglob("cfg.json")} == {"k=2", "k=3"}  # each as it stands
    failed = {k: sl.SparseAutoencoder.load(tmp_path / f"k={k}") for k in (2, 3)}
    monkeypatch.undo()
    for name, sae in train(store, tmp_path, {"k": [2, 3]}).items():
        facts = sl.SparseAutoencoder.load(tmp_path / name).config.metadata["saelens_lite"]
        assert facts["steps"] > failed[sae.config.k].config.metadata["saelens_lite"]["steps"]


@pytest.mark.long
def test_a_member_that_diverges_ends_alone_and_is_named(store, tmp_path, monkeypatch, caplog):
    update = Trainer.update

    def diverging(self, acts):
        if self.config.k == 3 and self.steps_done == 12:
            self.sae.b_dec.data.fill_(torch.inf)
        return update(self, acts)

    monkeypatch.setattr(Trainer, "update", diverging)
    message = (
        r"1 of 3 members broke: k=3: .* at step 1[34].*the training diverged.*\. "
        r"The others are trained: k=2, k=4"
    )
    with pytest.raises(FloatingPointError, match=message):
        train(store, tmp_path / "grid", {"k": [2, 3, 4]})
    assert "k=3 ends here: " in caplog.text
    monkeypatch.undo()
    train(store, tmp_path / "whole", {"k": [2, 4]})
    assert outcomes(tmp_path / "whole").items() <= outcomes(tmp_path / "grid").items()
    train(
        store, tmp_path / "grid", {"k": [2, 3, 4]}
    )  # from its last checkpoint on, here without what broke it
    assert lines(tmp_path / "grid" / "k=3")[-1]["step"] == N_STEPS


# the baseline


@pytest.mark.long
@pytest.mark.parametrize("kind", ["topk", "batchtopk"])
def test_the_baseline_stands_beside_the_run(store, tmp_path, kind):
    sl.train_sae(store, output=tmp_path / "plain", kind=kind, **OPTIONS)
    sl.train_sae(store, output=tmp_path / "frozen", kind=kind, freeze_decoder=True, **OPTIONS)
    sae = sl.train_sae(store, output=tmp_path / "both", kind=kind, baseline=True, **OPTIONS)
    weights, _, told = outcome(tmp_path / "both")
    plain_weights, _, plain_told = outcome(tmp_path / "plain")
    assert weights == plain_weights
    assert outcome(tmp_path / "both" / "frozen") == outcome(tmp_path / "frozen")
    beside = {line["step"]: line["baseline_fvu"] for line in told if "baseline_fvu" in line}
    frozen = {
        line["step"]: line["held_out_fvu"] for line in lines(tmp_path / "frozen") if "held_out_fvu" in line
    }
    assert beside == frozen and list(beside) == list(range(2, N_STEPS + 1, 2))
    assert [{name: line[name] for name in line if name != "baseline_fvu"} for line in told] == plain_told
    facts = sae.config.metadata["saelens_lite"]
    assert facts["baseline_fvu"] == frozen[N_STEPS] > facts["held_out_fvu"]


@pytest.mark.long
def test_the_baseline_of_a_run_that_resamples_does_not(store, tmp_path):
    fields = {"kind": "relu", "dead_after_tokens": 128, "l1_coeff": 50.0, "lr": 0.1, "l1_warm_up_steps": 0}
    options = {**OPTIONS, "k": None, **fields}
    sae = sl.train_sae(store, output=tmp_path / "both", baseline=True, resample_every_steps=5, **options)
    sl.train_sae(store, output=tmp_path / "plain", freeze_decoder=True, **options)
    assert outcome(tmp_path / "both" / "frozen") == outcome(tmp_path / "plain")
    assert sae.config.metadata["saelens_lite"]["baseline_fvu"] is not None


def test_a_run_that_begins_anew_without_a_baseline_leaves_none(store, tmp_path):
    options = {**OPTIONS, "output": tmp_path, "n_steps": 2}
    sl.train_sae(store, baseline=True, **options)
    assert (tmp_path / "frozen" / "cfg.json").exists()
    sl.train_sae(store, overwrite=True, **options)
    assert not (tmp_path / "frozen").exists()


def test_a_baseline_of_a_baseline_is_refused():
    with pytest.raises(ValueError, match="baseline expected False with freeze_decoder"):
        TrainConfig(baseline=True, freeze_decoder=True)


def test_a_baseline_that_diverges_is_named_and_the_run_is_trained(store, tmp_path, monkeypatch):
    update = Trainer.update

    def diverging(self, acts):
        if self.config.freeze_decoder and self.steps_done == 12:
            self.sae.b_dec.data.fill_(torch.inf)
        return update(self, acts)

    monkeypatch.setattr(Trainer, "update", diverging)
    with pytest.raises(FloatingPointError, match="the baseline .*frozen: .*diverged"):
        sl.train_sae(store, output=tmp_path, baseline=True, **OPTIONS)
    told = {line["step"]: line["baseline_fvu"] for line in lines(tmp_path) if "held_out_fvu" in line}
    assert told[12] is not None and told[N_STEPS] is None


# the command, several processes


def flags(**fields):
    options = {name: value for name, value in (OPTIONS | fields).items() if name != "progress"}
    return ["--no-progress", *(f"--{name.replace('_', '-')}={value}" for name, value in options.items())]


@pytest.mark.long
def test_the_command_prints_a_table(store, tmp_path, capsys):
    argv = [
        "train",
        "--store",
        str(store.path),
        *flags(output=tmp_path),
        "--baseline",
        "--grid",
        "k=2,4",
        "seed=0,1",
    ]
    for _ in range(2):
        assert main(argv) == 0
        out = capsys.readouterr().out.splitlines()
        assert out[0] == f"{tmp_path}: 4 SAEs"
        assert out[1].split() == ["member", "step", "fvu", "baseline_fvu", "l0", "dead@512"]
        assert [line.split()[0] for line in out[2:6]] == [
            "k=2,seed=0",
            "k=2,seed=1",
            "k=4,seed=0",
            "k=4,seed=1",
        ]
        assert [line.split()[4] for line in out[2:6]] == ["2.0", "2.0", "4.0", "4.0"]
        assert f"--sae {tmp_path}/k=2,seed=0 --baseline {tmp_path}/k=2,seed=0/frozen" in out[6]


def test_the_command_says_which_member_broke(store, tmp_path, capsys):
    argv = [
        "train",
        "--store",
        str(store.path),
        *flags(output=tmp_path, kind="relu", k=None),
        "--grid",
        "lr=1e-3,1e38",
    ]
    assert main(argv) == 2
    out, err = capsys.readouterr()
    assert "saelens-lite: 1 of 2 members broke: lr=1e+38: " in err
    assert out.splitlines()[2].split()[:2] == ["lr=0.001", "24"]


@pytest.mark.dist
def test_two_processes_train_the_grid_of_one(store, tmp_path, ranks):
    argv = ["-m", "saelens_lite.train", "--store", store.path, *flags(output=tmp_path / "two", lr=1e-3)]
    processes = ranks(2, *argv, "--grid", "k=2,4", "hook_point=a,b")
    one = train(store, tmp_path / "one", {"k": [2, 4], "hook_point": ["a", "b"]}, lr=1e-3)
    code, output = processes.communicate(timeout=180)
    assert code == 0, output
    assert output.count("4 SAEs") == 1
    for name, sae in one.items():
        two = sl.SparseAutoencoder.load(tmp_path / "two" / name)
        for key, parameter in sae.named_parameters():
            assert_close(two.get_parameter(key), parameter, rtol=1e-4, atol=1e-4)
