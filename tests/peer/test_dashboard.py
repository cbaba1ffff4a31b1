"""SAEDashboard 0.8.0's own loaders and viewer open what we export."""

import json
import os
import subprocess
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

import saelens_lite as sl
from saelens_lite.analyze.exchange import export_index, import_index
from saelens_lite.demo import load_model
from saelens_lite.demo.corpus import documents
from saelens_lite.sae.autoencoder import SparseAutoencoder
from saelens_lite.sae.config import SAEConfig

pytestmark = [pytest.mark.peer, pytest.mark.long]

ROOT = Path(__file__).parents[2]
PYTHON = ROOT / ".venv-dashboard/bin/python"
POINT = "blocks.1.hook_resid_post"
SETTINGS = {"hook_point": POINT, "n_quantiles": 5, "n_top": 20, "n_each": 5, "buffer": [5, 5]}


@pytest.fixture(scope="module")
def peer(tmp_path_factory):
    """A function that gives SAEDashboard a job and returns its answer."""
    if not PYTHON.exists():
        pytest.skip("peer environment absent: run `make dashboard` for SAEDashboard's")
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "PYTHONPATH": ""}
    words = tmp_path_factory.mktemp("peer") / "stderr"
    errors = words.open("w")
    process = subprocess.Popen(
        [PYTHON, ROOT / "tests/bench/dashboard_peer.py"], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        stderr=errors, text=True, env=environment,
    )  # fmt: skip

    def do(what: str, **job):
        job = {name: str(value) if isinstance(value, Path) else value for name, value in job.items()}
        process.stdin.write(json.dumps({"do": what} | SETTINGS | job) + "\n")
        process.stdin.flush()
        answer = process.stdout.readline()
        assert answer, words.read_text()[-3000:]
        return json.loads(answer)

    yield do
    process.stdin.close()
    process.wait()
    process.stdout.close()
    errors.close()


@pytest.fixture(scope="module")
def world(peer, tmp_path_factory):
    """The embedded model, a store of it, a TopK SAE and its index; the peer has loaded model and SAE."""
    folder = tmp_path_factory.mktemp("dashboard")
    model, tokenizer = load_model()
    model = model.float()
    store = sl.harvest_activations(
        model, [module["text"] for module in documents()[:40]], [POINT], folder / "store", max_tokens=96 * 63,
        tokenizer=tokenizer, context_length=64, dtype="float32", progress=False,
    )  # fmt: skip
    sae = SparseAutoencoder(
        SAEConfig(d_model=192, d_sae=96, kind="topk", k=8, hook_point=POINT, model_name=store.model_name)
    )
    rows = store.gather(torch.arange(96) * 50)
    with torch.no_grad():
        sae.W_dec.copy_(torch.nn.functional.normalize(rows - rows.mean(0), dim=1))
        sae.W_enc.copy_(sae.W_dec.T)
    sae.save(folder / "sae")
    model.save_pretrained(folder / "model")
    tokenizer.save_pretrained(folder / "model")
    written = json.loads((folder / "model/tokenizer_config.json").read_text())
    written["tokenizer_class"] = "PreTrainedTokenizerFast"  # its name in transformers 4, which the peer has
    (folder / "model/tokenizer_config.json").write_text(json.dumps(written))
    peer("load", model=folder / "model", sae=folder / "sae")
    return folder, model, store, sae, sl.index_features(sae, store, folder / "index", model)


def rounded(value, decimals=3):
    """Every number of some JSON at 3 decimals; whole ones as they are."""
    if isinstance(value, dict):
        return {key: rounded(one, decimals) for key, one in value.items()}
    if isinstance(value, list):
        return [rounded(one, decimals) for one in value]
    return round(value, decimals) if isinstance(value, float) else value


def test_its_loader_reads_our_batch(peer, world):
    folder, model, store, sae, index = world
    ours = export_index(index, folder / "ours.json", "saedashboard-batch", sae, store, model)
    answer = peer("open_batch", batch=ours, again=folder / "again.json")
    content = json.loads(ours.read_text())
    assert answer["features"] == len(content["features"]) > 50
    assert json.loads((folder / "again.json").read_text()) == content


def test_its_loader_and_viewer_read_our_vis_data(peer, world):
    folder, model, store, sae, index = world
    ours = export_index(index, folder / "vis.json", "saedashboard-vis", sae, store, model)
    answer = peer("open", vis=ours, again=folder / "again_vis.json", html=folder / "view.html")
    content, again = (json.loads(path.read_text()) for path in (ours, folder / "again_vis.json"))
    assert answer["features"] == len(content["feature_data_dict"]) > 50 and answer["html"] > 100_000
    assert rounded(again["feature_data_dict"]) == rounded(content["feature_data_dict"])
    assert again["feature_stats"]["max"] == content["feature_stats"]["max"]


@pytest.fixture(scope="module")
def theirs(peer, world):
    """What SAEDashboard itself writes of 24 of the latents over the same tokens: SaeVisData and a batch."""
    folder, _, store, _, _ = world
    tokens = torch.cat([store.tokens(shard).input_ids for shard in range(store.n_shards)])
    save_file({"tokens": tokens}, folder / "tokens.safetensors")
    files = {"vis": folder / "their_vis.json", "batch": folder / "their_batch.json"}
    peer("run", tokens=folder / "tokens.safetensors", features=[0, 24], **files)
    return files


def test_ours_reads_what_it_writes(theirs, world, tmp_path):
    """Counts, strongest activations and tokens are what the SAE does, and the lens that of the weights."""
    _, model, store, sae, index = world
    tokens = torch.cat([store.tokens(shard).input_ids for shard in range(store.n_shards)])
    assert tokens.shape == (96, 64) and store.n_rows == 96 * 63, "a BOS and 63 rows each"
    with torch.no_grad():
        dense = sae.encode_dense(store.gather(torch.arange(store.n_rows)))[:, :24].view(96, 63, 24)
        logits = sae.W_dec[:24] @ model.get_output_embeddings().weight.T
    # windows of 5 tokens before, which have one more before them, and 5 after
    inside = dense[:, 5:58].reshape(-1, 24)
    for kind, digits in (("vis", 4), ("batch", 3)):
        read = import_index(theirs[kind], tmp_path / kind, store.tokenizer_name if kind == "vis" else None)
        assert read.n_tokens == 96 * 64
        assert read.column("counts").tolist() == (dense > 0).sum((0, 1)).tolist()
        for latent in range(24):
            found, strongest = read[latent], inside[:, latent].topk(20)
            values = strongest.values[strongest.values > 0].tolist()
            assert [value for value, _ in found.strongest] == pytest.approx(
                values, rel=1e-5, abs=0.6 * 10**-digits
            )
            for pairs, sign in ((found.promoted_ids, 1), (found.demoted_ids, -1)):
                best = (sign * logits[latent]).topk(10).values * sign
                assert [value for _, value in pairs] == pytest.approx(best.tolist(), abs=0.6e-3)
            if kind == "vis":
                at = int(strongest.indices[0])
                row, position = at // 53, at % 53 + 6
                window = tokens[row, position - 5 : position + 6]
                assert found.firings[0].token == index.contexts.strings([int(window[5])])[0]
        again = json.loads(export_index(read, tmp_path / f"{kind}.json", f"saedashboard-{kind}").read_text())
        assert len(again["features" if kind == "batch" else "feature_data_dict"]) == 24
