"""Two models of one text, of which the second differs by a known change, and their stores."""

import copy

import pytest
import torch

from ..conftest import TEXTS, harvested_store


class Pair:
    """base, tuned: models; base_store, tuned_store: of the same text; shift: float[32], what the second adds
    to the stream after block 0 on every token"""


@pytest.fixture
def harvested(byte_tokenizer, tmp_path):
    def harvested(model, name, texts=TEXTS, max_tokens=800):
        return harvested_store(model, byte_tokenizer, tmp_path / name, texts, max_tokens=max_tokens)

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
