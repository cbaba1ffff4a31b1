"""Odd rows by relatives of the SAE: T² by scipy, the bound of a variational one, pictures and folders."""

import math

import pytest
import torch
from scipy.spatial.distance import mahalanobis

from saelens_lite.analyze import fit_anomaly
from saelens_lite.analyze.stats.ranks import auroc
from saelens_lite.store.reader import ActivationStore
from tests.autoencoders.test_network import made

ROWS = torch.randn(400, 6, generator=torch.Generator().manual_seed(3)) * torch.arange(1.0, 7.0) + 2


@pytest.fixture
def dense():
    """Codes are the first three coordinates, of which the last is cut at 0."""
    dense = made(code_size=3)
    with torch.no_grad():
        dense.encoder[0].weight.copy_(torch.eye(3, 6))
        dense.encoder[0].bias.copy_(torch.tensor([100.0, 100.0, 0.0]))
        dense.decoder[0].weight.copy_(torch.eye(6, 3))
        dense.decoder[0].bias.copy_(torch.tensor([-100.0, -100.0, 0.0, 0.0, 0.0, 0.0]))
    return dense


def test_t2_is_scipys_mahalanobis_distance_squared(dense, monkeypatch):
    monkeypatch.setattr("saelens_lite.analyze.anomaly.BLOCK_ROWS", 64)
    normal, odd = ROWS[:300], ROWS[300:]
    codes = ROWS[:, :3].double()
    codes[:, 2].clamp_(min=0)
    mean, precision = codes[:300].mean(0), torch.linalg.inv(torch.cov(codes[:300].T))
    expected = [mahalanobis(z, mean, precision) ** 2 for z in codes[300:].numpy()]
    scores = fit_anomaly(dense, normal).scores(odd)
    assert scores.surprise.tolist() == pytest.approx(expected, rel=1e-3)  # codes near 100 are float32
    error = torch.cat([odd[:, 2:3].clamp(max=0), odd[:, 3:]], 1).norm(dim=1)
    torch.testing.assert_close(scores.error, error.double(), rtol=0, atol=1e-4)


def test_a_unit_that_normal_rows_leave_alone_surprises_when_it_moves(dense):
    """Its variance is 0, so S has 1e-6 of the mean variance there."""
    normal = ROWS[:300].clone()
    normal[:, 2] = -1
    detector = fit_anomaly(dense, normal)
    variances = torch.tensor([*normal[:, :2].double().var(0), 0.0])
    covariance = torch.cov(normal[:, :2].double().T)
    assert detector.surprise.mean.tolist() == pytest.approx([102, 102, 0], abs=0.5)
    odd = normal[:1].repeat(2, 1)
    odd[1, 2] = 2.0
    resting, moved = detector.scores(odd).surprise
    mean = normal[:, :2].double().mean(0)
    expected = (normal[0, :2] - mean) @ torch.linalg.inv(covariance) @ (normal[0, :2] - mean)
    assert float(resting) == pytest.approx(float(expected), rel=1e-3)
    assert float(moved - resting) == pytest.approx(2.0**2 / (1e-6 * float(variances.mean())), rel=1e-3)


def test_a_variational_one_is_surprised_by_its_bound():
    vae = made(4, kind="variational", hidden=(5,), code_size=2)
    normal, odd = ROWS[:50, :4], ROWS[50:60, :4]
    scores = fit_anomaly(vae, normal).scores(odd)
    torch.testing.assert_close(scores.surprise, -vae.elbo(odd).double())
    assert repr(fit_anomaly(vae, normal)).endswith("nats") and "T²" not in repr(fit_anomaly(vae, normal))


def test_errors_tell_rows_off_the_principal_components_apart(tmp_path):
    """Normal rows lie in a plane of four dimensions; odd ones leave it."""
    from saelens_lite.train.autoencoders.single import train_autoencoder

    draws = torch.Generator().manual_seed(0)
    plane = torch.randn(2, 4, generator=draws)
    normal = torch.randn(300, 2, generator=draws) @ plane + 0.01 * torch.randn(300, 4, generator=draws)
    store = ActivationStore.from_arrays(tmp_path / "store", normal[:200])
    options = {"device": "cpu", "progress": False, "held_out_fraction": 0.0, "batch_size_rows": 50}
    train_autoencoder(store, kind="pca", code_size=2, output=tmp_path / "pca", **options)
    detector = fit_anomaly(str(tmp_path / "pca"), store)
    inside, outside = detector.scores(normal[200:]), detector.scores(normal[200:] + 0.2)
    assert auroc(inside.error, outside.error) > 0.99
    assert float(inside.surprise.mean()) == pytest.approx(2, abs=0.5)  # of 2 units
    with pytest.raises(ValueError, match="no hook point 'resid'"):
        fit_anomaly(tmp_path / "pca", store, hook_point="resid")
    wider = ActivationStore.from_arrays(tmp_path / "wider", torch.rand(9, 5))
    with pytest.raises(ValueError, match="one of d_model=5, got one of d_model=4, trained on rows of"):
        fit_anomaly(tmp_path / "pca", wider)


def test_pictures_are_rows():
    relative = made_of_pictures()
    pictures = torch.rand(30, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    whole, flat = (fit_anomaly(relative, rows).scores(rows[:5]) for rows in (pictures, pictures.flatten(1)))
    assert torch.equal(whole.combined, flat.combined) and whole.combined.isfinite().all()
    with pytest.raises(ValueError, match=r"rows \[n d_model=16\], or a store, got \[30, 4, 4\]"):
        fit_anomaly(relative, pictures[:, 0])


def test_what_does_not_fit_is_refused(dense):
    with pytest.raises(ValueError, match="at least 2 normal rows, got 1"):
        fit_anomaly(dense, ROWS[:1])
    with pytest.raises(ValueError, match="d_model=6"):
        fit_anomaly(dense, ROWS[:, :5])
    with pytest.raises(ValueError, match="nan or infinity in row 0"):
        fit_anomaly(dense, torch.full((2, 6), math.nan))
    with pytest.raises(TypeError, match="fit_anomaly expected autoencoder as a SparseAutoencoder"):
        fit_anomaly(torch.nn.Linear(6, 6), ROWS)


def made_of_pictures():
    from saelens_lite.autoencoders.convolutional import Convolutional
    from saelens_lite.autoencoders.fields import Relative

    relative = Convolutional(Relative(kind="convolutional", code_size=3, channels=(2,)), 16, (1, 4, 4))
    relative.reset(torch.Generator().manual_seed(0))
    return relative
