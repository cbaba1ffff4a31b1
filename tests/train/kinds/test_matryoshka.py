"""What the prefixes do to a batch worked by hand."""

import pytest
import torch
from torch.testing import assert_close

from saelens_lite.sae.autoencoder import SparseAutoencoder
from saelens_lite.sae.config import SAEConfig
from saelens_lite.train.config import TrainConfig
from saelens_lite.train.kinds.batchtopk import BatchTopK
from saelens_lite.train.kinds.choice import settled
from saelens_lite.train.kinds.matryoshka import Matryoshka


def sae_of(d_sae=2, seed=0):
    sae = SparseAutoencoder(SAEConfig(d_model=2, d_sae=d_sae, kind="jumprelu"))
    with torch.no_grad():
        sae.W_dec.copy_(
            torch.nn.functional.normalize(
                torch.randn(d_sae, 2, generator=torch.Generator().manual_seed(seed))
            )
        )
        sae.W_enc.copy_(sae.W_dec.T)
    return sae


def test_a_latent_learns_from_the_errors_of_every_prefix_that_holds_it():
    """x = (3, 2), latents at 3 · (1, 0) and 2 · (0, 1). The prefix of one leaves the error (0, −2), both
    leave none."""
    sae = sae_of()
    with torch.no_grad():
        sae.W_enc.copy_(torch.eye(2))
        sae.W_dec.copy_(torch.eye(2))
        Matryoshka(sae, TrainConfig(k=2, kind="matryoshka", matryoshka_fractions=(0.5, 1))).gradients(
            torch.tensor([[3.0, 2.0]]), None, 1.0
        )
    assert_close(sae.W_dec.grad, torch.tensor([[0.0, 2 * 3 * -2], [0, 0]]))
    assert_close(
        sae.W_enc.grad, torch.zeros(2, 2)
    )  # the error is at right angles to the first latent's direction
    assert_close(sae.b_dec.grad, torch.tensor([0.0, 2 * -2]))


def test_one_prefix_is_batchtopk():
    acts, grads = torch.randn(16, 2, generator=torch.Generator().manual_seed(1)), []
    for trained in (BatchTopK, Matryoshka):
        sae = sae_of(d_sae=8)
        with torch.no_grad():
            config = TrainConfig(k=2, kind="matryoshka", matryoshka_fractions=(1,))
            trained(sae, config).gradients(acts, torch.arange(3), 1.0)
        grads.append([sae.get_parameter(name).grad for name in ("W_enc", "W_dec", "b_enc", "b_dec")])
    assert_close(*grads)


def test_prefixes_that_hold_nothing_new_are_refused():
    with pytest.raises(
        ValueError, match=r"prefixes that grow, got \[0, 1, 1, 2, 3\] of 3 latents: leave out the smallest"
    ):
        Matryoshka(
            sae_of(d_sae=3), TrainConfig(k=2, kind="matryoshka", matryoshka_fractions=(0.1, 0.3, 0.4, 0.6, 1))
        )
    with pytest.raises(
        ValueError, match="matryoshka_fractions expected shares that ascend from above 0 to 1"
    ):
        settled(TrainConfig(kind="matryoshka", matryoshka_fractions=(0.5, 0.25, 1)))
