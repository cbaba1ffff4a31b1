"""Relatives on scikit-learn's digits: what is not linear explains more than as many principal components."""

import pytest
import torch
from sklearn.datasets import load_digits

import saelens_lite as sl
from saelens_lite.train.autoencoders.single import train_autoencoder

BELIEF = {"activation": "sigmoid", "output_activation": "sigmoid", "error": "cross_entropy"}


@pytest.mark.parametrize(
    ("kind", "fields"),
    [
        pytest.param("multilayer", {"n_steps": 300}, marks=pytest.mark.long),
        pytest.param("convolutional", {"n_steps": 500, "lr": 3e-3}, marks=pytest.mark.long),
        pytest.param("deep_belief", {"n_steps": 2000, **BELIEF}, marks=pytest.mark.slow),
    ],
)
def test_what_is_not_linear_is_below_the_principal_components(tmp_path, kind, fields):
    """At 8 units, one seed; tests/bench/autoencoders.py has other sizes and seeds."""
    pictures = torch.from_numpy(load_digits().images[:, None] / 16).float()
    store = sl.ActivationStore.from_arrays(tmp_path / "store", pictures)
    options = {"code_size": 8, "batch_size_rows": 64, "held_out_fraction": 0.2, "device": "cpu"}
    options |= {
        "eval_every_steps": 10_000,
        "checkpoint_every_steps": 10_000,
        "progress": False,
        "buffer_rows": 4096,
    }
    pca = train_autoencoder(store, kind="pca", output=tmp_path / "pca", **options)
    assert pca.metadata["held_out_fvu"] == pytest.approx(0.343, abs=0.002)
    trained = train_autoencoder(store, kind=kind, output=tmp_path / kind, **options, **fields)
    assert trained.metadata["held_out_fvu"] < pca.metadata["held_out_fvu"]
