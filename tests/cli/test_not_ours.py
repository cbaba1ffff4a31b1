"""Output folders that hold somebody's files: no command deletes, empties or replaces one."""

import json
import os
import stat

import numpy as np
import pytest

import saelens_lite as sl
from saelens_lite.atomic import write_file
from saelens_lite.cli.commands import main
from saelens_lite.store.folder import LocalFolder


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("not ours")
    rows = np.random.default_rng(0).standard_normal((1000, 8)).astype(np.float32)
    sl.ActivationStore.from_arrays(folder / "store", rows)
    assert train(folder, folder / "sae") == 0
    return folder


def train(made, output, *flags):
    options = "--kind topk --k 2 --d-sae 16 --batch-size-rows 128 --n-steps 4 --no-progress".split()
    return main(["train", "--store", str(made / "store"), "--output", str(output), *options, *flags])


def analyze(made, index):
    page = ["--output", str(made / "page.html"), "--sample-tokens", "50"]
    return main(["analyze", str(made / "store"), str(made / "sae"), "--index", str(index), *page])


def content(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file() and not path.is_symlink()}


def written(folder, name, text="mine"):
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text(text)
    return content(folder)


def kept(before, folder):
    return before.items() <= content(folder).items()


@pytest.mark.parametrize(
    "name", ["parts/thesis.txt", "parts/00000.safetensors", "parts/plan.json", "parts/raw/scan.csv", "parts"]
)
def test_an_index_is_refused_where_its_parts_are_somebodys(made, tmp_path, name, capsys):
    before = written(tmp_path, name)
    assert analyze(made, tmp_path) == 2
    assert "choose another folder for the index" in capsys.readouterr().err
    assert content(tmp_path) == before


def test_a_new_index_removes_the_one_before_and_nothing_like_it(made, tmp_path):
    for name in ("tokens-2024.csv", "latents-archive/notes.md", "latents-0123456789ab.safetensors"):
        before = written(tmp_path, name)
    assert analyze(made, tmp_path) == 0
    first = {*tmp_path.glob("latents-*.safetensors")}
    again = ["--index", str(tmp_path), "--n-top", "3", "--output", str(made / "page.html")]
    main(["analyze", str(made / "store"), str(made / "sae"), *again])
    second = {*tmp_path.glob("latents-*.safetensors")}
    assert len(first) == len(second) == 2 and first != second and kept(before, tmp_path)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("state/prod/terraform.tfstate", "{}"),
        ("state", "Ohio"),
        ("metrics.jsonl", '{"week": 1, "revenue": 5}\n'),
        ("metrics.jsonl", "[1]\n"),
        ("train_config.json", '{"lines": ["north"]}'),
        ("cfg.json", '{"mine": 1}'),
        ("sae_weights.safetensors", "mine"),
        (".lock", "mine"),
    ],
)
@pytest.mark.parametrize("flags", [(), ("--overwrite",)])
def test_training_is_refused_where_a_name_is_taken(made, tmp_path, name, text, flags, capsys):
    before = written(tmp_path, name, text)
    assert train(made, tmp_path, *flags) == 2
    assert "choose another" in capsys.readouterr().err
    assert content(tmp_path) == before


def test_a_frozen_run_of_the_users_own_stays(made, tmp_path):
    assert train(made, tmp_path / "frozen", "--freeze-decoder") == 0
    before = content(tmp_path)
    assert train(made, tmp_path) == 0
    assert kept(before, tmp_path)
    before = written(tmp_path, "frozen/notes.txt")
    assert train(made, tmp_path, "--overwrite") == 0
    assert os.listdir(tmp_path / "frozen") == ["notes.txt"]


def test_a_folder_with_a_manifest_is_no_store(tmp_path, capsys):
    written(tmp_path, ".git/HEAD", "ref: refs/heads/main\n")
    written(tmp_path, "plan.json", '{"format_version": "1.2"}')
    before = written(tmp_path, "manifest.json", json.dumps({"name": "My web app", "icons": []}))
    for flags in ([], ["--repair"]):
        assert main(["verify", str(tmp_path), *flags]) == 2
        assert "expected an activation store" in capsys.readouterr().err
    assert content(tmp_path) == before


def test_a_repair_leaves_what_others_put_into_a_store(tmp_path):
    store = tmp_path / "store"
    sl.ActivationStore.from_arrays(store, np.ones((10, 4), dtype=np.float32))
    before = written(store, "thesis.tex") | written(store, "shards/00000/notes.txt")
    assert main(["verify", str(store), "--repair"]) == 1
    assert content(store) == before


@pytest.mark.parametrize("way", ["report", "write_file"])
def test_a_device_is_written_to_and_stays_one(made, tmp_path, way):
    target = tmp_path / "null"
    try:
        os.mknod(target, 0o666 | stat.S_IFCHR, os.makedev(1, 3))
    except OSError:
        pytest.skip("this user may make no device")
    if way == "report":
        assert main(["report", str(made / "sae"), "--output", str(target)]) == 0
    else:
        write_file(target, "x")
    assert stat.S_ISCHR(target.stat().st_mode) and os.listdir(tmp_path) == ["null"]


def test_a_pipe_is_written_to(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    reader = os.open(tmp_path / "pipe", os.O_RDONLY | os.O_NONBLOCK)
    write_file(tmp_path / "pipe", "x")
    assert os.read(reader, 9) == b"x" and stat.S_ISFIFO((tmp_path / "pipe").stat().st_mode)
    os.close(reader)


@pytest.mark.parametrize("link", ["log.jsonl", "shards"])
def test_nothing_is_written_through_a_link_inside_a_folder(tmp_path, link):
    outside = tmp_path / "outside"
    outside.mkdir()
    before = written(outside, "log.jsonl")
    (tmp_path / "store").mkdir()
    (tmp_path / "store" / link).symlink_to(outside / "log.jsonl" if link == "log.jsonl" else outside)
    folder = LocalFolder(tmp_path / "store")
    with pytest.raises(sl.ShardError, match="is a symbolic link"):
        folder.append_line("log.jsonl", b"x\n") if link == "log.jsonl" else folder.write(
            "shards/00000/a.json", b"x"
        )
    assert content(outside) == before


def test_a_page_is_not_written_through_a_link_nor_over_a_temporary_file(tmp_path):
    before = written(tmp_path, "outside") | written(tmp_path, "b.html.tmp")
    (tmp_path / "a.html").symlink_to(tmp_path / "outside")
    for name in ("a.html", "b.html"):
        write_file(tmp_path / name, "page")
        assert (tmp_path / name).read_text() == "page" and not (tmp_path / name).is_symlink()
    assert kept(before, tmp_path)


def test_a_folder_that_is_named_may_be_a_link(made, tmp_path):
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    assert train(made, tmp_path / "link") == 0
    assert (tmp_path / "real/cfg.json").exists()
    assert train(made, tmp_path / "link", "--overwrite") == 0
