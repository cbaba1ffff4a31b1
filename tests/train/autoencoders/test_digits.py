"""Relatives on scikit-learn's digits: what is not linear explains more than as many principal components."""

import pytest
import torch
from sklearn.datasets import load_digits

import saelens_lite as sl
from saelens_lite.train.autoencoders.single import train_autoencoder

BELIEF = {"activation": "sigmoid", "output_activation": "sigmoid", "error": "cross_entropy", "n_steps": 1500}


@pytest.mark.long
def test_nonlinear_relatives_are_below_the_principal_components(tmp_path):
    """tests/bench/autoencoders.py has all sizes and seeds; here are 8 units and one seed."""
    pictures = torch.from_numpy(load_digits().images[:, None] / 16).float()
    store = sl.ActivationStore.from_arrays(tmp_path / "store", pictures)
    fvu = {}
    for kind, fields in {
        "pca": {"n_epochs": 1},
        "multilayer": {"n_steps": 300},
        "convolutional": {"n_steps": 600},
        "deep_belief": BELIEF,
    }.items():
        options = {"code_size": 8, "batch_size_rows": 64, "held_out_fraction": 0.2, "output": tmp_path / kind}
        options |= {"eval_every_steps": 10_000, "checkpoint_every_steps": 10_000, "log_every_steps": 100}
        trained = train_autoencoder(store, kind=kind, device="cpu", progress=False, **options, **fields)
        fvu[kind] = trained.metadata["held_out_fvu"]
    assert fvu["pca"] == pytest.approx(0.343, abs=0.002)  # of rows that no component saw
    assert fvu.pop("pca") > max(fvu.values()), fvu
