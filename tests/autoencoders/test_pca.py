"""Principal components, against scikit-learn's."""

import pytest
import sklearn.decomposition
import torch

import saelens_lite as sl
from saelens_lite.autoencoders.fields import Relative
from saelens_lite.autoencoders.pca import PCA
from saelens_lite.sae.metrics import ReconstructionSums
from saelens_lite.train.autoencoders.single import train_autoencoder


@pytest.fixture
def rows():
    """640 rows of ten dimensions that are correlated, far from 0."""
    generator = torch.Generator().manual_seed(0)
    mix = torch.randn(10, 10, generator=generator)
    return torch.randn(640, 10, generator=generator) @ mix + 5


def trained(rows, folder, **fields):
    store = sl.ActivationStore.from_arrays(folder / "store", rows)
    options = {"device": "cpu", "progress": False, "held_out_fraction": 0.0, "batch_size_rows": 64}
    return train_autoencoder(store, kind="pca", output=folder / "pca", **options | fields)


def test_components_variances_and_fvu_are_scikit_learns(rows, tmp_path):
    pca = trained(rows, tmp_path, code_size=4)
    peer = sklearn.decomposition.PCA(10, svd_solver="full").fit(rows.double().numpy())
    theirs = torch.from_numpy(peer.components_)
    signs = theirs.gather(1, theirs.abs().argmax(1, keepdim=True)).sign()
    torch.testing.assert_close(pca.components.double(), (theirs * signs)[:4], rtol=0, atol=1e-6)
    expected = torch.from_numpy(peer.explained_variance_)
    torch.testing.assert_close(pca.variances.double(), expected, rtol=1e-6, atol=0)
    curve = 1 - torch.from_numpy(peer.explained_variance_ratio_).cumsum(0)
    torch.testing.assert_close(pca.fvu_curve()[1:], curve, rtol=0, atol=1e-6)
    assert float(pca.fvu_curve()[0]) == 1


def test_the_curve_is_the_fvu_of_the_rows_trained_on(rows, tmp_path):
    pca = trained(rows, tmp_path, code_size=4)
    sums = ReconstructionSums(10)
    sums.update(rows, pca(rows).recons)
    assert sums.fvu == pytest.approx(float(pca.fvu_curve()[4]), rel=1e-5)


def test_two_rows_by_hand():
    """(1, 1) and (3, 5): mean (2, 3), centred ∓(1, 2), scatter [[2, 4], [4, 8]], whose eigenvalue is 10."""
    pca = PCA(Relative(kind="pca", code_size=1), 2)
    pca.fit_(torch.tensor([2.0, 3.0]).double(), torch.tensor([[2.0, 4.0], [4.0, 8.0]]).double())
    torch.testing.assert_close(pca.variances, torch.tensor([10.0, 0.0]), atol=1e-6, rtol=0)
    torch.testing.assert_close(pca.components, torch.tensor([[1.0, 2.0]]) / 5**0.5)
    codes = pca.encode(torch.tensor([[1.0, 1.0], [3.0, 5.0]]))
    torch.testing.assert_close(codes, torch.tensor([[-(5**0.5)], [5**0.5]]))


def test_a_code_wider_than_a_row_is_refused(rows, tmp_path):
    with pytest.raises(
        ValueError, match="code_size expected at most 10, the width of a row, for pca, got 11"
    ):
        trained(rows, tmp_path, code_size=11)
