"""Geometry of the weights on dictionaries small enough to see."""

import pytest
import torch
from torch.testing import assert_close

from saelens_lite.analyze.latents import geometry
from saelens_lite.sae.autoencoder import SparseAutoencoder
from saelens_lite.sae.config import SAEConfig

from ..conftest import make_sae


@pytest.fixture
def three():
    """Decoder rows (1, 0), (3, 4) / 5 and (0, −2); encoder columns (2, 0), (0, 1) and 0."""
    sae = SparseAutoencoder(SAEConfig(d_model=2, d_sae=3, kind="relu"))
    with torch.no_grad():
        sae.W_dec.copy_(torch.tensor([[1.0, 0.0], [0.6, 0.8], [0.0, -2.0]]))
        sae.W_enc.copy_(torch.tensor([[2.0, 0.0, 0.0], [0.0, 1.0, 0.0]]))
    return sae


def test_by_hand(three):
    assert_close(geometry.encoder_decoder_cosine(three), torch.tensor([1.0, 0.8, 0.0]))
    assert_close(geometry.decoder_norms(three), torch.tensor([1.0, 1.0, 2.0]))
    assert_close(geometry.max_decoder_cosines(three), torch.tensor([0.6, 0.6, 0.0]))


def test_of_many_latents_a_sample_is_compared_with_all(monkeypatch):
    sae = make_sae("relu", d_model=8, d_sae=100)
    every = geometry.max_decoder_cosines(sae)
    monkeypatch.setattr(geometry, "_CHUNK_VALUES", 700)
    assert_close(geometry.max_decoder_cosines(sae), every)
    monkeypatch.setattr(geometry, "ALL_PAIRS", 50)
    sample = geometry.max_decoder_cosines(sae)
    assert len(sample) == 50 * 50 // 100
    assert all(torch.isclose(every, value).any() for value in sample)


def test_one_latent_has_no_neighbour():
    assert len(geometry.max_decoder_cosines(make_sae("relu", d_sae=1))) == 0


def test_biases_by_kind():
    assert list(geometry.encoder_biases(make_sae("jumprelu"))) == ["b_enc"]
    assert list(geometry.encoder_biases(make_sae("gated"))) == ["b_gate", "b_mag"]


def test_neighbors_by_hand():
    """Rows at 0°, 10°, 90° and 100°: each is nearest to the one 10° away; the row of zeros is near to
    none."""
    sae = make_sae(d_model=2, d_sae=5, k=1)
    angles = torch.tensor([0.0, 10, 90, 100]).deg2rad()
    with torch.no_grad():
        sae.W_dec[:4] = torch.stack([angles.cos(), angles.sin()], dim=1) * torch.tensor(
            [[1.0], [5], [2], [3]]
        )
        sae.W_dec[4] = 0
    ids, cosines = geometry.decoder_neighbors(sae, 6)
    assert ids.shape == (5, 6) and ids[:4, 0].tolist() == [1, 0, 3, 2] and (ids[:, 4:] == -1).all()
    assert_close(cosines[:4, 0], torch.full((4,), angles[1].cos().item()))
    assert not cosines[4].any() and not cosines[:, 4:].any()
    assert geometry.decoder_neighbors(sae, 0)[0].shape == (5, 0)


def test_neighbors_do_not_depend_on_the_blocks(monkeypatch):
    sae = make_sae(d_model=8, d_sae=100)
    ids, cosines = geometry.decoder_neighbors(sae, 12)
    unit = torch.nn.functional.normalize(sae.W_dec.detach(), dim=1)
    expected = (unit @ unit.T).fill_diagonal_(-2).topk(12)
    assert torch.equal(ids, expected.indices.int())
    assert_close(cosines, expected.values)
    monkeypatch.setattr(geometry, "_BLOCK_ROWS", 10)
    monkeypatch.setattr(geometry, "_CHUNK_VALUES", 70)
    assert torch.equal(geometry.decoder_neighbors(sae, 12)[0], ids)
    assert torch.equal(geometry.decoder_neighbors(sae, 12, torch.tensor([99, 3]))[0], ids[[99, 3]])
