"""Feature splitting by hand: one thing in n latents is found in n."""

import pytest
import torch

from saelens_lite.analyze.probing.labelled_items import columns
from saelens_lite.analyze.probing.splitting import feature_splitting
from saelens_lite.analyze.stats.logistic import f1_of
from saelens_lite.sae.autoencoder import SparseAutoencoder
from saelens_lite.sae.config import SAEConfig
from saelens_lite.sae.latents import SparseLatents


def identity_sae(d: int) -> SparseAutoencoder:
    """relu; latent i is dimension i."""
    sae = SparseAutoencoder(SAEConfig(d_model=d, d_sae=d, kind="relu"))
    with torch.no_grad():
        sae.W_enc.copy_(torch.eye(d))
        sae.W_dec.copy_(torch.eye(d))
    return sae


def split_rows(shares: list[float], n_rows: int = 6000, n_noise: int = 6):
    """Rows half of which have the label, that with probability shares[i] fire dimension i; noise fires on
    half of all."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.rand(n_rows, generator=generator) < 0.5
    piece = torch.multinomial(torch.tensor(shares), n_rows, replacement=True, generator=generator)
    pieces = torch.nn.functional.one_hot(piece, len(shares)).float() * labels[:, None]
    noise = (torch.rand(n_rows, n_noise, generator=generator) < 0.5).float()
    values = 1 + torch.rand(n_rows, len(shares) + n_noise, generator=generator)
    return torch.cat([pieces, noise], 1) * values, labels


@pytest.mark.parametrize("n", [1, 2, 4, 10])
def test_a_feature_in_n_latents_is_found_in_n(n):
    acts, labels = split_rows([1 / n] * n)
    found = feature_splitting(identity_sae(acts.shape[1]), acts, labels)
    assert set(found.latents) == set(range(n)) and found.n == n
    # k of n pieces: recall k / n, precision 1, F1 2k / (n + k)
    assert found.f1[:n] == pytest.approx([2 * k / (n + k) for k in range(1, n + 1)], abs=0.05)
    assert f"{n} latents" in repr(found)


def test_a_rare_piece_does_not_count_and_the_largest_comes_first():
    acts, labels = split_rows([0.02, 0.28, 0.7])
    found = feature_splitting(identity_sae(acts.shape[1]), acts, labels)
    assert found.latents == (2, 1), "the piece of 2 % raises F1 by about 0.01"
    assert len(found.f1) == 3 and found.f1[2] - found.f1[1] < 0.03
    assert feature_splitting(identity_sae(acts.shape[1]), acts, labels, f1_rise=0.005).latents == (2, 1, 0)
    assert feature_splitting(identity_sae(acts.shape[1]), acts, labels, max_latents=1).latents == (2,)


def test_a_latent_that_says_the_same_again_is_passed_over():
    acts, labels = split_rows([0.6, 0.4])
    twice = torch.cat([acts[:, :1], acts], 1)  # dimensions 0 and 1 are one piece, 2 is the other
    assert set(feature_splitting(identity_sae(twice.shape[1]), twice, labels).latents) in ({0, 2}, {1, 2})


def test_documents_decide_the_sides_and_latents_against_the_label_are_not_taken():
    acts, labels = split_rows([1.0])
    against = torch.cat([(~labels).float()[:, None], acts[:, 1:]], 1)  # dimension 0 says the opposite
    found = feature_splitting(identity_sae(acts.shape[1]), against, labels)
    assert 0 not in found.latents
    with pytest.raises(ValueError, match="both labels on the selecting side"):
        feature_splitting(
            identity_sae(acts.shape[1]), acts, labels, torch.zeros(len(acts), dtype=torch.int64) + 1
        )
    documents = torch.arange(len(acts)) // 50
    assert feature_splitting(identity_sae(acts.shape[1]), acts, labels, documents).n == 1


def test_columns_and_f1_by_hand():
    latents = SparseLatents.from_dense(torch.tensor([[0.0, 2, 3], [1, 0, 0], [0, 0, 5]]))
    assert columns(latents, torch.tensor([2, 0])).tolist() == [[3, 0], [0, 1], [5, 0]]
    said, true = torch.tensor([True, True, False, False]), torch.tensor([True, False, True, False])
    assert f1_of(said, true) == 0.5 and f1_of(~said & said, ~said & said) == 0


def test_settings_out_of_range_are_refused():
    acts, labels = split_rows([1.0], n_rows=100)
    for wrong in ({"max_latents": 0}, {"f1_rise": 0.0}):
        with pytest.raises(ValueError, match="max_latents of 1 or more and f1_rise above 0"):
            feature_splitting(identity_sae(acts.shape[1]), acts, labels, **wrong)
