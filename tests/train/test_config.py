"""Every field of TrainConfig is alive: changed, it changes the run in the way that its list here says."""

import dataclasses
import hashlib
import json

import pytest
import torch

import saelens_lite as sl
from saelens_lite.train.config import TrainConfig
from saelens_lite.train.presets import with_preset
from saelens_lite.train.runs import run as training
from saelens_lite.train.runs.checkpoints import save_checkpoint

BASE = {
    "k": 3,
    "d_sae": 32,
    "n_steps": 12,
    "batch_size_rows": 128,
    "buffer_rows": 1024,
    "eval_rows": 128,
    "progress": False,
    "device": "cpu",
}
RELU, JUMPRELU = {"kind": "relu", "k": None}, {"kind": "jumprelu", "k": None}
TANH = {**JUMPRELU, "jumprelu_penalty": "tanh"}
RESAMPLED = {**RELU, "dead_after_tokens": 128, "l1_coeff": 50.0, "l1_warm_up_steps": 0, "lr": 0.1}
RESAMPLED["refit_fraction"] = 0.0
DEAD = {"k": 1, "dead_after_tokens": 128}

CHANGES_THE_SAE = {
    "store": ({}, "store of other rows"),
    "store_weights": ({"store": "both"}, (0.9, 0.1)),
    "hook_point": ({}, "b"),
    "kind": ({"k": None}, "relu"),
    "k": ({}, 4),
    "k_anneal_fraction": ({}, 0.5),
    "k_anneal_start": ({"k_anneal_fraction": 0.5}, 2.0),
    "matryoshka_fractions": ({"kind": "matryoshka"}, (0.5, 1.0)),
    "expansion": ({"d_sae": None}, 2),
    "d_sae": ({}, 48),
    "l1_coeff": (RELU, 1.0),
    "multi_topk_coeff": ({}, 1 / 8),
    "unit_decoder": (RELU, False),
    "jumprelu_penalty": (JUMPRELU, "tanh"),
    "l0_coeff": (JUMPRELU, 3.0),
    "target_l0": (JUMPRELU, 4.0),
    "refit_fraction": (RELU, 0.5),
    "bandwidth": (JUMPRELU, 0.1),
    "initial_threshold": (JUMPRELU, 0.1),
    "pre_act_coeff": (TANH, 1.0),
    "input_noise": ({}, 0.1),
    "contractive_coeff": ({}, 0.1),
    "aux_coeff": (DEAD, 0.0),
    "k_aux": (DEAD, 1),
    "dead_after_tokens": (DEAD, 100_000),
    "resample_every_steps": (RESAMPLED, 4),
    "resample_fraction": (RESAMPLED | {"resample_every_steps": 4}, 0.3),
    "lr": ({}, 1e-3),
    "adam_beta1": ({}, 0.5),
    "adam_beta2": ({}, 0.9),
    "clip_norm": ({}, 0.5),
    "gather_dtype": ({}, "bfloat16"),
    "batch_size_rows": ({}, 256),
    "n_steps": ({}, 13),
    "n_epochs": ({"n_steps": None, "batch_size_rows": 1024}, 2.0),
    "warm_up_steps": ({}, 6),
    "decay_fraction": ({}, 0.0),
    "l1_warm_up_steps": (RELU, 0),
    "scale_input": ({}, False),
    "freeze_decoder": ({}, True),
    "init_from": ({"d_sae": None, "expansion": 2}, "an SAE"),
    "end_to_end": (
        {"store": "store of text", "hook_point": None, "d_sae": None, "init_from": "an SAE"},
        "kl",
    ),
    "seed": ({}, 1),
    "order_seed": ({}, 1),
    "buffer_rows": ({}, 512),
    "held_out_fraction": ({}, 0.3),
    "max_norm_ratio": ({}, 1.0),
}
"""Fields that decide which weights come out: what a run has beside BASE, and the field's other value."""

CHANGES_WHAT_IS_TOLD = {
    "output": ({}, "elsewhere"),
    "preset": ({}, "openai-topk"),
    "baseline": ({}, True),
    "eval_every_steps": ({}, 5),
    "eval_rows": ({}, 64),
    "eval_ce_tokens": ({"store": "store of text", "hook_point": None}, 64),
    "log_every_steps": ({}, 4),
    "checkpoint_every_steps": ({}, 5),
    "keep_checkpoints": ({}, 3),
    "wandb_project": ({}, "saelens_lite_test"),
}
"""Fields that leave the weights alone and decide which numbers and files there are."""

CHANGES_NOTHING = {
    "overwrite": ({}, True),  # in a new folder; test_loop.py has it in a used one
    "device": ({"device": None}, "cpu"),  # but for last bits, where the best device is another
    "prefetch": ({}, True),
    "progress": ({}, True),  # the bar on stderr
}
"""Fields that leave an SAE and all numbers as they are, by design."""

SHOWN_ELSEWHERE = {"latent_shards", "matmul_precision"}
"""test_distributed.py has the first among several processes; test_trainer.py shows the second told to the
device."""


@pytest.fixture(scope="module")
def stores(tmp_path_factory, planted):
    folder, other = tmp_path_factory.mktemp("rows"), planted.acts.roll(1, 1)
    make = sl.ActivationStore.from_arrays
    store = make(folder / "store", {"a": planted.acts, "b": other})
    another = make(folder / "other", {"a": other, "b": planted.acts})
    return {None: store, "store of other rows": another, "both": [store, another]}


@pytest.fixture
def text_store(gpt2, byte_tokenizer, tmp_path):
    texts = [f"{i} squared is {i * i}" for i in range(100)]
    options = {"tokenizer": byte_tokenizer, "context_length": 32, "max_tokens": 2000, "progress": False}
    return sl.harvest_activations(gpt2, texts, ["blocks.0.hook_resid_post"], tmp_path / "text", **options)


@pytest.fixture(scope="module")
def known():
    """What runs gave, by their fields: many fields are changed from the same ones."""
    return {}


@pytest.fixture
def run(stores, known, tmp_path, monkeypatch, request):
    """run(**fields): the weights' sha256, and what the run told: file names, numbers, checkpoints, the
    preset's name."""
    checkpoints, save, folders = [], save_checkpoint, iter("ab")

    def noted(*args, keep, **kwargs):
        save(*args, keep=keep, **kwargs)
        checkpoints.append(sorted(path.name for path in (args[0] / "state").iterdir()))

    monkeypatch.setattr(training, "save_checkpoint", noted)
    monkeypatch.setattr("saelens_lite.train.runs.process.chosen_device", lambda name: name or "cpu")
    monkeypatch.setenv("WANDB_MODE", "offline")

    def once(**fields):
        key = repr(sorted(fields.items()))
        if key not in known:
            known[key] = train(**fields)
        return known[key]

    def train(**fields):
        checkpoints.clear()
        fields = {"hook_point": "a", "checkpoint_every_steps": 3, "output": "sae", **BASE, **fields}
        folder = tmp_path / next(folders)
        output = folder / fields.pop("output")
        if fields.get("init_from"):
            d_model = 32 if fields.get("store") == "store of text" else 16
            torch.manual_seed(0)
            source = sl.SparseAutoencoder(sl.SAEConfig(d_model=d_model, d_sae=32, k=3))
            torch.nn.init.orthogonal_(source.W_dec)
            source.W_dec.data.copy_(torch.nn.functional.normalize(source.W_dec, dim=1))
            source.W_enc.data.copy_(source.W_dec.T)
            fields["init_from"] = str(source.save(tmp_path / "source"))
        if fields.get("store") == "store of text":
            store, model = request.getfixturevalue("text_store"), request.getfixturevalue("gpt2")
        else:
            store, model = stores[fields.get("store")], None
        sl.train_sae(
            store, output=output, model=model, **{name: fields[name] for name in fields if name != "store"}
        )
        lines = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
        for line in lines:
            line.pop("tokens_per_s", None)
        files = sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))
        preset = json.loads((output / "train_config.json").read_text())["preset"]
        weights = hashlib.sha256((output / "sae_weights.safetensors").read_bytes()).hexdigest()
        return weights, (files, lines, list(checkpoints), preset)

    return once


def test_every_field_stands_in_one_list():
    listed = [*CHANGES_THE_SAE, *CHANGES_WHAT_IS_TOLD, *CHANGES_NOTHING, *SHOWN_ELSEWHERE]
    assert sorted(listed) == sorted(field.name for field in dataclasses.fields(TrainConfig))


@pytest.mark.long
@pytest.mark.parametrize("name", CHANGES_THE_SAE)
def test_what_changes_the_sae(run, name):
    beside, value = CHANGES_THE_SAE[name]
    assert run(**beside)[0] != run(**beside | {name: value})[0]


@pytest.mark.long
@pytest.mark.parametrize("name", CHANGES_WHAT_IS_TOLD)
def test_what_changes_what_is_told(run, name):
    beside, value = CHANGES_WHAT_IS_TOLD[name]
    if name == "preset":  # apart from the fields that it stands for, a name
        beside = {
            key: field for key, field in with_preset({"preset": value} | BASE).items() if key != "preset"
        }
    (weights, told), (other_weights, other_told) = run(**beside), run(**beside | {name: value})
    assert weights == other_weights and told != other_told


@pytest.mark.long
@pytest.mark.parametrize("name", CHANGES_NOTHING)
def test_what_changes_nothing(run, name):
    beside, value = CHANGES_NOTHING[name]
    assert run(**beside) == run(**beside | {name: value})
