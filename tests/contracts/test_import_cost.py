"""Importing is cheap and without effects: at most 1.25 times `import torch`, and nothing heavy comes
along."""

import subprocess
import sys

import pytest

CORE = (
    "import saelens_lite; "
    "from saelens_lite import SparseAutoencoder, SparseLatents, ActivationStore, ShardError"
)
HEAVY = (
    "transformers",
    "datasets",
    "wandb",
    "tokenizers",
    "huggingface_hub",
    "pandas",
    "matplotlib",
    "sklearn",
    "tyro",
)


def run(code: str) -> str:
    return subprocess.run(
        [sys.executable, "-c", code], check=True, capture_output=True, text=True
    ).stdout.strip()


@pytest.fixture(scope="module")
def printed():
    """What one interpreter prints: the modules that the core brings, those after the training room, and what
    importing all else prints."""
    return run(
        f"{CORE}; import sys; print(*sys.modules); from saelens_lite import train_sae; print(*sys.modules); "
        "from saelens_lite import *"
    ).splitlines()


def test_the_core_brings_torch_and_safetensors_and_nothing_heavy(printed):
    loaded = set(printed[0].split())
    assert {"torch", "safetensors"} <= loaded
    assert not loaded & set(HEAVY)


def test_the_training_room_brings_nothing_heavy(printed):
    loaded = set(printed[1].split())
    assert "saelens_lite.train.single" in loaded
    assert not loaded & set(HEAVY)


def test_importing_prints_nothing(printed):
    assert printed[2:] == []


@pytest.mark.long
def test_import_takes_at_most_a_quarter_longer_than_torch():
    """What comes on top of torch, in the same interpreter and in seconds of processor, which other work on
    the machine moves little."""
    timed = (
        f"import time; t = time.process_time(); import torch; u = time.process_time(); {CORE}; "
        "print((time.process_time() - t) / (u - t))"
    )
    ratios = []
    while len(ratios) < 2 or (min(ratios) > 1.25 and len(ratios) < 5):
        ratios.append(float(run(timed)))
    assert min(ratios) <= 1.25, f"import saelens_lite takes {ratios} times import torch"
