"""No file holds a credential, and what is published holds no path of this machine."""

import numpy as np
import pytest

import saelens_lite as sl
from saelens_lite.cli import main
from saelens_lite.config import to_record
from saelens_lite.train.config import TrainConfig

ROWS = np.random.default_rng(0).standard_normal((1000, 8)).astype(np.float32)
OPTIONS = {"kind": "topk", "k": 2, "n_steps": 4, "batch_size_rows": 128, "progress": False}


@pytest.mark.parametrize(
    ("given", "recorded", "published"),
    [
        ("ftp://alice:pw@host/a/b", "ftp://host/a/b", "ftp://host/a/b"),
        ("simplecache::ftp://alice:p@w@host/a", "simplecache::ftp://host/a", "simplecache::ftp://host/a"),
        ("https://host/a?token=pw#x", "https://host/a", "https://host/a"),
        ("s3://bucket/store", "s3://bucket/store", "s3://bucket/store"),
        ("/home/alice/store", "/home/alice/store", "store"),
        ("runs/what?", "runs/what?", "runs/what?"),
    ],
)
def test_what_a_file_says_of_a_place(given, recorded, published):
    config = TrainConfig(store=(given, given))
    assert to_record(config)["store"] == (recorded, recorded)
    assert to_record(config, published=True)["store"] == (published, published)


def test_no_output_of_a_command_shows_a_password(capsys, monkeypatch, tmp_path):
    monkeypatch.setenv("SAELENS_LITE_CACHE", str(tmp_path / "cache"))
    url = "memory://alice:SECRET@host/shown"
    assert main(["verify", url]) != 0
    sl.ActivationStore.from_arrays(url, ROWS)
    assert main(["verify", url]) == 0
    argv = "--kind topk --k 2 --d-sae 16 --n-steps 2 --batch-size-rows 128 --no-progress --device cpu"
    assert main(["train", "--store", url, *argv.split(), "--output", str(tmp_path / "sae")]) == 0
    out, err = capsys.readouterr()
    assert "memory://***@host/shown" in out and "memory://***@host/shown" in err
    assert not any(secret in out + err for secret in ("SECRET", "alice"))


def test_no_file_of_a_run_holds_the_password_and_cfg_no_path(tmp_path, monkeypatch):
    monkeypatch.setenv("SAELENS_LITE_CACHE", str(tmp_path / "cache"))
    store = sl.ActivationStore.from_arrays("memory://alice:SECRET@host/secrets", ROWS)
    sl.train_sae(store, d_sae=16, output=str(tmp_path / "sae"), **OPTIONS)
    files = {path.name: path.read_bytes() for path in (tmp_path / "sae").rglob("*") if path.is_file()}
    assert {"cfg.json", "train_config.json"} <= files.keys()
    assert not [name for name, data in files.items() if b"SECRET" in data or b"alice" in data]
    assert str(tmp_path).encode() not in files["cfg.json"] and b'"output": "sae"' in files["cfg.json"]
    assert str(tmp_path).encode() in files["train_config.json"]


def test_a_finished_run_of_an_absolute_start_is_known_again(tmp_path):
    store = sl.ActivationStore.from_arrays(tmp_path / "store", ROWS)
    sl.train_sae(store, d_sae=16, output=str(tmp_path / "a"), **OPTIONS)
    grid = {"k": [1, 2]}
    options = OPTIONS | {"init_from": str(tmp_path / "a"), "output": str(tmp_path / "grid")}
    del options["k"]
    before = sl.train_grid(store, grid, **options)
    again = sl.train_grid(store, grid, **options)
    assert [*before] == [*again] and b'/a"' not in (tmp_path / "grid/k=1/cfg.json").read_bytes()
