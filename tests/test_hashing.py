"""Stateless draws, by value: other values would draw other splits and samples in every existing store."""

import numpy as np
import pytest
import torch

from saelens_lite.hashing import hashed_uniform, is_held_out, splitmix64


def by_hand(state):
    """One output of the published generator, in Python's integers."""
    x = (state + 0x9E3779B97F4A7C15) % 2**64
    x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9 % 2**64
    x = (x ^ (x >> 27)) * 0x94D049BB133111EB % 2**64
    return x ^ (x >> 31)


def test_the_mixer_is_splitmix64():
    """The first output of the published generator seeded with 0."""
    assert int(splitmix64(torch.tensor(0))) % 2**64 == by_hand(0) == 0xE220A8397B1DCDAF


@pytest.mark.parametrize("keys", [(), (0,), (7, 1), (-5,), (2**62,)])
def test_uniform_numbers_by_hand(keys):
    stream = 0
    for key in keys:
        stream = by_hand(stream ^ key % 2**64)
    indices = [0, 1, 12_345, 2**62, -1]
    expected = [(by_hand(i % 2**64 ^ stream) >> 11) * 2.0**-53 for i in indices]
    assert hashed_uniform(np.array(indices), *keys).tolist() == expected


def test_held_out_split_is_pinned_and_even():
    """Written down: another value would move documents between training and evaluation in every existing
    store."""
    assert is_held_out(np.arange(60), 0.05).nonzero()[0].tolist() == [1, 18, 27, 43, 47, 58]
    shares = [is_held_out(np.arange(100_000), 0.05, seed).mean() for seed in range(4)]
    np.testing.assert_allclose(shares, 0.05, atol=4 * (0.05 * 0.95 / 100_000) ** 0.5)


def test_held_out_is_a_function_of_the_document_alone():
    everything = is_held_out(torch.arange(1000), 0.3)
    assert everything.dtype == torch.bool
    assert torch.equal(everything[500:510], is_held_out(torch.arange(500, 510), 0.3))
    assert not torch.equal(everything, is_held_out(torch.arange(1000), 0.3, seed=1))
    assert not is_held_out(torch.arange(1000), 0.0).any()
    assert is_held_out(torch.arange(1000), 1.0).all()
    assert (is_held_out(torch.arange(1000), 0.1) <= everything).all()  # a larger share contains a smaller one


def test_held_out_fraction_is_a_share():
    with pytest.raises(ValueError, match="share of documents from 0 to 1, got 5"):
        is_held_out(np.arange(3), 5)
