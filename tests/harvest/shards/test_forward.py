"""The stages of the loop: batches of shards, progress figures, and what keeps memory bounded."""

import gc
import json
import threading

import numpy as np
import pytest
import torch

from saelens_lite.harvest.shards import write
from saelens_lite.harvest.shards.forward import forward_batches
from saelens_lite.harvest.text.tokenized import PackedShard
from saelens_lite.lm import hooks
from saelens_lite.prefetch import THREAD_NAME
from saelens_lite.store.packing import pack
from saelens_lite.store.writer import writing_shard

from ..test_harvest import content

HOOK = "blocks.0.hook_resid_post"
PLAN = {"batch_size_seqs": 2, "dtype": "float32"}


def shard(index, *documents):
    contexts = pack(list(enumerate(documents)), 4, 1, special_ids=[1])
    return PackedShard(index, contexts, len(documents), None)


def test_batches_hold_contexts_of_one_shard(gpt2):
    """5 and 2 contexts of 3 rows in batches of 2: 2 2 1 | 2; a shard without contexts has one batch without
    rows."""
    shards = [shard(0, list(range(3, 18))), shard(1), shard(2, list(range(20, 26)))]
    batches = list(forward_batches(gpt2, shards, [HOOK], PLAN))
    assert [(batch.shard.index, batch.n_rows) for batch in batches] == [
        (0, 6),
        (0, 6),
        (0, 3),
        (1, 0),
        (2, 6),
    ]
    ids = torch.from_numpy(shards[0].contexts.input_ids[2:4]).long()
    with torch.no_grad():
        acts = hooks.run_to(gpt2, [HOOK], input_ids=ids)[HOOK]
    torch.testing.assert_close(batches[1].rows[HOOK].wait(), acts[:, 1:].reshape(6, -1))
    assert not batches[3].rows


@pytest.mark.parametrize(
    ("stored", "travels"), [("bfloat16", torch.bfloat16), ("float32", torch.float32), ("int8", torch.float32)]
)
def test_rows_travel_in_the_narrower_type(gpt2, stored, travels):
    (batch,) = forward_batches(gpt2, [shard(0, [3, 4])], [HOOK], PLAN | {"dtype": stored})
    assert batch.rows[HOOK].wait().dtype == travels


def test_a_truncated_forward_holds_no_activations_until_garbage_is_collected(gpt2):
    gc.disable()
    try:
        for _ in range(3):
            hooks.run_to(gpt2, [HOOK], input_ids=torch.full((3, 7), 5))
        held = [t for t in gc.get_objects() if issubclass(type(t), torch.Tensor) and t.shape == (3, 7, 32)]
    finally:
        gc.enable()
    assert held == []


def test_every_shard_is_logged_with_its_figures(harvest):
    store = harvest()
    lines = [json.loads(line) for line in (store.path / "log.jsonl").read_text().splitlines()]
    shards = [line for line in lines if line["event"] == "shard"]
    assert [line["shard"] for line in shards] == list(range(store.n_shards))
    assert sum(line["rows"] for line in shards[:-1]) + store.shard_rows[-1] == store.n_rows
    for line in shards:
        assert {
            "seconds",
            "tokens_per_s",
            "pack_s",
            "forward_s",
            "copy_s",
            "write_s",
            "eta_s",
            "cursor",
        } <= line.keys()
        assert min(line["forward_s"], line["write_s"]) > 0
    assert shards[-1]["eta_s"] == 0
    assert np.isclose(shards[0]["tokens_per_s"], shards[0]["rows"] / shards[0]["seconds"], rtol=1e-2)


def test_a_compiled_model_sees_one_shape(gpt2):
    """5 and 2 contexts in batches of 2: the last of the first shard is filled up, and the rows are the
    same."""
    shards = [shard(0, list(range(3, 18))), shard(1, list(range(20, 26)))]
    seen = []
    hooks.resolve(gpt2, HOOK)  # looks at the model in a pass of its own
    handle = gpt2.transformer.h[0].register_forward_pre_hook(
        lambda module, args: seen.append(tuple(args[0].shape[:2]))
    )
    filled = list(forward_batches(gpt2, shards, [HOOK], PLAN | {"model": {"compiled": True}}))
    handle.remove()
    assert seen == [(2, 4)] * 4
    assert [batch.n_rows for batch in filled] == [6, 6, 3, 6]
    for batch, plain in zip(filled, forward_batches(gpt2, shards, [HOOK], PLAN), strict=True):
        torch.testing.assert_close(batch.rows[HOOK].wait(), plain.rows[HOOK].wait())


@pytest.mark.parametrize("stop_at", [None, 2])
def test_overlapping_stages_write_the_same_bytes(harvest, monkeypatch, stop_at):
    """As on an accelerator: a thread packs, another runs the model; interrupted while both work, too."""
    whole = content(harvest(store="in turn").path)
    monkeypatch.setattr(write, "overlaps", lambda model: True)
    writing = writing_shard

    def stopping(store, shard, *rest):
        if shard == stop_at:
            raise KeyboardInterrupt
        return writing(store, shard, *rest)

    if stop_at is not None:
        with monkeypatch.context() as patch:
            patch.setattr(write, "writing_shard", stopping)
            with pytest.raises(KeyboardInterrupt):
                harvest()
        assert not any(thread.name.startswith(THREAD_NAME) for thread in threading.enumerate())
    assert content(harvest().path) == whole
