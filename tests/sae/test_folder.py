"""The SAE folder: what SAELens wrote computes the same here, what we write is as specified, and broken
folders say how."""

import dataclasses
import hashlib
import json
import os
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from saelens_lite.errors import CheckpointError
from saelens_lite.sae import folder
from saelens_lite.sae.autoencoder import SparseAutoencoder
from saelens_lite.sae.config import SAEConfig
from saelens_lite.sae.folder import load_log_sparsity

GOLDEN = Path(__file__).parents[1] / "golden"
KINDS = {"relu": {}, "topk": {"k": 3}, "jumprelu": {}, "gated": {}}


def random_sae(kind: str = "topk", **fields) -> SparseAutoencoder:
    torch.manual_seed(0)
    fields = {
        "d_model": 8,
        "d_sae": 16,
        "model_name": "tiny",
        "hook_point": "blocks.1.hook_mlp_out",
        "hf_module": "h.1.mlp",
    } | fields
    sae = SparseAutoencoder(SAEConfig(kind=kind, **KINDS[kind], **fields))
    with torch.no_grad():
        for parameter in sae.parameters():
            parameter.copy_(torch.randn_like(parameter))
    return sae


@pytest.fixture
def golden_copy(tmp_path):
    """A golden folder whose cfg.json can be changed: golden_copy("topk", k=None) writes it without k."""

    def copy(name: str, **changes) -> Path:
        folder = tmp_path / name
        shutil.copytree(GOLDEN / f"saelens_{name}", folder, dirs_exist_ok=True)
        cfg = json.loads((folder / "cfg.json").read_text()) | changes
        (folder / "cfg.json").write_text(
            json.dumps({key: value for key, value in cfg.items() if value is not ...})
        )
        return folder

    return copy


@pytest.mark.parametrize("name", ["standard", "topk", "jumprelu", "gated"])
def test_what_saelens_wrote_computes_the_same(name):
    folder = GOLDEN / f"saelens_{name}"
    expected = load_file(folder / "expected.safetensors")
    sae = SparseAutoencoder.load(folder)
    with torch.no_grad():
        torch.testing.assert_close(
            sae.encode(expected["acts"]).to_dense(), expected["latent_acts"], atol=1e-5, rtol=0
        )
        torch.testing.assert_close(sae(expected["acts"]).recons, expected["recons"], atol=1e-5, rtol=0)
    assert (sae.config.hook_point, sae.config.hf_module) == ("blocks.1.hook_resid_post", "model.layers.1")
    assert sae.config.model_name == "a-tiny-model"
    assert sae.config.metadata["context_size"] == 32


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", ["float32", "float64", "bfloat16", "float16"])
def test_saved_and_loaded_is_the_same_sae(kind, dtype, tmp_path):
    sae = random_sae(kind, dtype=dtype, metadata={"saelens_lite": {"fvu": 0.1, "store": "abc"}})
    loaded = SparseAutoencoder.load(sae.save(tmp_path / "sae"))
    assert loaded.kind == kind and loaded.dtype == getattr(torch, dtype)
    assert loaded.config.metadata["saelens_lite"] == {"fvu": 0.1, "store": "abc"}
    for field in ("d_model", "d_sae", "k", "hook_point", "hf_module", "model_name"):
        assert getattr(loaded.config, field) == getattr(sae.config, field)
    for name, tensor in sae.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], tensor)
    assert loaded.W_enc.stride() == sae.W_enc.stride() == (1, 8), "latent-major storage after loading"


def test_cfg_json_is_the_saelens_inference_form(tmp_path):
    sae = random_sae(metadata={"saelens_lite": {"fvu": float("nan")}})
    sae.save(tmp_path / "sae", log_sparsity=torch.linspace(-10, 0, 16))
    files = [tmp_path / "sae" / name for name in ("sae_weights.safetensors", "sparsity.safetensors")]
    digests = {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in files}
    assert json.loads((tmp_path / "sae" / "cfg.json").read_text()) == {
        "d_in": 8,
        "d_sae": 16,
        "dtype": "float32",
        "device": "cpu",
        "apply_b_dec_to_input": True,
        "normalize_activations": "none",
        "reshape_activations": "none",
        "metadata": {
            "saelens_lite": {"fvu": None, "sha256": digests},
            "sae_lens_version": "6.54.12",
            "sae_lens_training_version": None,
            "hook_name": "blocks.1.hook_mlp_out",
            "hf_hook_name": "h.1.mlp",
            "model_name": "tiny",
        },
        "k": 3,
        "rescale_acts_by_decoder_norm": False,
        "architecture": "topk",
    }
    assert sorted(os.listdir(tmp_path / "sae")) == [
        "cfg.json",
        "sae_weights.safetensors",
        "sparsity.safetensors",
    ]
    assert os.listdir(tmp_path) == ["sae"], "nothing hidden is left beside it"
    torch.testing.assert_close(load_log_sparsity(tmp_path / "sae"), torch.linspace(-10, 0, 16))
    header = (tmp_path / "sae" / "sae_weights.safetensors").read_bytes()
    assert b"__metadata__" not in header
    assert load_file(tmp_path / "sae" / "sae_weights.safetensors")["W_enc"].shape == (8, 16)


def test_weights_can_be_read_by_whoever_can_read_the_configuration(tmp_path):
    folder = random_sae().save(tmp_path / "sae")
    assert (folder / "sae_weights.safetensors").stat().st_mode == (folder / "cfg.json").stat().st_mode


def test_same_sae_gives_the_same_bytes(tmp_path):
    for name in "ab":
        random_sae().save(tmp_path / name)
    for file in ("cfg.json", "sae_weights.safetensors"):
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()


def test_saving_over_keeps_other_files_and_drops_a_stale_sparsity(tmp_path):
    random_sae("relu").save(tmp_path / "sae", log_sparsity=torch.zeros(16))
    (tmp_path / "sae" / "metrics.jsonl").write_text("{}\n")
    random_sae("topk").save(tmp_path / "sae")
    assert SparseAutoencoder.load(tmp_path / "sae").kind == "topk"
    assert load_log_sparsity(tmp_path / "sae") is None
    assert (tmp_path / "sae" / "metrics.jsonl").read_text() == "{}\n"


def test_a_failure_while_writing_leaves_the_old_sae(tmp_path, monkeypatch):
    random_sae().save(tmp_path / "sae")
    before = {file.name: file.read_bytes() for file in (tmp_path / "sae").iterdir()}

    def full_disk(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(folder, "save_file", full_disk)
    with pytest.raises(CheckpointError, match="No space left.*the SAE in memory is untouched"):
        random_sae("relu").save(tmp_path / "sae")
    assert {file.name: file.read_bytes() for file in (tmp_path / "sae").iterdir()} == before
    assert os.listdir(tmp_path) == ["sae"]


class Killed(BaseException):
    pass


def save_killed_at(sae, folder, rename, monkeypatch, **options):
    """Save until the rename of this number, from which on nothing works any more."""
    done, replace = [], os.replace

    def dying_replace(source, target):
        if len(done) >= rename:
            raise Killed
        done.append(target)
        replace(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", dying_replace)
        try:
            sae.save(folder, **options)
        except Killed:
            return True
    return False


@pytest.mark.parametrize("rename", range(4))
@pytest.mark.parametrize("of_older_version", [False, True])
def test_killed_between_two_renames_the_folder_holds_the_old_sae_or_the_new_one(
    tmp_path, monkeypatch, rename, of_older_version
):
    old, new, place = random_sae("relu"), random_sae("topk"), tmp_path / "sae"
    old.save(place, log_sparsity=torch.zeros(16))
    if of_older_version:
        cfg = json.loads((place / "cfg.json").read_text())
        del cfg["metadata"]["saelens_lite"]
        (place / "cfg.json").write_text(json.dumps(cfg))
    assert save_killed_at(new, place, rename, monkeypatch, log_sparsity=torch.ones(16))
    expected, rates = (old, torch.zeros(16)) if rename < 2 else (new, torch.ones(16))
    for _ in range(2):  # reading changes nothing
        loaded = SparseAutoencoder.load(place)
        assert loaded.kind == expected.kind and torch.equal(loaded.W_dec, expected.W_dec)
        assert torch.equal(load_log_sparsity(place), rates)
    assert (place / "sae_weights.safetensors").exists() == (rename in (0, 3))  # never one beside another's
    folder.settle(place)
    assert torch.equal(SparseAutoencoder.load(place).W_dec, expected.W_dec)
    assert torch.equal(load_log_sparsity(place), rates)
    assert sorted(os.listdir(place)) == ["cfg.json", "sae_weights.safetensors", "sparsity.safetensors"]


@pytest.mark.parametrize("rename", range(2))
def test_a_step_that_is_half_saved_has_its_own_weights_beside_its_numbers(tmp_path, monkeypatch, rename):
    steps = [random_sae(metadata={"saelens_lite": {"steps": step}}) for step in range(3)]
    for step, sae in enumerate(steps):
        sae.W_dec.data.fill_(step)
    steps[0].save(tmp_path / "sae")
    for sae in steps[1:]:  # the second kill finds what the first one left
        assert save_killed_at(sae, tmp_path / "sae", rename, monkeypatch)
        loaded = SparseAutoencoder.load(tmp_path / "sae")
        assert loaded.W_dec.unique().tolist() == [loaded.config.metadata["saelens_lite"]["steps"]]
    steps[2].save(tmp_path / "sae")
    assert SparseAutoencoder.load(tmp_path / "sae").W_dec.unique().tolist() == [2]
    assert sorted(os.listdir(tmp_path / "sae")) == ["cfg.json", "sae_weights.safetensors"]


def test_what_killed_saves_left_goes_with_the_next_one_and_nothing_like_it(tmp_path):
    for name in (".sae.ab12_9zx.tmp", "sae/.saving-ab12_9zx"):
        random_sae().save(tmp_path / "other").rename(tmp_path / "staged")
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / "staged").rename(tmp_path / name)
    (tmp_path / ".sae.notes123.tmp").mkdir()
    (tmp_path / ".sae.notes123.tmp/thesis.tex").touch()
    (tmp_path / "sae/.saving-my_notes").symlink_to(tmp_path / "other")
    random_sae().save(tmp_path / "sae")
    assert sorted(os.listdir(tmp_path)) == [".sae.notes123.tmp", "sae"]
    assert sorted(os.listdir(tmp_path / "sae"))[:2] == [".saving-my_notes", "cfg.json"]


def test_weights_that_another_program_wrote_are_said(tmp_path, caplog):
    place = random_sae().save(tmp_path / "sae")
    assert SparseAutoencoder.load(place) and not caplog.records
    weights = place / "sae_weights.safetensors"
    content = weights.read_bytes()
    weights.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    SparseAutoencoder.load(place)
    assert "sae_weights.safetensors has another sha256 than cfg.json records" in caplog.text


@pytest.mark.parametrize("changes", [{"d_in": 8192, "d_sae": 65536}, {"d_in": 10**6, "d_sae": 10**8}])
def test_shapes_are_compared_before_memory_is_taken(golden_copy, changes, monkeypatch):
    monkeypatch.setattr(SparseAutoencoder, "__init__", None)
    with pytest.raises(CheckpointError, match=rf"expected W_enc \[{changes['d_in']}, .*got \[8, 16\]"):
        SparseAutoencoder.load(golden_copy("topk", **changes))


def test_written_before_saelens_6_is_read(golden_copy):
    old = {
        "metadata": ...,
        "architecture": ...,
        "k": ...,
        "rescale_acts_by_decoder_norm": ...,
        "dtype": "torch.float32",
        "hook_point": "blocks.2.hook_resid_pre",
        "model_name": "gpt2",
        "activation_fn_str": "topk",
        "activation_fn_kwargs": {"k": 4},
        "normalize_activations": False,
        "an_unknown_key": 1,
    }
    config = SparseAutoencoder.load(golden_copy("topk", **old)).config
    assert (config.kind, config.k) == ("topk", 4)
    assert (config.hook_point, config.model_name, config.dtype) == (
        "blocks.2.hook_resid_pre",
        "gpt2",
        "float32",
    )
    assert config.metadata["prepend_bos"] is True
    config = SparseAutoencoder.load(
        golden_copy("standard", metadata=..., architecture=..., normalize_activations=None)
    ).config
    assert (config.kind, config.normalize_activations) == ("relu", "none")


def test_log_threshold_and_a_scaling_factor_of_ones_are_read(golden_copy):
    folder = golden_copy("jumprelu")
    tensors = load_file(folder / "sae_weights.safetensors")
    threshold = tensors.pop("threshold")
    save_file(
        tensors | {"log_threshold": threshold.log(), "scaling_factor": torch.ones(16)},
        folder / "sae_weights.safetensors",
    )
    torch.testing.assert_close(SparseAutoencoder.load(folder).threshold.detach(), threshold)


def test_dtype_can_be_chosen(golden_copy):
    sae = SparseAutoencoder.load(golden_copy("topk"), dtype=torch.bfloat16)
    assert sae.dtype == torch.bfloat16 and sae.config.dtype == "bfloat16"
    with pytest.raises(ValueError, match="expected dtype float32, .*, got 'int8'"):
        SparseAutoencoder.load(golden_copy("topk"), dtype="int8")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"normalize_activations": "expected_average_only_in"}, "fold_activation_norm_scaling_factor"),
        ({"normalize_activations": "covariance_whitening"}, "fold_activation_whitening"),
        ({"normalize_activations": "sphere"}, "'sphere' is not supported"),
        ({"reshape_activations": "heads"}, "reshape_activations 'heads'"),
        ({"architecture": "batchtopk"}, "save_inference_model"),
        ({"architecture": "abstopk"}, "'abstopk' is not opened here: it keeps latents below zero"),
        ({"architecture": "matching_pursuit"}, "'matching_pursuit' is not opened here"),
        ({"architecture": "temporal"}, "'temporal' is not opened here: its latents depend on the tokens"),
        ({"architecture": "jump_relu"}, "did you mean 'jumprelu'"),
        ({"dtype": "float8"}, "got 'float8'"),
        ({"metadata": ..., "normalize_activations": True}, "expected_average_only_in"),
        ({"metadata": ..., "activation_fn_str": "tanh-relu"}, "activation_fn relu or topk, got 'tanh-relu'"),
    ],
)
def test_what_has_no_counterpart_is_refused_by_name(golden_copy, changes, message):
    with pytest.raises(ValueError, match=message):
        SparseAutoencoder.load(golden_copy("topk", **changes))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"d_in": 12}, r"expected W_enc \[12, 16\].*got \[8, 16\]"),
        ({"d_sae": ...}, "expected a key 'd_sae'"),
        ({"d_in": "8"}, "expected d_in to be int, got '8'"),
        ({"architecture": "gated"}, r"expected a tensor b_gate \[16\]"),
        ({"architecture": "transcoder"}, "expected a key 'd_out'"),
        ({"metadata": [1]}, "expected metadata to be a JSON object"),
    ],
)
def test_cfg_that_contradicts_the_weights_is_refused(golden_copy, changes, message):
    with pytest.raises(CheckpointError, match=message):
        SparseAutoencoder.load(golden_copy("topk", **changes))


def test_tensors_that_are_not_understood_are_refused(golden_copy):
    folder = golden_copy("topk")
    tensors = load_file(folder / "sae_weights.safetensors")
    save_file(tensors | {"W_skip": torch.zeros(8, 8)}, folder / "sae_weights.safetensors")
    with pytest.raises(CheckpointError, match="W_skip not known"):
        SparseAutoencoder.load(folder)
    save_file(tensors | {"scaling_factor": torch.full((16,), 2.0)}, folder / "sae_weights.safetensors")
    with pytest.raises(CheckpointError, match="not all ones"):
        SparseAutoencoder.load(folder)


def test_damaged_and_missing_files_are_named(golden_copy, tmp_path):
    folder = golden_copy("topk")
    weights = folder / "sae_weights.safetensors"
    weights.write_bytes(weights.read_bytes()[:-7])
    with pytest.raises(
        CheckpointError, match="sae_weights.safetensors: expected a complete safetensors file"
    ):
        SparseAutoencoder.load(folder)
    weights.unlink()
    with pytest.raises(CheckpointError, match="sae_weights.safetensors is missing"):
        SparseAutoencoder.load(folder)
    (folder / "cfg.json").write_text("{")
    weights.touch()
    with pytest.raises(CheckpointError, match="cfg.json: expected JSON"):
        SparseAutoencoder.load(folder)
    with pytest.raises(CheckpointError, match="no SAE at .*nowhere"):
        SparseAutoencoder.load(tmp_path / "nowhere")
    with pytest.raises(
        CheckpointError, match="SAEs in it: saelens_gated, saelens_jumprelu.*pass one as folder="
    ):
        SparseAutoencoder.load(GOLDEN)
    assert SparseAutoencoder.load(GOLDEN, "saelens_gated").kind == "gated"


def test_a_repository_that_cannot_be_fetched_says_so(monkeypatch):
    import huggingface_hub

    def offline(*_, **__):
        raise ConnectionError("no route to host")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", offline)
    with pytest.raises(
        CheckpointError, match="cannot fetch owner/name folder='a' from the hub: no route to host"
    ):
        SparseAutoencoder.load("owner/name", "a")


def test_a_repository_folder_is_fetched_alone(monkeypatch, golden_copy):
    import huggingface_hub

    folder = golden_copy("topk")
    asked = []

    def snapshot(repo, allow_patterns):
        asked.extend(allow_patterns)
        return str(folder.parent)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot)
    assert SparseAutoencoder.load("owner/name", "topk").kind == "topk"
    assert asked[:3] == ["topk/cfg.json", "topk/sae_weights.safetensors", "topk/sparsity.safetensors"]
    assert {"topk/sae.safetensors", "topk/params.npz", "topk/ae.pt"} < set(asked) and "*" not in str(asked)
    there = ["topk/sae_weights.safetensors", "README.md"]
    monkeypatch.setattr(huggingface_hub, "list_repo_files", lambda repo: there)
    with pytest.raises(CheckpointError, match="no SAE at folder='layer_1'; it has topk"):
        SparseAutoencoder.load("owner/name", "layer_1")


def test_save_refuses_a_sparsity_of_another_width(tmp_path):
    with pytest.raises(ValueError, match=r"log_sparsity\[d_sae=16\], got \[15\]"):
        random_sae().save(tmp_path / "sae", log_sparsity=torch.zeros(15))


@pytest.mark.parametrize("content", ['{"name": "another program"}', "[1, 2]", "no JSON"])
def test_save_leaves_a_cfg_of_something_else_alone(tmp_path, content):
    cfg = tmp_path / "cfg.json"
    cfg.write_text(content)
    with pytest.raises(ValueError, match="with an SAE's, got .*cfg.json, which would be replaced: choose"):
        random_sae().save(tmp_path)
    assert cfg.read_text() == content and os.listdir(tmp_path) == ["cfg.json"]
    elsewhere = tmp_path / "elsewhere.json"
    elsewhere.write_text('{"d_sae": 16}')
    (tmp_path / "sae").mkdir()
    (tmp_path / "sae" / "cfg.json").symlink_to(elsewhere)
    with pytest.raises(ValueError, match="choose another folder"):
        random_sae().save(tmp_path / "sae")


def test_metadata_is_not_altered_by_saving(tmp_path):
    sae = random_sae(metadata={"note": 1})
    before = dataclasses.asdict(sae.config)
    sae.save(tmp_path / "sae")
    assert dataclasses.asdict(sae.config) == before


@pytest.mark.parametrize("name", ["sae_weights.safetensors", "sparsity.safetensors", "cfg.json"])
def test_what_is_not_as_it_was_saved_is_verified_by_name(tmp_path, name, capsys):
    from saelens_lite.cli.commands import main

    place = random_sae().save(tmp_path / "sae", log_sparsity=torch.zeros(16))
    assert main(["verify", str(place)]) == 0
    content = (place / name).read_bytes()
    (place / name).write_bytes(b"x" + content[1:])
    assert main(["verify", str(place)]) == 1
    assert str(place / name) in capsys.readouterr().out
    (place / name).write_bytes(content)
    assert folder.verify_sae(place) == []
    assert folder.verify_sae(GOLDEN / "saelens_topk") == []


def test_a_folder_of_no_format_leads_to_none_that_is_refused_next(tmp_path):
    (tmp_path / "layers.10").mkdir()
    (tmp_path / "layers.10" / "cfg.json").write_text('{"num_latents": 16, "k": 4, "d_in": 8}')
    (tmp_path / "layers.10" / "model.safetensors").touch()
    for path, holds in ((tmp_path / "layers.10", "cfg.json, model.safetensors"), (tmp_path, "layers.10")):
        with pytest.raises(CheckpointError, match=f"no complete SAE of any format, it holds {holds}"):
            SparseAutoencoder.load(path)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_norms_that_are_folded_are_not_rounded_again(golden_copy, dtype):
    """A topk folder in 16 bits that selects by decoder norm: its rows are divided by it in float32."""
    folder = golden_copy("topk", dtype=dtype, rescale_acts_by_decoder_norm=True)
    file = folder / "sae_weights.safetensors"
    save_file({name: t.to(getattr(torch, dtype)) for name, t in load_file(file).items()}, file)
    sae = SparseAutoencoder.load(folder)
    assert sae.config.dtype == "float32"
    norms = load_file(file)["W_dec"].float().norm(dim=1)
    torch.testing.assert_close(sae.W_dec.norm(dim=1), torch.ones(16), atol=1e-6, rtol=0)
    torch.testing.assert_close(sae.W_enc.detach(), load_file(file)["W_enc"].float() * norms)
    assert SparseAutoencoder.load(folder, dtype=dtype).config.dtype == dtype


def test_a_path_inside_a_folder_of_this_machine_is_no_repository(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    random_sae().save("runs/a/topk")
    with pytest.raises(CheckpointError, match="no SAE at runs/a/topc: .*; SAEs in runs/a: topk"):
        SparseAutoencoder.load("runs/a/topc")
