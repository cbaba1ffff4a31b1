"""A small harvest that the tests of this room share."""

import pytest

from saelens_lite.harvest import harvest_activations

TEXTS = [
    f"Story {i}: "
    + "".join(f"{word} " for word in ["sun", "moon", "star", "é", "😀"][: 1 + i % 5]) * (1 + i % 3)
    for i in range(40)
]
BOTH = ["blocks.0.hook_resid_post", "blocks.1.hook_mlp_out"]


@pytest.fixture
def texts() -> list[str]:
    """40 documents of 11 to 80 bytes."""
    return TEXTS


@pytest.fixture
def harvest(gpt2, byte_tokenizer, tmp_path):
    """harvest(dataset=TEXTS, hook_points=BOTH, store="store", **options): the small GPT-2 on small shards."""

    def run(dataset=TEXTS, hook_points=BOTH, store="store", model=gpt2, **options):
        settings = {
            "max_tokens": 1000,
            "context_length": 32,
            "batch_size_seqs": 4,
            "documents_per_shard": 8,
            "dtype": "float32",
            "tokenizer": byte_tokenizer,
            "progress": False,
        }
        return harvest_activations(model, dataset, hook_points, tmp_path / store, **(settings | options))

    return run
