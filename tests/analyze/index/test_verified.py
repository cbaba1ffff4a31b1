"""An index that is not as it was written: the file is named."""

import json
import sqlite3

import pytest

import saelens_lite as sl
from saelens_lite.analyze.index.build import IndexConfig, index_features
from saelens_lite.analyze.index.feature_index import verify_index
from saelens_lite.analyze.index.folder import index_folder, read_index, write_index
from saelens_lite.cli.commands import main

CONFIG = IndexConfig(n_top=6, n_sample=8, n_contrast=3, n_neighbors=4, n_logits=5, sample_tokens=400)


@pytest.fixture
def index(store, sae, tmp_path):
    made = index_features(sae, store, tmp_path / "index", config=CONFIG)
    made.labels.set(3, "a label")
    return made.path


def flip(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize("name", ["index.json", "latents-*.safetensors", "tokens-*.safetensors"])
def test_a_flipped_bit_is_named(index, name, capsys):
    assert verify_index(index) == [] and main(["verify", str(index)]) == 0
    assert "every file is as it was written" in capsys.readouterr().out
    [file] = index.glob(name)
    flip(file)
    assert main(["verify", str(index)]) == 1
    assert str(file) in capsys.readouterr().out
    file.write_bytes(file.read_bytes()[:-1])
    [problem] = verify_index(index)
    assert str(file) in problem


@pytest.mark.parametrize("damage", ["garbage", "another SAE", "a page"])
def test_labels_that_are_no_labels_are_named(index, damage):
    labels = index / "labels.sqlite"
    if damage == "garbage":
        labels.write_bytes(b"garbage " * 500)
    elif damage == "another SAE":
        with sqlite3.connect(labels) as db:
            db.execute("UPDATE sae SET sha256 = 'ffff', decoder = 'ffff'")
    else:
        for i in range(2000):
            with sqlite3.connect(labels) as db:
                db.execute("INSERT OR REPLACE INTO labels VALUES (?, ?, '', 0)", (i % 40, "word " * 40))
            if labels.stat().st_size >= 4 * 4096:
                break
        content = bytearray(labels.read_bytes())
        content[3 * 4096 : 4 * 4096] = b"x" * 4096
        labels.write_bytes(content)
    [problem] = verify_index(index)
    assert problem.startswith(str(labels))


def test_an_index_of_a_version_before_has_sizes_alone(index):
    folder = index_folder(index)
    facts = {key: value for key, value in read_index(folder).items() if key not in ("format", "version")}
    for of in facts["files"].values():
        del of["sha256"]
    write_index(folder, facts)
    assert verify_index(index) == [] and sl.FeatureIndex.open(index)[3].label.label == "a label"
    json.loads((index / "index.json").read_text())
