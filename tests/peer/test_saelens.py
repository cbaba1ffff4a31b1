"""What we save opens in SAELens itself and computes the same there."""

import json
import subprocess

import pytest
import torch
from safetensors.torch import load_file, save_file

import saelens_lite as sl
from saelens_lite.sae.autoencoder import SparseAutoencoder
from saelens_lite.sae.config import SAEConfig

pytestmark = pytest.mark.peer

KINDS = ["relu", "topk", "jumprelu", "gated"]
TRAINED = {
    "relu": {"kind": "relu", "l1_coeff": 0.5},
    "relu of free norms": {"kind": "relu", "l1_coeff": 0.5, "unit_decoder": False},
    "topk": {"kind": "topk"},
    "batchtopk": {"kind": "batchtopk"},
    "matryoshka": {"kind": "matryoshka", "matryoshka_fractions": (0.25, 1.0)},
    "gated": {"kind": "gated", "l1_coeff": 0.5},
    "jumprelu": {"kind": "jumprelu", "target_l0": 4},
    "jumprelu by tanh": {"kind": "jumprelu", "jumprelu_penalty": "tanh", "l0_coeff": 0.5},
}
ARCHITECTURES = {"relu": "standard", "batchtopk": "jumprelu", "matryoshka": "jumprelu"}
READ_WITH_SAELENS = """
import json, sys
from pathlib import Path
from safetensors.torch import load_file, save_file
from sae_lens import SAE
x = load_file("acts.safetensors")["acts"]
for folder in sys.argv[1:]:
    sae = SAE.load_from_disk(folder)
    answer = {"latents": sae.encode(x).detach().contiguous(), "recons": sae(x).detach().contiguous()}
    save_file(answer, Path(folder) / "answer.safetensors")
    said = {"architecture": sae.cfg.architecture(), **sae.cfg.metadata.to_dict()}
    (Path(folder) / "answer.json").write_text(json.dumps(said))
"""


def random_sae(kind):
    torch.manual_seed(0)
    place = {"hook_point": "blocks.3.hook_resid_post", "hf_module": "model.layers.3", "model_name": "tiny"}
    facts = {"saelens_lite": {"fvu": 0.1}}
    sae = SparseAutoencoder(
        SAEConfig(d_model=32, d_sae=128, kind=kind, k=8 if kind == "topk" else None, metadata=facts, **place)
    )
    with torch.no_grad():
        for name, parameter in sae.named_parameters():
            parameter.copy_(
                torch.rand_like(parameter) if name == "threshold" else torch.randn_like(parameter) * 0.2
            )
    return sae


@pytest.fixture(scope="module")
def opened(peer_python, tmp_path_factory):
    """A folder with an SAE of each kind, each beside what SAELens computed from it, and the input."""
    folder = tmp_path_factory.mktemp("saes")
    for kind in KINDS:
        random_sae(kind).save(folder / kind)
    save_file({"acts": torch.randn(64, 32)}, folder / "acts.safetensors")
    done = subprocess.run(
        [str(peer_python), "-c", READ_WITH_SAELENS, *KINDS], cwd=folder, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return folder


@pytest.mark.parametrize("kind", KINDS)
def test_saved_folder_opens_in_saelens(kind, opened):
    sae, acts = random_sae(kind), load_file(opened / "acts.safetensors")["acts"]
    theirs = load_file(opened / kind / "answer.safetensors")
    with torch.no_grad():
        torch.testing.assert_close(sae.encode(acts).to_dense(), theirs["latents"], atol=1e-5, rtol=0)
        torch.testing.assert_close(sae(acts).recons, theirs["recons"], atol=1e-5, rtol=1e-5)
    assert (theirs["latents"] != 0).any()
    said = json.loads((opened / kind / "answer.json").read_text())
    assert said["architecture"] == ARCHITECTURES.get(kind, kind)
    assert (said["hook_name"], said["hf_hook_name"]) == ("blocks.3.hook_resid_post", "model.layers.3")
    assert (said["model_name"], said["saelens_lite"]) == ("tiny", {"fvu": 0.1})


@pytest.fixture(scope="module")
def trained(peer_python, planted, tmp_path_factory):
    """A folder with an SAE trained in each way, in the units of rows ten times as long as in training."""
    folder = tmp_path_factory.mktemp("trained")
    store = sl.ActivationStore.from_arrays(folder / "store", 10 * planted.acts)
    for name, fields in TRAINED.items():
        rest = {
            "k": 3,
            "d_sae": 32,
            "batch_size_rows": 512,
            "n_steps": 60,
            "device": "cpu",
            "progress": False,
        }
        sl.train_sae(store, output=str(folder / name), **rest, **fields)
    save_file({"acts": store.gather(torch.arange(256))}, folder / "acts.safetensors")
    done = subprocess.run(
        [str(peer_python), "-c", READ_WITH_SAELENS, *TRAINED], cwd=folder, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return folder


@pytest.mark.parametrize("name", TRAINED)
def test_what_training_saves_computes_the_same_in_saelens(name, trained):
    sae, acts = SparseAutoencoder.load(trained / name), load_file(trained / "acts.safetensors")["acts"]
    theirs = load_file(trained / name / "answer.safetensors")
    with torch.no_grad():
        torch.testing.assert_close(sae.encode(acts).to_dense(), theirs["latents"], atol=1e-4, rtol=1e-5)
        torch.testing.assert_close(sae(acts).recons, theirs["recons"], atol=1e-4, rtol=1e-5)
    assert (theirs["latents"] != 0).any()
    kind = TRAINED[name]["kind"]
    said = json.loads((trained / name / "answer.json").read_text())
    assert said["architecture"] == ARCHITECTURES.get(kind, kind)
    if kind in ("topk", "batchtopk", "matryoshka"):
        assert float((theirs["latents"] != 0).sum(1).float().mean()) == pytest.approx(3, rel=0.05)
