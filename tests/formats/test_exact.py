"""Every foreign format computes what its definition says, to 1e-5 of each row's norm."""

import pytest
import torch

from saelens_lite.sae.autoencoder import SparseAutoencoder


def assert_rows_close(ours: torch.Tensor, expected: torch.Tensor, share: float = 1e-5) -> None:
    """Each row differs by at most this share of its norm; a row of zeros is one of zeros."""
    off = (ours.double() - expected).norm(dim=-1)
    assert (off <= share * expected.norm(dim=-1)).all(), (off / expected.norm(dim=-1)).tolist()


def test_encode_and_forward_equal_the_definition_in_float64(golden, golden_name):
    case = golden(golden_name)
    latents, recons, gap = case.forward(case.rows.double())
    assert (gap >= 1e-3).all() and (latents > 0).any(0).float().mean() > 0.5
    sae = case.load()
    with torch.no_grad():
        assert_rows_close(sae.encode(case.rows).to_dense(), latents)
        assert_rows_close(sae(case.rows).recons, recons)
    if case.format != "saelens":
        assert sae.config.metadata["saelens_lite"]["format"] == case.format
    for fact, value in case.facts.items():
        if fact != "file":
            assert getattr(sae.config, fact) == value


def test_what_was_opened_is_the_same_saved_as_ours(golden, golden_name, tmp_path):
    case = golden(golden_name)
    sae = case.load()
    again = type(sae).load(sae.save(tmp_path / "sae"))
    with torch.no_grad():
        torch.testing.assert_close(again(case.rows).recons, sae(case.rows).recons, atol=0, rtol=0)


@pytest.mark.parametrize("dtype", ["float64", "bfloat16"])
def test_dtype_can_be_chosen(golden, dtype):
    case = golden("sparsify")
    assert SparseAutoencoder.load(case.folder, dtype=dtype).config.dtype == dtype
