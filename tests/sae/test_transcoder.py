"""A transcoder: read at one place, written to another, with a skip or without, in SAELens' folders."""

import json

import pytest
import torch

from saelens_lite.errors import CheckpointError
from saelens_lite.sae.autoencoder import SparseAutoencoder
from saelens_lite.sae.config import SAEConfig, Side, Target
from saelens_lite.sae.crosscoder import Crosscoder
from saelens_lite.sae.transcoder import Transcoder

READS, WRITES = "blocks.3.mlp.hook_in", "blocks.3.hook_mlp_out"


def config(kind="relu", skip=False, d_model=2, d_sae=3, d_out=2, **fields):
    target = Target(d_model=d_out, skip=skip, hook_point=WRITES, hf_module="model.layers.3.mlp")
    at = {"hook_point": READS, "model_name": "tiny", "apply_b_dec_to_input": False}
    return SAEConfig(d_model=d_model, d_sae=d_sae, kind=kind, target=target, **at | fields)


def random_transcoder(**fields):
    transcoder, generator = Transcoder(config(**fields)), torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in transcoder.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
    return transcoder


def by_hand(kind, **fields):
    transcoder = Transcoder(config(kind, skip=True, **fields))
    values = {
        "W_enc": [[1.0, 0, 1], [0, 2, -1]], "b_enc": [0.5, -1, 0], "W_dec": [[1.0, 0], [0, 1], [3, 3]],
        "b_dec": [10.0, 20], "W_skip": [[0.0, 2], [1, 0]], "threshold": [3.0, 1, 0],
    }  # fmt: skip
    with torch.no_grad():
        for name, parameter in transcoder.named_parameters():
            parameter.copy_(torch.tensor(values[name]))
    return transcoder


@pytest.mark.parametrize(
    ("kind", "k", "latents", "recons"),
    [
        ("relu", None, [2.5, 1, 1], [10 + 2.5 + 3 + 2, 20 + 1 + 3 + 2]),
        ("topk", 1, [2.5, 0, 0], [10 + 2.5 + 2, 20 + 2]),
        ("jumprelu", None, [0, 0, 1], [10 + 3 + 2, 20 + 3 + 2]),
    ],
)
def test_by_hand(kind, k, latents, recons):
    """x = (2, 1): pre-activations (2 + .5, 2 − 1, 2 − 1); the skip adds W_skip x = (2 · 1, 1 · 2)."""
    transcoder, x = by_hand(kind, k=k), torch.tensor([[2.0, 1.0]])
    with torch.no_grad():
        found = transcoder(x)
        torch.testing.assert_close(transcoder.encode_dense(x), torch.tensor([latents]).float())
        torch.testing.assert_close(found.recons, torch.tensor([recons]).float())
        torch.testing.assert_close(transcoder.decode(found.latents) + torch.tensor([2.0, 2]), found.recons)


def test_widths_of_its_own():
    transcoder = random_transcoder(d_model=5, d_sae=7, d_out=3, skip=True)
    shapes = {name: tuple(parameter.shape) for name, parameter in transcoder.named_parameters()}
    assert shapes == {"W_enc": (5, 7), "W_dec": (7, 3), "b_dec": (3,), "b_enc": (7,), "W_skip": (3, 5)}
    x = torch.randn(2, 4, 5, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        recons, latents = transcoder(x)
        dense = (x @ transcoder.W_enc + transcoder.b_enc).relu()
        expected = dense @ transcoder.W_dec + transcoder.b_dec + x @ transcoder.W_skip.T
    assert transcoder.d_out == 3 and latents.batch_shape == (2, 4)
    torch.testing.assert_close(recons, expected)
    assert transcoder(x[:0]).recons.shape == (0, 4, 3)
    with pytest.raises(ValueError, match=r"encode expected acts\[..., d_model=5\], got \[2, 3\]"):
        transcoder(torch.zeros(2, 3))


ARCHITECTURES = [
    ("relu", False, "transcoder"), ("relu", True, "skip_transcoder"),
    ("jumprelu", False, "jumprelu_transcoder"), ("jumprelu", True, "jumprelu_skip_transcoder"),
    ("topk", False, "topk_transcoder"), ("topk", True, "topk_skip_transcoder"),
]  # fmt: skip


@pytest.mark.parametrize(("kind", "skip", "architecture"), ARCHITECTURES)
def test_a_folder_comes_back(tmp_path, kind, skip, architecture):
    k = 2 if kind == "topk" else None
    transcoder = random_transcoder(kind=kind, skip=skip, k=k, d_model=5, d_sae=7, d_out=3)
    transcoder.save(tmp_path)
    cfg = json.loads((tmp_path / "cfg.json").read_text())
    assert (cfg["architecture"], cfg["d_in"], cfg["d_out"], cfg.get("k")) == (architecture, 5, 3, k)
    assert cfg["apply_b_dec_to_input"] is False
    assert (cfg["metadata"]["hook_name"], cfg["metadata"]["hook_name_out"]) == (READS, WRITES)
    loaded = Transcoder.load(tmp_path)
    assert loaded.target == transcoder.target and loaded.config.hook_point == READS
    assert "hook_name_out" not in loaded.config.metadata
    assert (loaded.kind, loaded.config.k) == (kind, k)
    for name, parameter in transcoder.named_parameters():
        assert torch.equal(loaded.get_parameter(name), parameter)


def test_each_class_refuses_the_others(tmp_path):
    random_transcoder().save(tmp_path / "transcoder")
    SparseAutoencoder(SAEConfig(d_model=4, d_sae=7, kind="relu")).save(tmp_path / "sae")
    sides = (Side(d_model=2), Side(d_model=2))
    Crosscoder(SAEConfig(d_model=4, d_sae=7, kind="relu", sides=sides)).save(tmp_path / "crosscoder")
    for other in (SparseAutoencoder, Crosscoder):
        with pytest.raises(ValueError, match="got a transcoder of 2 to 2: .*Transcoder.load opens it"):
            other.load(tmp_path / "transcoder")
    with pytest.raises(ValueError, match="expected a transcoder, got an SAE of d_model=4: .*SparseAuto"):
        Transcoder.load(tmp_path / "sae")
    with pytest.raises(ValueError, match="expected a transcoder, got a crosscoder of d_model=4: .*Crossc"):
        Transcoder.load(tmp_path / "crosscoder")


def test_what_a_transcoder_is_not_is_refused():
    with pytest.raises(ValueError, match="pruned expected an SAE, got a transcoder"):
        random_transcoder().pruned(0.5)
    with pytest.raises(ValueError, match="apply_b_dec_to_input of a transcoder expected False, got True"):
        config(apply_b_dec_to_input=True)
    with pytest.raises(ValueError, match="kind of a transcoder expected .*, got 'gated'"):
        config("gated")
    with pytest.raises(ValueError, match="normalize_activations of a transcoder expected 'none', got 'layer"):
        config(normalize_activations="layer_norm")


def test_a_folder_that_contradicts_itself_is_refused(tmp_path):
    random_transcoder(d_out=3, skip=True).save(tmp_path)
    file = tmp_path / "cfg.json"
    told = json.loads(file.read_text())
    file.write_text(json.dumps(told | {"d_out": 4}))
    with pytest.raises(CheckpointError, match=r"expected W_dec \[3, 4\].*got \[3, 3\]"):
        Transcoder.load(tmp_path)
    file.write_text(json.dumps(told | {"architecture": "transcoder"}))
    with pytest.raises(CheckpointError, match="W_skip not known"):
        Transcoder.load(tmp_path)


def test_formats_of_saes_alone_are_refused(tmp_path):
    with pytest.raises(ValueError, match="dictionary_learning cannot hold a transcoder; format saelens"):
        random_transcoder().export(tmp_path / "out", "dictionary_learning")
