"""JumpReLU's thresholds: where they start, how they move, what a checkpoint keeps of them."""

import pytest
import torch
from torch.testing import assert_close

from saelens_lite.sae.autoencoder import SparseAutoencoder
from saelens_lite.sae.config import SAEConfig
from saelens_lite.train.config import TrainConfig
from saelens_lite.train.kinds.choice import settled
from saelens_lite.train.kinds.jumprelu import JumpReLU
from saelens_lite.train.optimise.trainer import Trainer


def sae_of(threshold=0.0):
    """One latent that reads its input as it is."""
    sae = SparseAutoencoder(SAEConfig(d_model=1, d_sae=1, kind="jumprelu"))
    with torch.no_grad():
        for name in ("W_enc", "W_dec"):
            sae.get_parameter(name).fill_(1.0)
        sae.threshold.fill_(threshold)
    return sae


def test_thresholds_start_as_configured_and_keep_what_a_trained_sae_has():
    cases = [(0.0, {}, 0.3), (0.0, {"jumprelu_penalty": "tanh"}, 0.1), (0.0, {"initial_threshold": 0.3}, 0.3)]
    source = {"init_from": "there"}
    kept = [(0.7, source, 0.7), (0.0, source, 0.0), (0.7, source | {"initial_threshold": 0.3}, 0.3)]
    for found, fields, want in [*cases, *kept]:
        kind = JumpReLU(sae_of(found), TrainConfig(kind="jumprelu", **fields))
        assert kind.sae.threshold.item() == pytest.approx(want)


@torch.no_grad()
def threshold_grad(acts, **fields):
    kind = JumpReLU(
        sae_of(),
        TrainConfig(kind="jumprelu", bandwidth=0.5, initial_threshold=1.0, **{"l0_coeff": 3.0, **fields}),
    )
    kind.gradients(torch.tensor(acts)[:, None], None, 1.0)
    return float(kind.log_threshold.grad)


def test_the_threshold_learns_from_rows_within_half_a_bandwidth():
    """The row 0.8 is off: its error is −0.8, so it wants to be on by 1 · 1.6, of two rows; the penalty wants
    3 the other way. The row 1.6 is too far away to matter."""
    want = -(1.0 * -1.6 + 3.0) / 2 / 0.5
    assert threshold_grad([0.8, 1.6]) == pytest.approx(want, rel=1e-5)
    assert threshold_grad([1.6, 1.6]) == 0


def test_a_target_turns_the_penalty_around_below_it():
    """l0 is 0.5; d/dl0 (l0 / 2 − 1)² = 2 · (0.25 − 1) / 2 = −0.75, and for a target of 0.25: 2 · (2 − 1) /
    0.25 = 8."""
    for target, slope in ((2.0, -0.75), (0.25, 8.0)):
        want = -(1.0 * -1.6 + 3.0 * slope) / 2 / 0.5
        assert threshold_grad([0.8, 1.6], target_l0=target) == pytest.approx(want, rel=1e-5)


def test_the_tanh_penalty_draws_latents_that_are_off():
    kind = JumpReLU(
        sae_of(), TrainConfig(kind="jumprelu", jumprelu_penalty="tanh", l0_coeff=1.0, pre_act_coeff=0.5)
    )
    with torch.no_grad():
        kind.gradients(torch.full((4, 1), -9.0), None, 1.0)
    assert_close(kind.sae.b_enc.grad, torch.tensor([-0.5]))
    assert_close(kind.log_threshold.grad, torch.tensor([0.5 * 0.1]))


def test_thresholds_stay_positive_and_are_part_of_a_checkpoint():
    trainer = Trainer(
        sae_of(),
        TrainConfig(kind="jumprelu", lr=1.0, l0_coeff=1e-6, initial_threshold=1.0, batch_size_rows=2),
        n_steps=8,
    )
    for _ in range(4):
        trainer.update(torch.tensor([[0.9], [1.1]]))
    assert 0 < trainer.sae.threshold < 1
    assert_close(trainer.kind.state()["log_threshold"].exp(), trainer.sae.threshold.data)
    other = JumpReLU(sae_of(), TrainConfig(kind="jumprelu"))
    other.load_state(trainer.kind.state())
    assert_close(other.log_threshold, trainer.kind.log_threshold)


def test_fields_of_other_penalties_are_refused():
    with pytest.raises(ValueError, match="target_l0 expected None with the penalty tanh, got 32"):
        settled(TrainConfig(kind="jumprelu", jumprelu_penalty="tanh", target_l0=32))
