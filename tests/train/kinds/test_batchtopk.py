"""BatchTopK's thresholds: the running one, the one fitted to held-out rows, what a checkpoint keeps of
them."""

import math

import pytest
import torch
from torch.testing import assert_close

from saelens_lite.sae.autoencoder import SparseAutoencoder
from saelens_lite.sae.config import SAEConfig
from saelens_lite.train.config import TrainConfig
from saelens_lite.train.kinds.batchtopk import BatchTopK, just_below


def kind_of(k=1):
    """Two latents, each reading one of two inputs."""
    sae = SparseAutoencoder(SAEConfig(d_model=2, d_sae=2, kind="jumprelu"))
    with torch.no_grad():
        sae.W_enc.copy_(torch.eye(2))
        sae.W_dec.copy_(torch.eye(2))
    return BatchTopK(sae, TrainConfig(k=k, kind="batchtopk"))


@torch.no_grad()
def step(kind, acts):
    return kind.gradients(torch.tensor(acts), None, 1.0)


def test_a_token_may_have_any_number_of_latents():
    kind = kind_of()
    stats, fired = step(
        kind, [[3.0, 2.0], [1.0, -1.0]]
    )  # the two largest of the batch are both of the first token
    assert stats.reconstruction == pytest.approx((0 + 1 + 1) / 2)
    assert (stats.l0, fired.tolist()) == (1, [True, True])


def test_the_running_threshold_follows_the_least_selected_value():
    kind = kind_of()
    step(kind, [[3.0, 2.0], [1.0, -1.0]])
    assert_close(kind.sae.threshold.data, torch.full((2,), 2.0))
    assert (kind.sae.threshold < 2.0).all()  # the least selected value itself must pass it
    step(kind, [[9.0, 7.0], [4.0, 0.0]])
    assert_close(kind.sae.threshold.data, torch.full((2,), 0.9 * 2 + 0.1 * 7))


def test_fewer_positive_values_than_k_a_token_are_all_kept():
    kind = kind_of()
    stats, _ = step(kind, [[-1.0, -1.0], [-1.0, -1.0]])
    assert (stats.l0, kind.sae.threshold.tolist()) == (0, [0, 0])
    stats, _ = step(kind, [[5.0, -1.0], [-1.0, -1.0]])
    assert stats.l0 == 0.5


def test_calibration_lets_k_latents_a_token_through_and_lasts_until_the_next_step():
    kind, gen = kind_of(), torch.Generator().manual_seed(0)
    step(kind, [[3.0, 2.0], [1.0, -1.0]])
    held_out = torch.randn(1000, 2, generator=gen) + 2
    kind.calibrate(held_out)
    with torch.no_grad():
        assert kind.sae.encode(held_out).l0().mean() == 1
    step(kind, [[3.0, 2.0], [1.0, -1.0]])
    assert_close(kind.sae.threshold.data, torch.full((2,), 2.0))


def test_the_running_threshold_is_part_of_a_checkpoint():
    one, other = kind_of(), kind_of()
    assert math.isnan(one.state()["threshold"])
    step(one, [[3.0, 2.0], [1.0, -1.0]])
    other.load_state({name: tensor.clone() for name, tensor in one.state().items()})
    for kind in (one, other):
        step(kind, [[9.0, 7.0], [4.0, 0.0]])
    assert torch.equal(one.sae.threshold, other.sae.threshold)


def test_the_threshold_is_not_trained():
    assert set(kind_of().parameters()) == {"W_dec", "b_dec", "b_enc"}


def test_the_threshold_isjust_below_the_least_positive_value():
    """Where fewer than k · B are positive, some kernels select zeros besides."""
    assert float(just_below(torch.tensor([3.0, 0.0, 2.0]))) == float(
        torch.nextafter(torch.tensor(2.0), torch.tensor(0.0))
    )
    assert float(just_below(torch.zeros(2))) == float(just_below(torch.zeros(0))) == 0.0
