"""γ of rows, by hand and of a store."""

import math

import torch
from pytest import approx

import saelens_lite as sl
from saelens_lite.store.common_mean import mean_to_spread


def test_by_hand():
    """Rows (3, 4) ± (1, 0): μ = (3, 4), ‖μ‖ = 5; each is 1 from it, so ‖σ‖ = 1, and ‖row‖² 32 or 20."""
    assert mean_to_spread(26.0, torch.tensor([3.0, 4.0], dtype=torch.float64)) == approx(5.0)
    assert mean_to_spread(25.0, torch.tensor([3.0, 4.0], dtype=torch.float64)) == math.inf


def test_of_a_store_and_kept_with_an_sae(tmp_path):
    acts = torch.randn(600, 8, generator=torch.Generator().manual_seed(0)) + 5
    store = sl.ActivationStore.from_arrays(
        tmp_path / "store", acts, dtype="float32", documents=torch.arange(600)
    )
    exact = acts.double()
    gamma = exact.mean(0).norm() / (exact - exact.mean(0)).square().sum(1).mean().sqrt()
    assert store.mean_to_spread() == approx(float(gamma), rel=1e-6)
    sae = sl.train_sae(
        store, kind="topk", k=2, d_sae=16, n_steps=3, batch_size_rows=32, device="cpu", progress=False,
        output=str(tmp_path / "sae"),
    )  # fmt: skip
    assert sae.config.metadata["saelens_lite"]["mean_to_spread"] == approx(float(gamma), rel=1e-6)
