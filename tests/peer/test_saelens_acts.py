"""SAELens' own CacheActivationsRunner writes a folder that we import, and its ActivationsStore reads the one
we export."""

import os
import subprocess

import pytest
import torch
from safetensors.torch import load_file

from saelens_lite.store.reader import ActivationStore
from saelens_lite.store.saelens_activations import read_saelens_activations, write_saelens_activations

pytestmark = pytest.mark.peer

HOOK = "blocks.0.hook_resid_post"
HEAD = """
import numpy as np, torch
from datasets import Dataset
from safetensors.torch import save_file
import sae_lens.cache_activations_runner as runner
from sae_lens import CacheActivationsRunnerConfig
from sae_lens.training.activations_store import ActivationsStore
from transformer_lens import HookedTransformer, HookedTransformerConfig

def settings(folder):
    return CacheActivationsRunnerConfig(
        dataset_path="none", model_name="tiny", model_batch_size=4, hook_name="blocks.0.hook_resid_post",
        d_in=8,
        training_tokens=240, context_size=6, new_cached_activations_path=folder, shuffle=False, device="cpu",
        prepend_bos=False, streaming=False, buffer_size_gb=2e-6,
    )
"""
WRITE = """
torch.manual_seed(0)
shape = HookedTransformerConfig(
    n_layers=1, d_model=8, d_head=4, n_heads=2, n_ctx=16, d_vocab=50, d_mlp=16, act_fn="gelu"
)
model = HookedTransformer(shape)
tokens = np.random.default_rng(0).integers(0, 50, (60, 6))
runner.load_model = lambda **_: model
runner.CacheActivationsRunner(settings("theirs"), Dataset.from_dict({"tokens": tokens.tolist()})).run()
with torch.no_grad():
    _, seen = model.run_with_cache(torch.from_numpy(tokens))
acts = seen["blocks.0.hook_resid_post"].contiguous()
save_file({"acts": acts, "tokens": torch.from_numpy(tokens)}, "seen.safetensors")
"""
READ = """
store = ActivationsStore.from_config(None, settings("ours"))
batches = [store.get_raw_llm_batch() for _ in range(9)]
acts, tokens = (torch.cat(parts) for parts in zip(*batches))
save_file({"acts": acts, "tokens": tokens}, "read.safetensors")
"""


def in_saelens(python, script, folder):
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "HF_DATASETS_DISABLE_PROGRESS_BARS": "1"}
    done = subprocess.run(
        [str(python), "-c", HEAD + script],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr


@pytest.fixture(scope="module")
def folder(peer_python, tmp_path_factory):
    """Holds what SAELens cached, and what its model computes at each position: acts [60 6 8], tokens [60
    6]."""
    folder = tmp_path_factory.mktemp("caches")
    in_saelens(peer_python, WRITE, folder)
    return folder


def test_their_cache_becomes_a_store(folder):
    store, seen = (
        read_saelens_activations(folder / "theirs", folder / "store"),
        load_file(folder / "seen.safetensors"),
    )
    assert (store.hook_points, store.context_length) == ([HOOK], 6)
    ids = torch.cat([store.tokens(shard).input_ids for shard in range(store.n_shards)])
    assert len(ids) >= 40
    assert torch.equal(ids.long(), seen["tokens"][: len(ids)])
    torch.testing.assert_close(store.gather(torch.arange(store.n_rows)), seen["acts"][: len(ids)].view(-1, 8))
    assert store.verify() == []


def test_our_export_is_read_by_their_store(folder, peer_python):
    store = read_saelens_activations(folder / "theirs", folder / "again", dtype="int8")
    write_saelens_activations(store, folder / "ours")
    in_saelens(peer_python, READ, folder)
    read, store = load_file(folder / "read.safetensors"), ActivationStore(folder / "again")
    assert torch.equal(read["acts"], store.gather(torch.arange(9 * 4 * 6)))
    ids = torch.cat([store.tokens(shard).input_ids for shard in range(store.n_shards)]).flatten()
    assert torch.equal(read["tokens"].int(), ids[: 9 * 4 * 6])
