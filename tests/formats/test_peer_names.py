"""Names of SAELens, sparsify and dictionary_learning: each answers with what is here, as the page does."""

import json
import re
from pathlib import Path

import pytest
import torch

import saelens_lite as sl
from saelens_lite.cli.commands import COMMANDS, main
from saelens_lite.cli.flags import configured
from saelens_lite.cli.harvest import HarvestCommand
from saelens_lite.cli.train import TrainCommand
from saelens_lite.formats.peer_names import FIELDS, NAMES, SAE_ATTRIBUTES, is_runner_config, runner_commands
from saelens_lite.sae.config import SAEConfig

PAGE = Path(sl.__file__).parent / "COMING_FROM.md"
RUNNER = {
    "sae": {"d_in": 64, "d_sae": 512, "architecture": "topk", "k": 16, "aux_loss_coefficient": 1.0},
    "model_name": "gpt2",
    "hook_name": "blocks.3.hook_resid_post",
    "dataset_path": "Skylion007/openwebtext",
    "context_size": 128,
    "training_tokens": 1000,
    "train_batch_size_tokens": 256,
    "lr": 1e-4,
    "lr_warm_up_steps": 5,
    "seed": 42,
    "checkpoint_path": "checkpoints/x",
    "n_checkpoints": 0,
}


def small_sae() -> sl.SparseAutoencoder:
    return sl.SparseAutoencoder(SAEConfig(d_model=4, d_sae=8, k=2))


def exists(dotted: str) -> bool:
    value = sl
    for part in dotted.split(".")[1:]:
        if (value := getattr(value, part, None)) is None:
            return part in getattr(sl.TrainConfig, "__dataclass_fields__", {})
    return True


@pytest.mark.parametrize("name", NAMES)
def test_a_name_of_the_face_answers_with_what_is_here(name):
    with pytest.raises(AttributeError, match=re.escape(f"has no attribute {name!r}: ")) as raised:
        getattr(sl, name)
    assert NAMES[name] in str(raised.value) and "did you mean" not in str(raised.value)
    assert not hasattr(sl, name)


@pytest.mark.parametrize("name", SAE_ATTRIBUTES)
def test_an_attribute_of_an_sae_answers_with_what_is_here(name):
    for asked in (small_sae(), sl.SparseAutoencoder):
        with pytest.raises(AttributeError, match=re.escape(SAE_ATTRIBUTES[name])):
            getattr(asked, name)


def test_what_is_pointed_to_exists():
    for text in [*NAMES.values(), *SAE_ATTRIBUTES.values()]:
        for dotted in re.findall(r"`(sl(?:\.\w+)+)", text):
            assert exists(dotted), text
        for command in re.findall(r"`saelens-lite ([\w-]+)", text):
            assert command in COMMANDS or command in ("push", "saes"), text
    sae = small_sae()
    for text in SAE_ATTRIBUTES.values():
        for name in re.findall(r"`(\w+)(?:\.\w+)?[(`]", text):
            assert hasattr(sae, name) or name in ("sl", "SparseAutoencoder", "TrainConfig"), text
    fields = {*TrainCommand.__dataclass_fields__, *HarvestCommand.__dataclass_fields__}
    for text in FIELDS.values():
        named = re.match(r"`|nothing|(\w+)", text)[1]
        assert named is None or named in fields, text


def test_other_attributes_are_refused_as_python_does():
    sae = small_sae()
    with pytest.raises(AttributeError, match="'SparseAutoencoder' object has no attribute 'nothing'$"):
        _ = sae.nothing
    assert sae.encode(torch.ones(2, 3, 4)).shape == sae.encode_dense(torch.ones(2, 3, 4)).shape == (2, 3, 8)
    assert sae.W_enc.shape == (4, 8) and torch.equal(sae.b_dec, torch.zeros(4))
    assert sl.SparseAutoencoder.load.__name__ == "load"
    with pytest.raises(AttributeError, match="did you mean 'evaluate_sae'"):
        _ = sl.evaluate_saes


def test_fields_of_other_configurations_are_translated():
    with pytest.raises(ValueError, match=r"unknown key 'training_tokens' \(here `harvest` --max-tokens"):
        sl.train_sae("nowhere", training_tokens=1000)
    with pytest.raises(ValueError, match=r"unknown key 'l1_coefficient' \(here l1_coeff of `train`\)"):
        sl.train_sae("nowhere", l1_coefficient=5)


def test_a_runner_configuration_is_recognised_and_translated(tmp_path, capsys):
    """The commands it names are accepted as they stand, and mean what the file says."""
    assert is_runner_config(RUNNER) and not is_runner_config({"lr": 1e-3, "hook_point": "x"})
    file = tmp_path / "runner_cfg.json"
    file.write_text(json.dumps(RUNNER))
    assert main(["train", "--config", str(file)]) == 2
    said = capsys.readouterr().err
    assert "is a configuration of SAELens' runner" in said and runner_commands(RUNNER) in said
    harvest, train = (line.split()[2:] for line in runner_commands(RUNNER).split("; then "))
    asked = configured(HarvestCommand, "harvest", harvest)
    assert (asked.model, asked.dataset, asked.hook_points) == (
        "gpt2",
        ("Skylion007/openwebtext",),
        ("blocks.3.hook_resid_post",),
    )
    assert (asked.context_length, asked.max_tokens) == (128, 1000)
    config = configured(TrainCommand, "train", train)
    assert (config.kind, config.k, config.d_sae, config.aux_coeff) == ("topk", 16, 512, 1.0)
    assert (config.batch_size_rows, config.lr, config.warm_up_steps, config.seed) == (256, 1e-4, 5, 42)
    before_6 = {"hook_name": "blocks.0.hook_mlp_out", "training_tokens": 9, "l1_coefficient": 5, "d_sae": 64}
    train = runner_commands(before_6).split("; then ")[1].split()[2:]
    config = configured(TrainCommand, "train", train)
    assert (config.kind, config.l1_coeff, config.d_sae) == ("relu", 5.0, 64)


def test_cached_activations_are_recognised(tmp_path):
    (tmp_path / "dataset_info.json").write_text("{}")
    (tmp_path / "state.json").write_text("{}")
    with pytest.raises(sl.ShardError, match=r"as SAELens caches activations: sl\.store\.read_saelens_activ"):
        sl.ActivationStore(tmp_path)


@pytest.mark.parametrize(
    "heading, names", [("Names", NAMES), ("The SAE", SAE_ATTRIBUTES), ("Fields", FIELDS)]
)
def test_the_page_is_the_table(heading, names):
    part = PAGE.read_text().split(f"\n## {heading}")[1].split("\n## ")[0]
    rows = re.findall(r"^\| `(\w+)` \| (.+) \|$", part, flags=re.MULTILINE)
    assert rows == list(names.items())
