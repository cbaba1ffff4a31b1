"""How much decoder rows lean on each other, by hand and against all pairs."""

import math

import pytest
import torch

from saelens_lite.sae import decoder_cosine
from saelens_lite.sae.decoder_cosine import mean_decoder_cosine


def test_three_rows_by_hand():
    """Angles of 60°, 90° and 150° between rows of any length: (1/2 + 0 + √3/2) / 3."""
    W_dec = torch.tensor([[2.0, 0.0], [0.5, math.sqrt(3) / 2], [0.0, -3.0], [0.0, 0.0]])
    assert mean_decoder_cosine(W_dec) == pytest.approx((0.5 + 0 + math.sqrt(3) / 2) / 3, rel=1e-6)
    fires = torch.tensor([True, True, False, False])
    assert mean_decoder_cosine(W_dec, fires) == pytest.approx(0.5, rel=1e-6)
    assert math.isnan(mean_decoder_cosine(W_dec, torch.tensor([True, False, False, True])))


def test_chunks_give_the_mean_of_all_pairs(monkeypatch):
    W_dec = torch.randn(50, 7, generator=torch.Generator().manual_seed(0))
    cosines = torch.corrcoef(torch.cat([W_dec, -W_dec], 1).double()).abs()  # of rows of mean 0: their cosines
    want = float((cosines.sum() - 50) / (50 * 49))
    assert mean_decoder_cosine(W_dec) == pytest.approx(want, rel=1e-6)
    monkeypatch.setattr(decoder_cosine, "_CHUNK_ROWS", 8)
    assert mean_decoder_cosine(W_dec) == pytest.approx(want, rel=1e-6)
    monkeypatch.setattr(decoder_cosine, "ALL_PAIRS", 20)
    drawn = torch.randperm(50, generator=torch.Generator().manual_seed(0))[:20]
    of_drawn = cosines[drawn][:, drawn]
    assert mean_decoder_cosine(W_dec) == pytest.approx(float((of_drawn.sum() - 20) / (20 * 19)), rel=1e-6)


def test_shapes_that_do_not_fit_are_named():
    with pytest.raises(ValueError, match=r"fires\[d_sae\], got \[\[3, 2\], \[2\]\]"):
        mean_decoder_cosine(torch.ones(3, 2), torch.ones(2, dtype=torch.bool))
