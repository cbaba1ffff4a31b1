"""What we save opens in SAELens itself and computes the same there."""

import json
import subprocess
from pathlib import Path

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
            "k": 3 if fields["kind"] in ("topk", "batchtopk", "matryoshka") else None,
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


def test_a_standard_sae_of_saelens_is_refitted_and_opens_there(peer_python, planted, tmp_path):
    """SAELens trains it under its L1 penalty; ours fits what that shrank, and SAELens computes the same."""
    (tmp_path / "data").mkdir()
    for split, acts in {"train": planted.acts[:7000], "validation": planted.acts[7000:]}.items():
        save_file({"acts": acts.contiguous()}, tmp_path / "data" / f"{split}.safetensors")
    script = Path(__file__).parents[1] / "bench/quality_saelens.py"
    options = "--kind standard --lr 1e-2 --l1 2 --steps 300 --batch 256 --d-sae 48 --warm-up-steps 10".split()
    places = ["--data", tmp_path / "data", "--output", tmp_path / "standard", "--threads", "1"]
    command = [str(word) for word in (peer_python, script, *options, *places)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr

    store = sl.ActivationStore.from_arrays(tmp_path / "store", planted.acts[:7000], dtype="float32")
    refitted = sl.refit_sae(tmp_path / "standard", store, n_steps=200, batch_size_rows=512)
    refitted.save(tmp_path / "refitted")
    record, acts = refitted.config.metadata["saelens_lite"]["refit"], planted.acts[7000:]
    before, after = record["before"]["held_out_fvu"], record["after"]["held_out_fvu"]
    assert after < 0.7 * before and record["changed_firings"] == 0
    with torch.no_grad():
        theirs = json.loads(done.stdout.splitlines()[-1])["fvu"]  # of rows that neither side has seen
        ours = sl.SparseAutoencoder.load(tmp_path / "standard")(acts).recons
        variance = (acts - acts.mean(0)).square().sum()
        assert float((acts - ours).square().sum() / variance) == pytest.approx(theirs, rel=1e-4)
        out = refitted(acts)
        assert float((acts - out.recons).square().sum() / variance) < 0.7 * theirs

    save_file({"acts": acts.contiguous()}, tmp_path / "acts.safetensors")
    read = [str(peer_python), "-c", READ_WITH_SAELENS, "refitted"]
    done = subprocess.run(read, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    answer = load_file(tmp_path / "refitted" / "answer.safetensors")
    torch.testing.assert_close(out.latents.to_dense(), answer["latents"], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(out.recons, answer["recons"], atol=1e-5, rtol=1e-5)
    assert json.loads((tmp_path / "refitted" / "answer.json").read_text())["architecture"] == "standard"
