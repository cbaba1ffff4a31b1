"""Files with valid checksums and wrong content: each ends a command with one line that names the file."""

import hashlib
import json
import shutil

import numpy as np
import pytest

import saelens_lite as sl
from saelens_lite.cli.commands import main

DEEP = "[" * 100_000 + "]" * 100_000


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("made")
    rows = np.random.default_rng(0).standard_normal((900, 16), dtype=np.float32)
    store = sl.ActivationStore.from_arrays(folder / "store", rows, rows_per_shard=500)
    few = {"batch_size_rows": 256, "n_steps": 2, "progress": False}
    sae = sl.train_sae(store, kind="topk", k=4, d_sae=32, output=folder / "sae", **few)
    sl.index_features(sae, store, folder / "index", config=sl.IndexConfig(sample_tokens=100))
    return folder


@pytest.fixture
def copy(made, tmp_path):
    """A function that copies one of the made folders."""
    return lambda name: shutil.copytree(made / name, tmp_path / name)


def encoded(content):
    return (json.dumps(content, sort_keys=True, ensure_ascii=False) + "\n").encode()


def sealed(file, change, **others):
    """Change a JSON file as its own sha256 allows."""
    content = json.loads(file.read_text())
    content = {**(change(content) or content), **others}
    del content["sha256"]
    file.write_bytes(encoded({**content, "sha256": hashlib.sha256(encoded(content)).hexdigest()}))


def refused(capsys, *argv, code=2):
    capsys.readouterr()
    assert main([str(word) for word in argv]) == code
    err = capsys.readouterr().err
    assert code == 1 or err.count("\n") == 1
    return err


def without(*path):
    def change(content):
        for key in path[:-1]:
            content = content[key]
        del content[path[-1]]

    return change


def with_(value, *path):
    def change(content):
        for key in path[:-1]:
            content = content[key]
        content[path[-1]] = value

    return change


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (without("shards"), "shards is missing"),
        (with_(None, "shards"), "shards expected a list, got None"),
        (with_([], "shards"), "shards expected at least one"),
        (with_(["x"], "shards"), "shards[0] expected a JSON object, got 'x'"),
        (without("shards", 0, "hook_points"), "shards[0].hook_points is missing"),
        (with_("many", "shards", 0, "rows"), "shards[0].rows expected int, got 'many'"),
        (with_(-3, "shards", 0, "rows"), "shards[0].rows expected int, got -3"),
        (without("rows_used"), "rows_used is missing"),
        (with_(401, "rows_used"), "rows_used expected at most the 400 rows of the last shard"),
        (without("plan_sha256"), "plan_sha256 is missing"),
        (without("shards", 1, "documents"), "expected tokens in all, or documents in all"),
        (without("shards", 0, "hook_points", "acts", "bytes"), "shards[0].hook_points.acts.bytes is missing"),
    ],
)
def test_a_manifest_of_another_form_is_named(change, said, made, copy, capsys):
    store = copy("store")
    sealed(store / "manifest.json", change)
    line = refused(capsys, "evaluate", store, made / "sae")
    assert f"{store}/manifest.json is no manifest of a store: " in line and said in line
    refused(capsys, "verify", store, code=1)
    assert not (store / "damaged").exists()
    assert main(["verify", str(store), "--repair"]) == 1
    assert (store / "damaged/1/manifest.json").exists()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (without("hook_points"), "plan.json is no plan of a store: hook_points is missing"),
        (with_(["acts"], "hook_points"), "no plan of a store: hook_points expected a JSON object"),
        (with_({"other": {"d_model": 16}}, "hook_points"), "the manifest has no hook point 'other'"),
        (without("hook_points", "acts", "d_model"), "hook_points.acts.d_model is missing"),
        (with_("16", "hook_points", "acts", "d_model"), "hook_points.acts.d_model expected int, got '16'"),
        (with_(0, "hook_points", "acts", "d_model"), "d_model expected at least 1"),
        (with_("float8", "dtype"), "dtype expected one of bfloat16"),
        (with_("gpt2", "model"), "model expected a JSON object, got 'gpt2'"),
        (with_({"name": 3}, "tokenizer"), "tokenizer.name expected str, got 3"),
        (
            with_(17, "hook_points", "acts", "d_model"),
            "acts.json expected a sum of 17 numbers, as the plan says, got 16",
        ),
    ],
)
def test_a_plan_of_another_form_is_named(change, said, copy, tmp_path, capsys):
    store = copy("store")
    content = json.loads((store / "plan.json").read_text())
    change(content)
    (store / "plan.json").write_bytes(encoded(content))
    sealed(store / "manifest.json", lambda _: None, plan_sha256=hashlib.sha256(encoded(content)).hexdigest())
    train = ["train", "--store", store, "--output", tmp_path / "new", "--k", "2", "--d-sae", "8"]
    line = refused(capsys, *train, "--batch-size-rows", "64", "--n-steps", "1", "--no-progress")
    assert str(store) in line and said in line


@pytest.mark.parametrize(
    ("name", "file"), [("store", "plan.json"), ("store", "manifest.json"), ("sae", "cfg.json")]
)
def test_brackets_in_brackets_by_the_thousand_are_named(name, file, made, copy, capsys):
    other = made / "sae" if name == "store" else made / "store"
    folder = copy(name)
    (folder / file).write_text(DEEP)
    both = (folder, other) if name == "store" else (other, folder)
    assert f"{folder}/{file}" in refused(capsys, "evaluate", *both)


def test_brackets_in_brackets_of_settings_labels_and_an_index_are_named(made, copy, tmp_path, capsys):
    deep = tmp_path / "deep.json"
    deep.write_text(DEEP)
    assert f"{deep} expected JSON: " in refused(capsys, "train", "--config", deep)
    assert f"{deep} expected labels" in refused(capsys, "search", made / "index", "--import-labels", deep)
    index = copy("index")
    (index / "index.json").write_text(DEEP)
    assert f"{index}/index.json" in refused(capsys, "search", index, "--by", "max")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (with_("x", "plan", "sae", "d_sae"), "plan.sae.d_sae expected int, got 'x'"),
        (without("plan", "store"), "plan.store is missing"),
        (with_([], "files"), "files expected a JSON object, got []"),
    ],
)
def test_an_index_of_another_form_is_named(change, said, copy, capsys):
    index = copy("index")
    sealed(index / "index.json", change)
    line = refused(capsys, "search", index, "--by", "max")
    assert f"{index}/index.json is not the JSON of an index: {said}" in line


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (with_(2**62, "d_sae"), "the weights are not those of the configuration beside them"),
        (with_(10**30, "d_sae"), "SAEConfig.d_sae expected a number of at most 64 bits"),
        (with_(7, "metadata", "hook_name"), "SAEConfig.hook_point expected str, got int 7"),
        (with_({}, "metadata", "model_name"), "SAEConfig.model_name expected str, got dict"),
        (with_([], "metadata", "saelens_lite"), "metadata.saelens_lite expected a JSON object, got []"),
        (with_({"train": 3}, "metadata", "saelens_lite"), "saelens_lite.train expected a JSON object"),
        (with_(["none"], "normalize_activations"), "normalize_activations ['none'] is not supported"),
    ],
)
def test_facts_of_an_sae_of_other_types_are_named(change, said, made, copy, capsys):
    sae = copy("sae")
    content = json.loads((sae / "cfg.json").read_text())
    change(content)
    (sae / "cfg.json").write_text(json.dumps(content))
    assert said in refused(capsys, "evaluate", made / "store", sae)


@pytest.mark.parametrize(
    "line", [f'{{"step": {10**400}, "lr": 1}}', f'{{"step": 3, "lr": {10**400}}}', '{"step": 3, "lr": []}']
)
def test_a_report_leaves_out_what_is_no_number(line, copy, tmp_path):
    sae = copy("sae")
    with open(sae / "metrics.jsonl", "a") as file:
        file.write(line + "\n")
    assert main(["report", str(sae), "--output", str(tmp_path / "r.html")]) == 0


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("evaluation.json", {"hook_point": "acts", "rows": [{"name": ["trained"], "fvu": 0.1}]}),
        ("train_config.json", {"kind": ["topk"], "batch_size_rows": "x", "k": {}}),
        ("train_config.json", {"batch_size_rows": 10**400}),
    ],
)
def test_a_report_of_files_of_other_types_is_made_without_them(file, content, copy, tmp_path):
    sae = copy("sae")
    (sae / file).write_text(json.dumps(content))
    assert main(["report", str(sae), "--output", str(tmp_path / "r.html")]) == 0
