"""Presets: every one trains, what is given wins over it, and what was used is recorded and goes on."""

import json
from dataclasses import MISSING, fields
from typing import get_args

import numpy as np
import pytest
import torch

import saelens_lite as sl
from saelens_lite.cli.commands import main
from saelens_lite.train.config import LEFT_OPEN, TrainConfig
from saelens_lite.train.presets import PRESETS, PresetName, with_preset

DEFAULTS = {field.name: field.default for field in fields(TrainConfig)} | LEFT_OPEN
SMALL = {"k": 4, "d_sae": 64, "n_steps": 3, "batch_size_rows": 256, "device": "cpu", "progress": False}


@pytest.fixture(scope="module")
def store(tmp_path_factory, planted):
    return sl.ActivationStore.from_arrays(tmp_path_factory.mktemp("rows") / "store", planted.acts)


def recorded(output):
    return json.loads((output / "train_config.json").read_text())


def fails(capsys, *argv):
    """The line on stderr of a command that ends with exit code 2."""
    capsys.readouterr()
    assert main([str(arg) for arg in argv]) == 2
    return capsys.readouterr().err.splitlines()[-1]


def test_the_names_are_those_of_the_type_and_each_but_the_default_sets_something():
    assert tuple(PRESETS) == get_args(PresetName)
    assert [
        name for name, preset in PRESETS.items() if all(DEFAULTS[key] == preset[key] for key in preset)
    ] == ["default"]
    assert MISSING not in DEFAULTS.values()


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_trains_saves_and_loads(store, tmp_path, name):
    small = SMALL | {"k": 4 if "k" in PRESETS[name] or name == "default" else None}
    sae = sl.train_sae(store, preset=name, output=tmp_path, **small)
    loaded = sl.SparseAutoencoder.load(tmp_path)
    acts = store.gather(torch.arange(100))
    assert torch.equal(loaded(acts).recons, sae(acts).recons)
    expected = (
        DEFAULTS
        | dict(PRESETS[name])
        | small
        | {"k": small["k"] or 32}
        | {"preset": name, "store": str(store.path), "output": str(tmp_path)}
    )
    assert recorded(tmp_path) == json.loads(json.dumps(expected))
    assert loaded.config.metadata["saelens_lite"]["train"]["preset"] == name


def test_given_fields_win_even_where_they_are_the_defaults():
    assert PRESETS["openai-topk"]["lr"] is not None
    config = TrainConfig(**with_preset({"preset": "openai-topk", "lr": None, "k": 64}))
    assert (config.lr, config.k, config.k_aux) == (None, 64, 256)


def test_a_file_wins_over_the_preset_and_flags_over_both(store, tmp_path):
    file = tmp_path / "fields.json"
    file.write_text(json.dumps({"lr": 5e-3, "k": 3, "clip_norm": 2.0}))
    small = [
        "--d-sae",
        "64",
        "--n-steps",
        "3",
        "--batch-size-rows",
        "256",
        "--no-progress",
        "--device",
        "cpu",
    ]
    argv = [
        "train",
        "--preset",
        "matryoshka",
        "--config",
        file,
        "--store",
        store.path,
        "--clip-norm",
        "3",
        *small,
    ]
    assert main([str(arg) for arg in [*argv, "--output", tmp_path / "sae"]]) == 0
    used = recorded(tmp_path / "sae")
    assert (used["preset"], used["kind"], used["decay_fraction"]) == ("matryoshka", "matryoshka", 0.2)
    assert (used["lr"], used["k"], used["clip_norm"], used["batch_size_rows"]) == (5e-3, 3, 3.0, 256)

    again = ["train", "--config", tmp_path / "sae" / "train_config.json", "--output", tmp_path / "again"]
    assert main([str(arg) for arg in again]) == 0
    assert recorded(tmp_path / "again") == used | {"output": str(tmp_path / "again")}

    file.write_text(json.dumps({"preset": "batchtopk", "lr": 5e-3}))
    argv = ["train", f"--config={file}", "--store", store.path, *small, "--output", tmp_path / "b"]
    assert main([str(arg) for arg in argv]) == 0
    used = recorded(tmp_path / "b")
    assert (used["preset"], used["kind"], used["lr"], used["adam_beta2"]) == (
        "batchtopk",
        "batchtopk",
        5e-3,
        0.99,
    )


def test_an_unknown_preset_names_the_nearest_and_all(store, tmp_path, capsys):
    expected = (
        r"preset expected one of default, openai-topk, .*, got 'openai-tokp' \(did you mean 'openai-topk'\?\)"
    )
    with pytest.raises(ValueError, match=expected):
        sl.train_sae(store, preset="openai-tokp", output=tmp_path)
    with pytest.raises(ValueError, match=expected):
        TrainConfig(preset="openai-tokp")
    assert "(did you mean 'openai-topk'?)" in fails(
        capsys, "train", "--preset", "openai-tokp", "--store", store.path
    )
    assert "--preset expected its name after it" in fails(capsys, "train", "--store", store.path, "--preset")


@pytest.mark.parametrize("given", [np.zeros(2), torch.ones(3), ["openai-topk"], 1.5])
def test_a_preset_that_is_no_name_is_refused(store, tmp_path, given):
    for config in (None, TrainConfig(k=8)):
        with pytest.raises(ValueError, match="preset expected one of default, openai-topk, .*, got"):
            sl.train_sae(store, config, preset=given, output=tmp_path / "sae")
    assert not (tmp_path / "sae").exists()


def test_a_preset_that_would_be_a_mere_name_is_refused(store, tmp_path, capsys):
    with pytest.raises(
        ValueError, match=r"preset expected at least one field as the preset has it \(train_sae"
    ):
        TrainConfig(preset="gemma-jumprelu", k=8)
    with pytest.raises(
        ValueError, match="expected a preset or a TrainConfig, got 'matryoshka' and one whose fields"
    ):
        sl.train_sae(store, TrainConfig(k=8), preset="matryoshka", output=tmp_path)
    sl.train_sae(store, preset="batchtopk", output=tmp_path / "sae", **SMALL)
    line = fails(
        capsys, "train", "--config", tmp_path / "sae" / "train_config.json", "--preset", "matryoshka"
    )
    assert (
        "train_config.json has the preset 'batchtopk', and its fields win over a preset's: one or the other"
        in line
    )


def test_help_shows_the_presets_and_the_values_of_one(capsys):
    for argv, expected in (
        (["--help"], PRESETS),
        (["--preset", "gemma-jumprelu", "--help"], ["7e-05", "0.048"]),
    ):
        with pytest.raises(SystemExit) as stop:
            main(["train", *argv])
        out = capsys.readouterr().out
        assert stop.value.code == 0 and all(word in out for word in expected)


@pytest.mark.long
def test_a_stopped_run_of_a_preset_goes_on_by_the_same_call_or_by_the_fields_it_meant(
    store, tmp_path, killed_before, caplog
):
    options = SMALL | {"n_steps": 10, "k": None}
    whole = sl.train_sae(store, preset="anthropic-jumprelu", output=tmp_path / "whole", **options)
    meant = dict(PRESETS["anthropic-jumprelu"])
    for name, again in (("preset", {"preset": "anthropic-jumprelu"}), ("fields", meant)):
        with killed_before(7):
            sl.train_sae(store, preset="anthropic-jumprelu", output=tmp_path / name, **options)
        with pytest.raises(ValueError, match=r"l0_coeff expected 10.0, got None"):
            sl.train_sae(store, preset="gemma-jumprelu", output=tmp_path / name, **options, l0_coeff=None)
        caplog.clear()
        with caplog.at_level("INFO", logger="saelens_lite.train"):
            sae = sl.train_sae(store, output=tmp_path / name, **again, **options)
        assert "at step 7" in caplog.text
        assert torch.equal(sae.W_dec, whole.W_dec) and torch.equal(sae.threshold, whole.threshold)
