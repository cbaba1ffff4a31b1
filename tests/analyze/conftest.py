"""A small store, SAEs that belong to it, and a browser for pages."""

import shutil
import subprocess

import pytest
import torch

from saelens_lite.harvest import harvest_activations
from saelens_lite.kernels.cpu_build import library
from saelens_lite.sae.autoencoder import SparseAutoencoder
from saelens_lite.sae.config import SAEConfig
from saelens_lite.store.reader import ActivationStore

from .chromium import Browser, installed

HOOK_POINT = "blocks.0.hook_resid_post"
WORDS = ["sun", "moon", "star", "é", "😀", "</script>", "\n", "<b>"]
COMMON = {"vocab_size": 40, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
"""Of the configuration of every tiny model."""
HEADS = {"num_key_value_heads": 1, "head_dim": 8}
TEXTS = [f"Story {i}: " + "".join(f"{WORDS[(i * j) % 8]} " for j in range(3 + i % 9)) for i in range(60)]


def harvested_store(model, tokenizer, folder, texts=TEXTS, **options):
    """A small store of a model in several shards; options: of harvest_activations, such as max_tokens."""
    return harvest_activations(
        model,
        texts,
        [HOOK_POINT],
        folder,
        tokenizer=tokenizer,
        context_length=32,
        batch_size_seqs=4,
        documents_per_shard=16,
        dtype="float32",
        progress=False,
        **options,
    )


@pytest.fixture(scope="session")
def shared_store(shared_gpt2, byte_tokenizer, tmp_path_factory):
    """What `store` is a copy of; shared by the tests of a process, so leave it as it is."""
    folder = tmp_path_factory.mktemp("shared") / "store"
    return harvested_store(shared_gpt2, byte_tokenizer, folder, max_tokens=1500)


@pytest.fixture
def store(shared_store, tmp_path):
    """1,500 rows of width 32 from the small GPT-2, in several shards, of at most 60 documents."""
    torch.manual_seed(0)
    return ActivationStore(shutil.copytree(shared_store.path, tmp_path / "store"))


def shape(width):
    """Of the configuration of a tiny model with three layers, in the words that most models share."""
    return COMMON | {
        "hidden_size": width,
        "intermediate_size": 24,
        "num_hidden_layers": 3,
        "num_attention_heads": 2,
        "max_position_embeddings": 32,
    }


def make_sae(kind="topk", d_model=32, d_sae=48, **fields) -> SparseAutoencoder:
    """An SAE with random weights for the store's hook point."""
    generator = torch.Generator().manual_seed(0)
    fields = {
        "hook_point": HOOK_POINT,
        "model_name": "GPT2LMHeadModel",
        "k": 4 if kind == "topk" else None,
    } | fields
    sae = SparseAutoencoder(SAEConfig(d_model=d_model, d_sae=d_sae, kind=kind, **fields))
    with torch.no_grad():
        for name, parameter in sae.named_parameters():
            parameter.copy_(
                torch.randn(parameter.shape, generator=generator) * (0.1 if name.startswith("b_") else 0.3)
            )
    return sae


@pytest.fixture
def sae() -> SparseAutoencoder:
    return make_sae()


@pytest.fixture(params=["C", "torch"])
def kernels_path(request, monkeypatch):
    """The compiled kernels and their definition in torch: both ways to the same tables."""
    if request.param == "torch":
        monkeypatch.setenv("SAELENS_LITE_KERNELS", "torch")
    elif library() is None:
        pytest.skip("no C compiler: the kernels cannot be compiled here")
    return request.param


@pytest.fixture(scope="session")
def browser():
    """rendered(path, folder): the DOM that a browser without a network makes of a page, as text; it must not
    complain."""
    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if chromium is None:
        pytest.skip("no Chromium: the page is tried in a real browser where there is one")

    def rendered(path, folder):
        switches = "--headless --no-sandbox --disable-gpu --no-first-run --disable-background-networking"
        switches += " --disable-component-update --disable-sync --dump-dom --virtual-time-budget=5000"
        switches += " --enable-logging=stderr --proxy-server=127.0.0.1:9"
        command = [chromium, *switches.split(), f"--user-data-dir={folder}", path.as_uri()]
        done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
        assert "CONSOLE" not in done.stderr, done.stderr
        return done.stdout

    return rendered


@pytest.fixture(scope="module")
def chromium(tmp_path_factory):
    if installed() is None:
        pytest.skip("no Chromium: the page is tried in a real browser where there is one")
    browser = Browser(tmp_path_factory.mktemp("browser"))
    yield browser
    browser.close()
