"""An SAE written for another program is the same there, or is refused by what that program cannot hold."""

import json

import pytest
import torch
from safetensors.torch import load_file

from saelens_lite.cli.commands import main
from saelens_lite.formats import saelens
from saelens_lite.formats.convert import WRITERS
from saelens_lite.sae.autoencoder import SparseAutoencoder
from saelens_lite.sae.biases import subtracting
from saelens_lite.sae.config import SAEConfig


def sae_of(kind, subtracts=True, **fields):
    torch.manual_seed(0)
    fields |= {
        "hook_point": "blocks.3.hook_resid_post",
        "model_name": "tiny",
        "apply_b_dec_to_input": subtracts,
    }
    sae = SparseAutoencoder(
        SAEConfig(d_model=6, d_sae=20, kind=kind, k=3 if kind == "topk" else None, **fields)
    )
    with torch.no_grad():
        for parameter in sae.parameters():
            parameter.copy_(torch.randn_like(parameter))
    return sae


def same(ours: SparseAutoencoder, other: SparseAutoencoder) -> None:
    acts = torch.randn(64, ours.d_model, dtype=ours.dtype, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        torch.testing.assert_close(other.encode_dense(acts), ours.encode_dense(acts), atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(other(acts).recons, ours(acts).recons, atol=1e-5, rtol=1e-5)
    for fact in ("hook_point", "model_name", "k"):
        assert getattr(other.config, fact) == getattr(ours.config, fact)


@pytest.mark.parametrize("subtracts", [True, False])
@pytest.mark.parametrize("kind", ["relu", "topk", "jumprelu", "gated"])
def test_dictionary_learning_holds_every_kind(kind, subtracts, tmp_path):
    """In double, so that only a bias that is wrong could differ at a threshold."""
    sae = sae_of(kind, subtracts, dtype="float64")
    same(sae, SparseAutoencoder.load(sae.export(tmp_path / "ae", "dictionary_learning")))
    trainer = json.loads((tmp_path / "ae" / "config.json").read_text())["trainer"]
    classes = {"relu": "AutoEncoder" if subtracts else "AutoEncoderNew", "topk": "AutoEncoderTopK"}
    classes |= {"jumprelu": "JumpReluAutoEncoder", "gated": "GatedAutoEncoder"}
    assert trainer["dict_class"] == classes[kind] and (trainer["layer"], trainer["dict_size"]) == (3, 20)


@pytest.mark.parametrize("subtracts", [True, False])
def test_sparsify_holds_topk(subtracts, tmp_path):
    sae = sae_of("topk", subtracts, dtype="float64")
    folder = sae.export(tmp_path / "layers.3", "sparsify")
    other = SparseAutoencoder.load(folder)
    assert other.config.apply_b_dec_to_input and other.config.hook_point == "blocks.3.hook_resid_post"
    acts = torch.randn(64, 6, dtype=torch.float64)
    with torch.no_grad():
        torch.testing.assert_close(other(acts).recons, sae(acts).recons, atol=1e-9, rtol=1e-9)
    assert load_file(folder / "sae.safetensors")["encoder.weight"].shape == (20, 6)
    cfg = json.loads((folder / "cfg.json").read_text())
    assert (cfg["num_latents"], cfg["k"], cfg["d_in"], cfg["normalize_decoder"]) == (20, 3, 6, False)


def test_biases_by_hand():
    """One latent, W_enc = 2, b_dec = 3: what is subtracted is 6; a gate's magnitude has it e^r = 4 times."""
    config = SAEConfig(d_model=1, d_sae=1, kind="gated")
    tensors = {"W_enc": torch.tensor([[2.0]]), "b_dec": torch.tensor([3.0]), "b_gate": torch.tensor([1.0])}
    tensors |= {"b_mag": torch.tensor([0.5]), "r_mag": torch.tensor([4.0]).log()}
    moved = subtracting(config, tensors, wanted=False)
    assert (moved["b_gate"].item(), moved["b_mag"].item()) == pytest.approx((1 - 6, 0.5 - 4 * 6))
    assert subtracting(config, tensors, wanted=True) == tensors


@pytest.mark.parametrize("to", ["sparsify", "dictionary_learning"])
@pytest.mark.parametrize("normalize", ["center", "layer_norm", "constant_norm_rescale"])
def test_a_normalisation_is_refused_by_its_name(to, normalize, tmp_path):
    with pytest.raises(ValueError, match=f"{to} cannot hold normalize_activations '{normalize}'"):
        sae_of("topk", normalize_activations=normalize).export(tmp_path / "a", to)
    assert not (tmp_path / "a").exists()


@pytest.mark.parametrize("kind", ["relu", "jumprelu", "gated"])
def test_sparsify_refuses_other_kinds_by_name(kind, tmp_path):
    with pytest.raises(ValueError, match=f"sparsify cannot hold an SAE of kind '{kind}': it has TopK alone"):
        sae_of(kind).export(tmp_path / "a", "sparsify")
    assert list(tmp_path.iterdir()) == []


def test_a_folder_with_files_is_left_alone(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(FileExistsError, match="expected a new or empty folder"):
        sae_of("topk").export(tmp_path, "sparsify")
    assert [file.name for file in tmp_path.iterdir()] == ["notes.txt"]


def test_every_golden_folder_is_written_or_refused_by_name(golden, golden_name, tmp_path, capsys):
    case = golden(golden_name)
    ours = case.load()
    for to in (saelens.NAME, *WRITERS):
        code = main(["convert", str(case.folder), str(tmp_path / to), "--to", to])
        told = capsys.readouterr()
        if code:
            assert f"{to} cannot hold" in told.err and not (tmp_path / to).exists()
            continue
        assert f"as {to}" in told.out
        rows = case.rows.double()
        with torch.no_grad():
            expected = case.load(dtype="float64")(rows).recons
            found = type(ours).load(tmp_path / to, dtype="float64")(rows).recons
            off = (found - expected).norm(dim=-1)
            assert (off <= 1e-5 * expected.norm(dim=-1).clamp_min(1e-3)).all()
    held = ours.config.normalize_activations == "none" and ours.config.target is None
    assert held == (tmp_path / "dictionary_learning" / "ae.pt").exists()
    holds_topk = ours.kind == "topk" and ours.config.normalize_activations == "none"
    assert holds_topk == (tmp_path / "sparsify" / "sae.safetensors").exists()


def test_convert_says_what_is_wrong(tmp_path, capsys):
    sae_of("topk").save(tmp_path / "sae")
    assert main(["convert", str(tmp_path / "sae"), str(tmp_path / "b"), "--to", "sparsfy"]) == 2
    assert "got 'sparsfy' (did you mean 'sparsify'?)" in capsys.readouterr().err
    assert main(["convert", str(tmp_path / "sae"), str(tmp_path / "sae"), "--to", "saelens"]) == 2
    assert "expected a new or empty folder" in capsys.readouterr().err
