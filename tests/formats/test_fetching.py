"""Through huggingface_hub's own client, from a hub on the loopback device: what is fetched, kept and said."""

import json
import os
import subprocess
import sys

import pytest

from saelens_lite.sae import source

from ..hub.loopback import Hub

PATH = "layer_20/width_16k/average_l0_71"
LOAD = """
import json, sys
from saelens_lite.sae.autoencoder import SparseAutoencoder
for names in json.loads(sys.argv[1]):
    try:
        config = SparseAutoencoder.load(*names).config
        print(json.dumps([config.kind, config.trained_on, config.metadata["saelens_lite"]["format"]]))
    except Exception as error:
        print(json.dumps([type(error).__name__, str(error)]))
"""


@pytest.fixture
def hub():
    with Hub() as served:
        yield served


@pytest.mark.long
def test_only_the_files_of_one_sae_are_fetched_and_then_kept(golden, hub, tmp_path):
    repo, goodfire = "google/gemma-scope-2b-pt-res", "Goodfire/Llama-3.1-8B-Instruct-SAE-l19"
    params = (golden("gemma_scope").folder / "params.npz").read_bytes()
    hub.repos[repo] = {
        f"{PATH}/params.npz": params,
        "README.md": b"#",
        "layer_3/width_16k/a/params.npz": params,
    }
    weights = golden("goodfire").folder
    hub.repos[goodfire] = {weights.name: weights.read_bytes(), "README.md": b"#"}
    qwen = golden("qwen_scope").folder.read_bytes()
    hub.repos["me/SAE-Res-X-W1K-L0_4"] = {f"layer{i}.sae.pt": qwen for i in range(3)}

    def load(*names, **settings):
        env = {**os.environ, "HF_HOME": str(tmp_path / "hub"), "HF_ENDPOINT": hub.url, "HF_HUB_OFFLINE": "0"}
        env |= {"HF_HUB_DISABLE_XET": "1", "HF_HUB_DISABLE_PROGRESS_BARS": "1"} | settings
        done = subprocess.run(
            [sys.executable, "-c", LOAD, json.dumps(names)], env=env, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr[-2000:]
        return [json.loads(line) for line in done.stdout.splitlines()]

    opened = ["jumprelu", "google/gemma-2-2b at blocks.20.hook_resid_post", "gemma_scope"]
    release, by_id, one_file, several, other = load(
        (f"gemma-scope-2b-pt-res/{PATH}",),
        ("gemma-scope-2b-pt-res-canonical", "layer_20/width_16k/canonical"),
        (goodfire,),
        ("me/SAE-Res-X-W1K-L0_4",),
        (repo, "layer_9"),
    )
    assert release == by_id == opened
    assert one_file == ["relu", "meta-llama/Llama-3.1-8B-Instruct at blocks.19.hook_resid_post", "goodfire"]
    assert "it has layer0.sae.pt, layer1.sae.pt, layer2.sae.pt" in several[1]
    assert "has no SAE at folder='layer_9'; it has layer_20/width_16k/average_l0_71, layer_3/" in other[1]
    fetched = {path for method, path, _ in hub.requests if "/resolve/" in path and method == "GET"}
    assert {path.rpartition("/")[2] for path in fetched} == {"params.npz", weights.name}

    n_requests = len(hub.requests)
    kept, missing = load((repo, PATH), (repo, "layer_3/width_16k/a"), HF_HUB_OFFLINE="1")
    assert kept == opened and len(hub.requests) == n_requests
    assert missing[0] == "CheckpointError" and "it would fetch layer_3/width_16k/a/cfg.json" in missing[1]


@pytest.mark.parametrize(
    ("value", "offline"), [("1", True), ("on", True), ("True", True), ("0", False), ("", False)]
)
def test_what_the_hub_client_takes_for_offline_is_offline_here(monkeypatch, value, offline):
    monkeypatch.setenv("HF_HUB_OFFLINE", value)
    assert source._is_offline() is offline
