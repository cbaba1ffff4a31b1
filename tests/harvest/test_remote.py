"""Stores at URLs: harvest, resume, add, read back through the cache, train; in memory and on an S3-compatible
server."""

import socket
import uuid

import pytest
import torch

from saelens_lite.errors import ShardError
from saelens_lite.harvest import add_hook_points, harvest_activations
from saelens_lite.harvest.shards import write
from saelens_lite.store.folder import open_folder
from saelens_lite.store.reader import ActivationStore
from saelens_lite.store.writer import writing_shard
from saelens_lite.train import train_sae

from .conftest import BOTH, TEXTS


@pytest.fixture(scope="module")
def s3_server():
    """A real server on a free local port that speaks S3, with a bucket."""
    import boto3
    from moto.server import ThreadedMotoServer

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    server = ThreadedMotoServer("127.0.0.1", port, verbose=False)
    server.start()
    url = f"http://127.0.0.1:{port}"
    credentials = {
        "aws_access_key_id": "testing",
        "aws_secret_access_key": "testing",
        "region_name": "us-east-1",
    }
    boto3.client("s3", endpoint_url=url, **credentials).create_bucket(Bucket="activations")
    yield url
    server.stop()


@pytest.fixture(params=["memory", pytest.param("s3", marks=pytest.mark.long)])
def url(request, monkeypatch, tmp_path):
    """A place for a store, with an empty cache."""
    monkeypatch.setenv("SAELENS_LITE_CACHE", str(tmp_path / "cache"))
    if request.param == "memory":
        return f"memory://{uuid.uuid4().hex}/store"
    monkeypatch.setenv("AWS_ENDPOINT_URL", request.getfixturevalue("s3_server"))
    for name, value in (
        ("ACCESS_KEY_ID", "testing"),
        ("SECRET_ACCESS_KEY", "testing"),
        ("DEFAULT_REGION", "us-east-1"),
    ):
        monkeypatch.setenv(f"AWS_{name}", value)
    return f"s3://activations/{uuid.uuid4().hex}"


@pytest.fixture
def harvest_to(gpt2, byte_tokenizer):
    def run(store, hook_points=BOTH):
        options = {
            "context_length": 32,
            "batch_size_seqs": 4,
            "documents_per_shard": 8,
            "tokenizer": byte_tokenizer,
        }
        return harvest_activations(
            gpt2, TEXTS, hook_points, store, max_tokens=1000, progress=False, **options
        )

    return run


def content(store) -> dict[str, bytes]:
    folder = open_folder(store)
    return {name: folder.read(name) for name in folder.sizes() if not name.startswith("log")}


def test_a_remote_store_is_the_local_one(harvest_to, url, tmp_path, monkeypatch, gpt2):
    """Interrupted in the third shard, gone on with, and a hook point added."""
    whole = content(harvest_to(tmp_path / "local").path)
    writing = writing_shard

    def stop_at_two(folder, shard, *rest):
        if shard == 2:
            raise KeyboardInterrupt
        return writing(folder, shard, *rest)

    with monkeypatch.context() as patch:
        patch.setattr(write, "writing_shard", stop_at_two)
        with pytest.raises(KeyboardInterrupt):
            harvest_to(url, BOTH[:1])
    with pytest.raises(ShardError, match="unfinished"):
        ActivationStore(url)
    harvest_to(url, BOTH[:1])
    store = add_hook_points(url, BOTH[1], model=gpt2, progress=False)
    assert content(url) == whole
    assert store.verify() == []
    assert store.path == url and url in repr(store)


def test_reading_keeps_copies(harvest_to, url, tmp_path):
    local, store = harvest_to(tmp_path / "local"), harvest_to(url)
    rows = torch.tensor([3, 900, 17])
    assert torch.equal(store.gather(rows, BOTH[0]), local.gather(rows, BOTH[0]))
    assert torch.equal(store.tokens(1).input_ids, local.tokens(1).input_ids)
    copies = {path.name for path in (tmp_path / "cache").rglob("*") if path.is_file()}
    assert f"{BOTH[0]}.safetensors" in copies and f"{BOTH[1]}.safetensors" not in copies
    mapped = store.acts(1, BOTH[0])
    folder = open_folder(url)
    folder.fs.rm_file(folder._path(f"shards/00001/{BOTH[0]}.safetensors"))
    assert torch.equal(mapped, local.acts(1, BOTH[0]))
    with pytest.raises(ShardError, match="is missing, the store records"):
        ActivationStore(url)


def test_training_from_a_url(harvest_to, url, tmp_path):
    harvest_to(url, BOTH[:1])
    options = {"d_sae": 64, "k": 4, "n_steps": 3, "batch_size_rows": 64, "device": "cpu", "progress": False}
    sae = train_sae(url, output=str(tmp_path / "sae"), **options)
    assert sae.d_model == 32
