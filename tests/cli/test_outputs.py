"""An output that cannot be written is refused before the work, and nothing is left behind."""

import os
import shutil

import numpy as np
import pytest

import saelens_lite as sl
from saelens_lite.analyze.evaluation.evaluate import evaluate_sae
from saelens_lite.atomic import check_output
from saelens_lite.cli.commands import main


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("outputs")
    rows = np.random.default_rng(0).standard_normal((500, 8)).astype(np.float32)
    store = sl.ActivationStore.from_arrays(folder / "store", rows)
    options = {"kind": "topk", "k": 2, "d_sae": 16, "batch_size_rows": 128, "n_steps": 2, "progress": False}
    sl.train_sae(store, output=str(folder / "sae"), **options)
    (folder / "folder").mkdir()
    (folder / "file").write_text("mine")
    (folder / "texts.jsonl").write_text('{"text": "a", "label": "x"}\n{"text": "b", "label": "y"}\n')
    return folder


ANALYZE = ("analyze", "--store", "store", "--sae", "sae", "--sample-tokens", "50")


@pytest.mark.parametrize(
    "argv",
    [
        (*ANALYZE, "--output", "folder"),
        (*ANALYZE, "--output", "x.index"),
        (*ANALYZE, "--output", "page.html", "--index", "./page.html"),
        (*ANALYZE, "--output", "page.html", "--index", "file"),
        (*ANALYZE, "--output", "file/page.html"),
        ("report", "sae", "--output", "folder"),
        ("evaluate", "--store", "store", "--sae", "sae", "--output", "folder"),
        ("evaluate", "--store", "store", "--sae", "sae", "--output", "file/scores.json"),
        ("probe", "--texts", "texts.jsonl", "--sae", "sae", "--model", "demo", "--output", "folder"),
        ("study", "--output", "file"),
        ("train", "--store", "store", "--kind", "topk", "--k", "2", "--d-sae", "16", "--output", "file"),
        ("train", "--store", "store", "--kind", "topk", "--k", "2", "--d-sae", "16", "--output", "file/run"),
    ],
    ids=lambda argv: f"{argv[0]} {argv[-1]}",
)
def test_it_is_refused_before_the_work(made, argv, monkeypatch, capsys):
    def work(*_, **__):
        pytest.fail("the work began")

    monkeypatch.chdir(made)
    if argv[0] != "train":
        monkeypatch.setattr("saelens_lite.sae.autoencoder.SparseAutoencoder.load", work)
    monkeypatch.setattr("saelens_lite.store.reader.ActivationStore.gather", work)
    before = {path: path.is_file() and path.read_bytes() for path in made.rglob("*")}
    assert main([*argv]) == 2
    [line] = capsys.readouterr().err.splitlines()
    assert "expected" in line
    assert {path: path.is_file() and path.read_bytes() for path in made.rglob("*")} == before


def test_what_can_be_written_is_not_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "there").write_text("replaced")
    for file in ("a.html", "new/folders/a.html", "there", "/dev/null"):
        check_output(file)
    check_output(tmp_path, folder=True)
    check_output("a/new/run", folder=True)
    assert os.listdir(tmp_path) == ["there"]


def test_a_folder_that_cannot_be_written_is_said_before(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "access", lambda path, mode: str(path) != str(tmp_path))
    with pytest.raises(ValueError, match=r"a\.html expected a folder that can be written, .* cannot"):
        check_output(tmp_path / "new/a.html")


def test_records_are_read_before_the_model_is_loaded(made, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("saelens_lite.cli.study.model_and_tokenizer", lambda *_: pytest.fail("loaded"))
    (tmp_path / "records.jsonl").write_text('{"prompt": 7}\n')
    argv = ["study", "--model", "demo", "--sae", made / "sae", "--records", tmp_path / "records.jsonl"]
    assert main([*map(str, argv), "--output", str(tmp_path / "study")]) == 2
    assert "records.jsonl, line 1" in capsys.readouterr().err


def test_a_finished_command_ends_with_0_though_its_store_is_gone(made, tmp_path, monkeypatch, capsys):
    shutil.copytree(made / "store", tmp_path / "store")
    real = evaluate_sae

    def last_look(*args, **options):
        result = real(*args, **options)
        shutil.rmtree(tmp_path / "store")
        return result

    monkeypatch.setattr("saelens_lite.analyze.evaluation.evaluate.evaluate_sae", last_look)
    assert main(["evaluate", "--store", str(tmp_path / "store"), "--sae", str(made / "sae")]) == 0
    assert "next: saelens-lite analyze" in capsys.readouterr().out
