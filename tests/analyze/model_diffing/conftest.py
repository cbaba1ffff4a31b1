"""Two models of one text, of which the second differs by a known change, and their stores."""

import copy

import pytest
import torch

from saelens_lite.harvest import harvest_activations

from ..conftest import HOOK_POINT, TEXTS


class Pair:
    """base, tuned: models; base_store, tuned_store: of the same text; shift: float[32], what the second adds
    to the stream after block 0 on every token"""


@pytest.fixture
def harvested(byte_tokenizer, tmp_path):
    def harvested(model, name, texts=TEXTS, **options):
        return harvest_activations(
            model,
            texts,
            [HOOK_POINT],
            tmp_path / name,
            max_tokens=options.pop("max_tokens", 800),
            tokenizer=byte_tokenizer,
            context_length=32,
            batch_size_seqs=4,
            documents_per_shard=16,
            dtype="float32",
            progress=False,
            **options,
        )

    return harvested


@pytest.fixture
def pair(gpt2, harvested):
    """The tuned model adds `shift` to what the MLP of block 0 writes."""
    pair = Pair()
    pair.base, pair.tuned = gpt2, copy.deepcopy(gpt2)
    pair.shift = torch.linspace(-1, 1, 32)
    with torch.no_grad():
        pair.tuned.transformer.h[0].mlp.c_proj.bias += pair.shift
    pair.base_store, pair.tuned_store = harvested(gpt2, "base"), harvested(pair.tuned, "tuned")
    return pair
