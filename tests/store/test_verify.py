"""Finding what is damaged in a store, and making exactly that anew."""

import dataclasses
import json
import random
import shutil
from pathlib import Path

import numpy as np
import pytest

from saelens_lite.cli.commands import main
from saelens_lite.errors import ShardError
from saelens_lite.harvest import HarvestConfig, add_hook_points, harvest_activations, run_harvest
from saelens_lite.store.folder import open_folder
from saelens_lite.store.layout import encode_json, manifest_sha256
from saelens_lite.store.reader import ActivationStore
from saelens_lite.store.verify import Problem, repair_store, verify_store

FIRST, SECOND = "blocks.0.hook_resid_post", "blocks.1.hook_mlp_out"
DATA = f"shards/00001/{FIRST}.safetensors"
COMMIT = f"shards/00001/{FIRST}.json"
TOKENS = "shards/00001/tokens.safetensors"


def config_in(folder: Path, model, tokenizer) -> HarvestConfig:
    """A harvest by names of two hook points in four shards, with all that it reads in the folder."""
    model.save_pretrained(folder / "model")
    tokenizer.save_pretrained(folder / "model")
    (folder / "texts.txt").write_text("".join(f"Story {i}: {'the sun. ' * (1 + i % 7)}\n" for i in range(40)))
    return HarvestConfig(
        model=str(folder / "model"),
        dataset=(str(folder / "texts.txt"),),
        hook_points=(FIRST, SECOND),
        store=str(folder / "store"),
        max_tokens=1300,
        context_length=32,
        batch_size_seqs=4,
        documents_per_shard=8,
        device="cpu",
        progress=False,
    )


@pytest.fixture
def config(gpt2, byte_tokenizer, tmp_path) -> HarvestConfig:
    return config_in(tmp_path, gpt2, byte_tokenizer)


@pytest.fixture
def folder(config) -> Path:
    """The folder of that store, finished."""
    return Path(run_harvest(config).path)


@pytest.fixture(scope="module")
def finished(shared_gpt2, byte_tokenizer, tmp_path_factory) -> Path:
    return Path(run_harvest(config_in(tmp_path_factory.mktemp("made"), shared_gpt2, byte_tokenizer)).path)


@pytest.fixture
def copied(finished, tmp_path) -> Path:
    """A copy of the finished store, to be damaged; a repair would write into the store that its log names."""
    return shutil.copytree(finished, tmp_path / "store")


def content(folder: Path) -> dict[str, bytes]:
    """Every file of a store but its log and what repairs moved aside."""
    paths = (path for path in folder.rglob("*") if path.is_file() and not path.name.startswith("log"))
    found = {path.relative_to(folder).as_posix(): path.read_bytes() for path in paths}
    return {name: data for name, data in found.items() if not name.startswith("damaged/")}


def flip(path: Path, bit: int) -> None:
    data = bytearray(path.read_bytes())
    data[bit // 8] ^= 1 << bit % 8
    path.write_bytes(data)


def named(folder: Path) -> list[str]:
    return [problem.file for problem in verify_store(folder)]


# finding


@pytest.mark.long
def test_every_one_of_200_flipped_bits_is_found_and_its_file_named(copied):
    """In files drawn with equal chances, so that small ones are hit as often as large ones; JSON and log
    included."""
    assert verify_store(copied) == []
    rng, hit = random.Random(0), set()
    files = sorted(path for path in copied.rglob("*") if path.is_file())
    for _ in range(200):
        path = rng.choice(files)
        bit = rng.randrange(8 * path.stat().st_size)
        flip(path, bit)
        name = path.relative_to(copied).as_posix()
        assert set(named(copied)) == {name}, (name, bit)
        flip(path, bit)
        hit.add(name)
    assert {"plan.json", "manifest.json", "log.jsonl", TOKENS, DATA, COMMIT} <= hit
    assert verify_store(copied) == []


@pytest.mark.long
@pytest.mark.parametrize("name", ["plan.json", "log.jsonl", DATA, TOKENS])
def test_flipped_bits_of_an_unfinished_store_are_found(copied, name):
    """The log vouches for the plan, commits for their files."""
    (copied / "manifest.json").unlink()
    assert verify_store(copied) == []
    for bit in range(4, 8 * (copied / name).stat().st_size, 1999):
        flip(copied / name, bit)
        assert named(copied) == [name]
        flip(copied / name, bit)


@pytest.mark.long
@pytest.mark.parametrize(
    "damage", [b"", b"\xff\xfe", b"[1]\n", b"[" * 100_000, b'{"a": NaN}\n', b'{"\\ud800": 1}\n', b"null"]
)
@pytest.mark.parametrize("name", ["plan.json", "manifest.json", COMMIT, DATA, TOKENS, "log.jsonl"])
def test_no_damage_is_too_much(copied, name, damage):
    (copied / name).write_bytes(damage)
    assert set(named(copied)) <= {name, DATA} and (
        name in named(copied) or (name, damage) == ("log.jsonl", b"")
    )
    (copied / "plan.json").write_bytes(damage)
    (copied / "manifest.json").write_bytes(damage)
    assert {"plan.json", "manifest.json"} <= set(named(copied))


def test_missing_and_foreign_files_are_named(copied):
    for name in (DATA, f"shards/00002/{SECOND}.json", "shards/00003/tokens.safetensors"):
        (copied / name).unlink()
    for name in (
        "thesis.tex",
        "shards/00000/notes.txt",
        "shards/00009/tokens.safetensors",
        "shards/00000/other.safetensors",
    ):
        (copied / name).parent.mkdir(exist_ok=True)
        (copied / name).write_text("mine")
    (copied / "shards/00000/tokens.safetensors.tmp").write_text("left by a kill")
    assert verify_store(copied) == [
        Problem("shards/00000/notes.txt", 0, "does not belong to the store"),
        Problem("shards/00000/other.safetensors", 0, "does not belong to the store"),
        Problem(DATA, 1, "is missing"),
        Problem(f"shards/00002/{SECOND}.json", 2, "is missing"),
        Problem("shards/00003/tokens.safetensors", 3, "is missing"),
        Problem("shards/00009/tokens.safetensors", 9, "does not belong to the store"),
        Problem("thesis.tex", None, "does not belong to the store"),
    ]


def test_a_short_file_is_named_with_both_lengths(copied):
    size = (copied / DATA).stat().st_size
    (copied / DATA).write_bytes((copied / DATA).read_bytes()[:-1])
    assert [str(problem) for problem in verify_store(copied)] == [
        f"{DATA} has {size - 1} bytes, the store records {size} bytes"
    ]


def test_what_is_no_store_is_refused_and_left_alone(tmp_path):
    (tmp_path / "thesis.tex").write_text("mine")
    for check in (verify_store, repair_store):
        with pytest.raises(ShardError, match="expected an activation store, there is no plan.json"):
            check(tmp_path)
    assert (tmp_path / "thesis.tex").exists()


def test_a_store_of_a_newer_format_is_refused(copied):
    """It is whole, and not for this release to judge."""
    manifest = json.loads((copied / "manifest.json").read_bytes()) | {"version": 2}
    (copied / "manifest.json").write_bytes(encode_json(manifest | {"sha256": manifest_sha256(manifest)}))
    with pytest.raises(ShardError, match="has version 2, this saelens_lite reads version 1"):
        verify_store(copied)


def test_stores_of_arrays_and_remote_stores(tmp_path):
    rows = np.random.default_rng(0).normal(size=(100, 8))
    for place in (str(tmp_path / "arrays"), "memory://verified"):
        store = ActivationStore.from_arrays(place, rows, rows_per_shard=40)
        assert verify_store(place) == [] == store.verify()
        folder = open_folder(place)
        for name in ("shards/00001/documents.safetensors", "shards/00002/acts.safetensors"):
            whole = folder.read(name)
            folder.write(name, whole[:-1] + bytes([whole[-1] ^ 1]))
            assert named(folder) == [name]
            assert store.verify() == [f"{folder}/{name} has another sha256 than its commit records"]
            folder.write(name, whole)


# repairing


@pytest.mark.long
@pytest.mark.parametrize(
    ("damaged", "moved"),
    [
        ([DATA], {DATA, COMMIT, "manifest.json"}),
        ([COMMIT], {DATA, COMMIT, "manifest.json"}),
        (
            [TOKENS],
            {
                TOKENS,
                DATA,
                COMMIT,
                DATA.replace(FIRST, SECOND),
                COMMIT.replace(FIRST, SECOND),
                "manifest.json",
            },
        ),
        (["manifest.json"], {"manifest.json"}),
        (["plan.json"], {"plan.json"}),
        (["plan.json", DATA], {"plan.json", DATA, COMMIT, "manifest.json"}),
        (["plan.json", "manifest.json"], {"plan.json", "manifest.json"}),
        (["log.jsonl"], {"log.jsonl"}),
    ],
    ids=lambda value: "+".join(Path(name).name for name in value) if isinstance(value, list) else "",
)
def test_repair_moves_aside_what_is_damaged_and_makes_it_anew(folder, capsys, damaged, moved):
    whole = content(folder)
    times = {name: (folder / name).stat().st_mtime_ns for name in whole}
    broken = {}
    for name in damaged:
        flip(folder / name, 8 * (folder / name).stat().st_size // 3)
        broken[name] = (folder / name).read_bytes()
    assert main(["verify", str(folder), "--repair"]) == 0
    out = capsys.readouterr().out
    assert f"{len(damaged)} problem" in out and out.endswith(f"{folder}: every file is as it was written\n")
    assert content(folder) == whole
    aside = {
        path.relative_to(folder / "damaged/1").as_posix() for path in (folder / "damaged/1").rglob("*.*")
    }
    assert aside == moved
    assert all((folder / "damaged/1" / name).read_bytes() == data for name, data in broken.items())
    shards = {name for name in whole if name.startswith("shards/")}
    untouched = {name for name in shards if not any(other.startswith(name[:13]) for other in moved)}
    assert len(untouched) >= 15
    assert all((folder / name).stat().st_mtime_ns == times[name] for name in untouched)


def test_a_repaired_log_keeps_its_undamaged_lines(folder):
    lines = (folder / "log.jsonl").read_bytes().splitlines(keepends=True)
    lines[2] = lines[2].replace(b'"shard"', b'"shred"')
    (folder / "log.jsonl").write_bytes(b"".join(lines))
    assert [str(problem) for problem in verify_store(folder)] == ["log.jsonl is damaged in line 3"]
    assert repair_store(folder) == ["log.jsonl"]
    assert (folder / "log.jsonl").read_bytes() == b"".join(lines[:2] + lines[3:])


def test_several_repairs_have_folders_of_their_own(folder):
    for _ in range(2):
        (folder / "shards/00000/other.safetensors").write_text("of another hook point")
        assert repair_store(folder) == ["shards/00000/other.safetensors"]
    assert {path.name for path in (folder / "damaged").iterdir()} == {"1", "2"}
    assert repair_store(folder) == []


@pytest.mark.long
def test_a_hook_point_added_later_is_repaired(config, gpt2, capsys):
    whole = content(Path(run_harvest(config).path))
    folder = Path(config.store)
    shutil.rmtree(folder)
    run_harvest(dataclasses.replace(config, hook_points=(FIRST,)))
    add_hook_points(folder, SECOND, progress=False)
    flip(folder / DATA.replace(FIRST, SECOND), 4000)
    assert main(["verify", str(folder), "--repair"]) == 0
    assert content(folder) == whole
    flip(folder / "plan.json", 400)
    assert main(["verify", str(folder), "--repair"]) == 0
    assert content(folder) == whole


@pytest.mark.long
def test_a_repair_that_stops_after_any_file_can_be_given_again(folder, monkeypatch):
    whole = content(folder)
    local = type(open_folder(folder))
    move = local.move
    for stop in range(4):
        flip(folder / DATA, 4000)
        left = iter(range(stop))

        def stopping(self, name, to, left=left):
            if next(left, None) is None:
                raise KeyboardInterrupt
            move(self, name, to)

        with monkeypatch.context() as patch:
            patch.setattr(local, "move", stopping)
            with pytest.raises(KeyboardInterrupt) if stop < 3 else monkeypatch.context():
                repair_store(folder)
        assert verify_store(folder) or not (folder / "manifest.json").exists()
        if verify_store(folder):
            assert main(["verify", str(folder), "--repair"]) == 0
        else:
            run_harvest(_settings_of(folder))
        assert content(folder) == whole


@pytest.mark.long
@pytest.mark.parametrize("damaged", [[DATA], ["manifest.json", DATA]])
def test_a_repair_that_stops_while_shards_are_made_anew_goes_on(folder, damaged, monkeypatch, capsys):
    whole = content(folder)
    for name in damaged:
        flip(folder / name, 4000 if name == DATA else 20)

    def stopping(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("saelens_lite.harvest.shards.write._write_shard", stopping)
        assert main(["verify", str(folder), "--repair"]) != 0
    assert main(["verify", str(folder)]) == 1
    assert "a repair did not end" in capsys.readouterr().out
    assert main(["verify", str(folder), "--repair"]) == 0
    assert "every file is as it was written" in capsys.readouterr().out
    assert content(folder) == whole and main(["verify", str(folder)]) == 0


def _settings_of(folder: Path) -> HarvestConfig:
    lines = [json.loads(line) for line in (folder / "log.jsonl").read_bytes().splitlines()]
    return HarvestConfig(**next(line["settings"] for line in lines if line.get("settings")))


def test_without_names_it_says_which_call_to_give_again(gpt2, byte_tokenizer, tmp_path, capsys):
    """A harvest of objects is not described by its log; the same call mends it."""
    options = {"tokenizer": byte_tokenizer, "context_length": 32, "documents_per_shard": 8, "progress": False}
    texts = [f"Story {i}" for i in range(40)]

    def harvest():
        return harvest_activations(gpt2, texts, FIRST, tmp_path / "store", max_tokens=300, **options)

    whole = content(Path(harvest().path))
    flip(tmp_path / "store" / DATA, 999)
    assert main(["verify", str(tmp_path / "store"), "--repair"]) == 1
    assert "give the harvest call of this store again" in capsys.readouterr().out
    assert main(["verify", str(tmp_path / "store")]) == 1
    assert "a repair did not end" in capsys.readouterr().out
    assert main(["verify", str(tmp_path / "store"), "--repair"]) == 1
    assert "give the harvest call of this store again" in capsys.readouterr().out
    harvest()
    assert content(tmp_path / "store") == whole


def test_stores_of_arrays_cannot_be_made_anew_here(tmp_path, capsys):
    ActivationStore.from_arrays(tmp_path / "arrays", np.ones((10, 4)))
    flip(tmp_path / "arrays/shards/00000/acts.safetensors", 999)
    assert main(["verify", str(tmp_path / "arrays"), "--repair"]) == 1
    assert (
        "made from arrays or another format, which cannot be harvested: write it anew"
        in capsys.readouterr().out
    )


def test_a_store_under_way_is_not_repaired(folder):
    (folder / "notes.txt").write_text("mine")
    with open_folder(folder).locked() as ours:
        assert ours
        with pytest.raises(ShardError, match="a harvest is writing"):
            repair_store(folder)


def test_a_lost_plan_is_adopted_only_from_the_harvest_it_was(folder, config):
    (folder / "plan.json").unlink()
    with pytest.raises(
        ShardError, match="lost its plan.json, and this harvest's plan is not the one it was begun with"
    ):
        run_harvest(dataclasses.replace(config, context_length=16))
    run_harvest(config)
    assert verify_store(folder) == []
