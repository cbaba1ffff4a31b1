"""Claims of one process and of several: real processes, the bytes of a single one."""

import itertools
import json
import os
import signal
import socket
import time
from pathlib import Path

import numpy as np
import pytest

from saelens_lite.distributed import rank, several_processes
from saelens_lite.harvest import HarvestConfig, run_harvest
from saelens_lite.harvest.shards.shard_claims import Claims, SharedClaims
from saelens_lite.harvest.text.tokenized import PackedShard
from saelens_lite.store.folder import open_folder
from saelens_lite.store.packing import PackedContexts

from ..test_harvest import content

ROOT = Path(__file__).parents[3]


def packed(index, n_rows):
    arrays = np.ones((1, n_rows), np.int32)
    return PackedShard(index, PackedContexts(arrays, arrays, arrays, arrays, 0), 1, None)


def test_claims_are_the_missing_shards_until_there_are_enough_rows():
    """Shards of 4 rows, of which 1 and 2 are there: 14 rows end with shard 3."""
    claims = Claims({1: 4, 2: 4}, max_tokens=14)
    made = [shard.index for shard in claims.needed(packed(index, 4) for index in claims)]
    assert made == [0, 3]
    assert claims.totals() == (4, 16)


def test_the_dataset_ends_at_a_claim_without_documents():
    claims = Claims({}, max_tokens=100)
    documents_end = itertools.takewhile(lambda index: index < 2, claims)
    assert [shard.index for shard in claims.needed(packed(index, 4) for index in documents_end)] == [0, 1]
    assert claims.totals() == (2, 8)


def test_nothing_is_claimed_when_the_finished_shards_suffice():
    claims = Claims({0: 8, 1: 8}, max_tokens=16)
    assert list(claims.needed(packed(index, 8) for index in claims)) == []
    assert claims.totals() == (2, 16)


def test_a_shard_that_nobody_posted_lies_behind_the_end():
    assert Claims({0: 5, 1: 4}, 100).totals() == (2, 9)
    assert Claims({0: 5, 1: 4}, 7).totals() == (2, 9)
    assert Claims({0: 5, 1: 4}, 5).totals() == (1, 5)


def test_alone_without_torchrun(monkeypatch):
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    monkeypatch.setenv("RANK", "3")
    assert not several_processes() and rank() == 0


@pytest.fixture
def options(gpt2, byte_tokenizer, tmp_path):
    gpt2.save_pretrained(tmp_path / "model")
    byte_tokenizer.save_pretrained(tmp_path / "model")
    lines = (json.dumps({"text": f"Story {i}: {'the sun and the moon. ' * (1 + i % 7)}"}) for i in range(600))
    (tmp_path / "texts.jsonl").write_text("\n".join(lines))
    return {
        "model": str(tmp_path / "model"),
        "dataset": [str(tmp_path / "texts.jsonl")],
        "hook_points": ["blocks.0.hook_resid_post"],
        "max_tokens": 7_000,
        "context_length": 64,
        "batch_size_seqs": 4,
        "documents_per_shard": 16,
        "progress": False,
    }


def arguments(options):
    argv = ["-m", "saelens_lite.harvest", "--no-progress"]
    for name in ("model", "store"):
        argv += [f"--{name}", options[name]]
    for name in ("dataset", "hook_points"):
        argv += [f"--{name.replace('_', '-')}", *options[name]]
    for name in ("max_tokens", "context_length", "batch_size_seqs", "documents_per_shard"):
        argv += [f"--{name.replace('_', '-')}", options[name]]
    return argv


@pytest.mark.dist
@pytest.mark.parametrize(
    "more",
    [
        pytest.param({}, id="max_tokens"),
        pytest.param({"max_tokens": 100_000}, id="dataset ends", marks=pytest.mark.slow),
    ],
)
def test_three_processes_write_the_bytes_of_one(options, tmp_path, more, ranks):
    options |= more
    whole = content(run_harvest(HarvestConfig(store=str(tmp_path / "one"), **options)).path)
    code, output = ranks(3, *arguments(options | {"store": tmp_path / "three"})).communicate(timeout=180)
    assert code == 0, output
    assert {
        name: data for name, data in content(tmp_path / "three").items() if not name.startswith("log.")
    } == whole
    logged = {name for name in open_folder(tmp_path / "three").sizes() if name.startswith("log")}
    assert logged == {"log.jsonl", "log.1.jsonl", "log.2.jsonl"}


@pytest.mark.dist
def test_killing_one_process_and_starting_again_gives_the_same_bytes(options, tmp_path, ranks):
    whole = content(run_harvest(HarvestConfig(store=str(tmp_path / "one"), **options)).path)
    store = tmp_path / "two"
    processes = ranks(2, *arguments(options | {"store": store}))
    while not (store / "shards/00001").exists() and processes.poll() is None:
        time.sleep(0.005)
    os.kill(processes.pid(1), signal.SIGKILL)
    code, _ = processes.communicate(timeout=120)
    assert code != 0 and not (store / "manifest.json").exists()
    code, output = ranks(2, *arguments(options | {"store": store})).communicate(timeout=180)
    assert code == 0, output
    assert {name: data for name, data in content(store).items() if not name.startswith("log.")} == whole


@pytest.mark.dist
def test_a_second_harvest_of_a_store_in_the_same_processes_starts_its_claims_anew(monkeypatch, tmp_path):
    """As a script under torchrun does that harvests and then adds a hook point."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    for name, value in (("RANK", 0), ("WORLD_SIZE", 1), ("MASTER_ADDR", "127.0.0.1"), ("MASTER_PORT", port)):
        monkeypatch.setenv(name, str(value))
    monkeypatch.setattr("saelens_lite.claims.several_processes", lambda: True)
    for _ in range(2):
        claims = SharedClaims(open_folder(tmp_path), ["acts"], max_tokens=8)
        assert [shard.index for shard in claims.needed(packed(index, 4) for index in claims)] == [0, 1]
        claims.wait_for_all()
        assert claims.totals() == (2, 8)
        claims.seal()
