"""Push and pull against a hub on the loopback device, in processes of their own."""

import getpass
import json
import re

import pytest
import torch
from safetensors.torch import load_file, save_file

from saelens_lite.hub import push_saes
from saelens_lite.sae.autoencoder import SparseAutoencoder

from .conftest import TOKEN

REPO = "someone/tiny-saes"
ONE_AFTER_ANOTHER = """
import sys
from saelens_lite.cli.commands import main
sys.stderr = sys.stdout
for words in {}:
    print("ends with", main(words))
"""


@pytest.mark.long
def test_what_is_pushed_comes_back_byte_for_byte(hub, grid, command, tmp_path):
    done = command("push", str(grid), REPO, "--license", "mit")
    assert done.returncode == 0, done.stderr
    there = hub.repos[REPO]
    names = {f"k={k}/{name}" for k in (2, 4) for name in ("cfg.json", "sae_weights.safetensors")}
    assert there.keys() == names | {"k=2/evaluation.json", "README.md", "features.html"}
    # as the server saw it: the token, with every request that is ours to make
    assert {token for _, path, token in hub.requests if path.startswith("/api")} == {f"Bearer {TOKEN}"}
    sent = [f"{method} {re.sub('^/lfs/.*', '/lfs', path)}" for method, path, _ in hub.requests]
    for asked in (
        "POST /api/repos/create",
        f"POST /api/models/{REPO}/preupload/main",
        f"POST /{REPO}.git/info/lfs/objects/batch",
        "PUT /lfs",
        f"POST /api/models/{REPO}/commit/main",
    ):
        assert asked in sent
    # nothing of this machine
    everything = b"".join(there.values())
    for trace in (str(tmp_path), str(grid), f"/{getpass.getuser()}/", TOKEN):
        assert trace.encode() not in everything
    assert json.loads(there["k=2/cfg.json"])["metadata"]["model_name"] == "tiny"
    assert json.loads(there["k=2/evaluation.json"])["store"] == "store"

    pulled = tmp_path / "pulled"
    done = command("pull", REPO, str(pulled))
    assert done.returncode == 0, done.stderr
    for name, content in there.items():
        assert (pulled / name).read_bytes() == content
    for k in (2, 4):
        ours, theirs = (SparseAutoencoder.load(place / f"k={k}") for place in (grid, pulled))
        assert (pulled / f"k={k}/sae_weights.safetensors").read_bytes() == (
            grid / f"k={k}/sae_weights.safetensors"
        ).read_bytes()
        assert torch.equal(ours.W_dec, theirs.W_dec) and theirs.config.hook_point == ours.config.hook_point
    # the card's snippet runs
    snippet = re.search(r"```python\n(import saelens_lite.*?)```", there["README.md"].decode(), re.DOTALL)[1]
    done = command(code=snippet + "print(sae)")
    assert done.returncode == 0 and "d_model=8, d_sae=16, kind='topk', k=2" in done.stdout, done.stderr


@pytest.mark.long
@pytest.mark.peer
def test_the_cards_other_snippet_opens_what_was_pushed(hub, grid, command, peer_python, tmp_path):
    """SAELens' own code asks the hub for the files and computes from them what we compute."""
    assert command("push", str(grid), REPO).returncode == 0
    hub.requests.clear()
    card = hub.repos[REPO]["README.md"].decode()
    snippet = re.search(r"```python\n(from sae_lens.*?)```", card, re.DOTALL)[1]
    acts = torch.randn(16, 8, generator=torch.Generator().manual_seed(0))
    save_file({"acts": acts}, tmp_path / "acts.safetensors")
    compute = """
from safetensors.torch import load_file, save_file
acts = load_file("acts.safetensors")["acts"]
found = {"latents": sae.encode(acts), "recons": sae(acts)}
save_file({name: of.detach().contiguous() for name, of in found.items()}, "theirs.safetensors")
print(sae.cfg.architecture(), sae.cfg.metadata.hook_name)
"""
    done = command(code=snippet + compute, python=peer_python)
    assert done.returncode == 0 and "topk blocks.1.hook_resid_post" in done.stdout, done.stderr
    assert {f"/{REPO}/resolve/main/k=2/{name}" for name in ("cfg.json", "sae_weights.safetensors")} <= {
        path for _, path, _ in hub.requests
    }
    sae, theirs = SparseAutoencoder.load(grid / "k=2"), load_file(tmp_path / "theirs.safetensors")
    with torch.no_grad():
        torch.testing.assert_close(sae.encode(acts).to_dense(), theirs["latents"], atol=1e-6, rtol=1e-5)
        torch.testing.assert_close(sae(acts).recons, theirs["recons"], atol=1e-6, rtol=1e-5)
    assert ((theirs["latents"] != 0).sum(dim=1) <= 2).all() and (theirs["latents"] != 0).any()


@pytest.mark.long
def test_offline_nothing_is_asked(hub, grid, command, tmp_path):
    commands = [["push", str(grid), REPO], ["push", str(grid), REPO, "--dry-run"]]
    commands.append(["pull", REPO, str(tmp_path / "pulled")])
    done = command(code=ONE_AFTER_ANOTHER.format(commands), HF_HUB_OFFLINE="1")
    assert re.findall("ends with (.)", done.stdout) == ["2", "0", "2"], done.stdout + done.stderr
    pushed, dry, pulled, _ = done.stdout.split("ends with")
    assert "HF_HUB_OFFLINE is set, so nothing is pushed" in pushed
    assert "would get 7 files; nothing was sent" in dry
    assert f"cannot pull {REPO}" in pulled
    assert hub.requests == []


def test_a_dry_run_lists_the_files_and_shows_the_card(grid, monkeypatch):
    monkeypatch.setattr("huggingface_hub.HfApi.upload_folder", None)
    found = push_saes(grid / "k=2", "a/b", dry_run=True)
    assert found.files.keys() == {f"k=2/{name}.json" for name in ("cfg", "evaluation")} | {
        "k=2/sae_weights.safetensors", "README.md",
    }  # fmt: skip
    assert found.files["k=2/sae_weights.safetensors"] == (grid / "k=2/sae_weights.safetensors").stat().st_size
    assert found.url == ""


def test_traces_of_this_machine_are_refused(grid, tmp_path):
    page = tmp_path / "page.html"
    page.write_text(f"<p>{grid}</p>")
    with pytest.raises(ValueError, match=r"features\.html holds the path .*, which is of this machine"):
        push_saes(grid, "a/b", page=page, dry_run=True)


def test_bad_input_is_named(grid, tmp_path):
    with pytest.raises(ValueError, match="push expected a repository as owner/name, got 'a/b/c'"):
        push_saes(grid, "a/b/c", dry_run=True)
    with pytest.raises(Exception, match="or a folder of SAEs, as a grid's, got neither"):
        push_saes(tmp_path / "store", "a/b", dry_run=True)
    with pytest.raises(ValueError, match="page expected an HTML file"):
        push_saes(grid, "a/b", page=tmp_path / "none.html", dry_run=True)


@pytest.mark.long
def test_a_folder_of_other_files_is_not_pulled_into(hub, command, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("mine")
    done = command("pull", REPO, str(tmp_path / "mine"))
    assert done.returncode == 2 and "which holds other files" in done.stderr and hub.requests == []
