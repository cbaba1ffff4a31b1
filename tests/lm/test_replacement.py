"""Replacing activations by a reconstruction: exact for a perfect SAE, equal to zero ablation for an empty
one."""

import math

import pytest
import torch
from torch import nn

from saelens_lite.lm.hooks import capture
from saelens_lite.lm.losses import kl_divergence, token_losses
from saelens_lite.lm.replacement import splice
from saelens_lite.sae.autoencoder import SparseAutoencoder
from saelens_lite.sae.config import SAEConfig

POINT = "blocks.0.hook_resid_post"
IDS = torch.tensor([[1, 80, 90, 70, 60, 75], [1, 99, 98, 97, 2, 96]])  # BOS first; EOS inside the second


def identity_sae(d_model: int = 32) -> SparseAutoencoder:
    """x = ReLU(x) − ReLU(−x): exact in every bit, because each sum has one term that is not zero."""
    sae = SparseAutoencoder(SAEConfig(d_model=d_model, d_sae=2 * d_model, kind="relu", hook_point=POINT))
    both = torch.cat([torch.eye(d_model), -torch.eye(d_model)])
    with torch.no_grad():
        sae.W_dec.copy_(both)
        sae.W_enc.copy_(both.T)
    return sae


def empty_sae() -> SparseAutoencoder:
    return SparseAutoencoder(SAEConfig(d_model=32, d_sae=8, kind="relu", hook_point=POINT))


@pytest.mark.property_check(2)
@pytest.mark.parametrize("positions", ["non_bos", "all"])
def test_a_perfect_sae_costs_nothing_at_all(gpt2, positions):
    with torch.no_grad():
        clean = gpt2(IDS).logits
        losses = token_losses(gpt2, IDS)
        with splice(gpt2, identity_sae(), positions=positions):
            assert torch.equal(gpt2(IDS).logits, clean)
            assert torch.equal(token_losses(gpt2, IDS), losses)
            assert torch.equal(kl_divergence(clean, gpt2(IDS).logits), torch.zeros(2, 6))


@pytest.mark.property_check(2)
@pytest.mark.parametrize("positions", ["non_bos", "all"])
def test_an_empty_sae_is_zero_ablation_is_the_mean_of_nothing(gpt2, positions):
    clean = token_losses(gpt2, IDS)
    with splice(gpt2, None, POINT, "zero", positions=positions):
        zeroed = token_losses(gpt2, IDS)
    with splice(gpt2, empty_sae(), positions=positions):
        assert torch.equal(token_losses(gpt2, IDS), zeroed)
    with splice(gpt2, None, POINT, "mean", mean=torch.zeros(32), positions=positions):
        assert torch.equal(token_losses(gpt2, IDS), zeroed)
    assert (zeroed - clean).abs().max() > 1e-3


@pytest.mark.parametrize(
    "positions, touched",
    [
        ("non_bos", [[0, 1, 1, 1, 1, 1], [0, 1, 1, 1, 0, 1]]),
        ("all", [[1] * 6, [1] * 6]),
        (torch.tensor([[False, True], [True, False]]), [[0, 1, 0, 0, 0, 0], [1, 0, 0, 0, 0, 0]]),
        (lambda info: info.input_ids > 90, [[0] * 6, [0, 1, 1, 1, 0, 1]]),
    ],
)
def test_the_three_replacements_touch_the_same_positions(gpt2, positions, touched):
    mean = torch.arange(32.0)
    with torch.no_grad(), capture(gpt2, [POINT]) as found:
        gpt2(IDS)
        clean = found[POINT]
    for mode, sae, replacement in (
        ("sae", empty_sae(), 0 * mean),
        ("zero", None, 0 * mean),
        ("mean", None, mean),
    ):
        context = splice(gpt2, sae, POINT, mode, mean=mean if mode == "mean" else None, positions=positions)
        with torch.no_grad(), context, capture(gpt2, ["blocks.1.hook_resid_pre"]) as found:
            gpt2(IDS)
        expected = torch.where(torch.tensor(touched).bool()[..., None], replacement, clean)
        assert torch.equal(found["blocks.1.hook_resid_pre"], expected)


def test_losses_by_hand(gpt2):
    """A head of zeros makes every next token equally likely: log(259) nats each."""
    gpt2.lm_head = nn.Linear(32, 259, bias=False)
    nn.init.zeros_(gpt2.lm_head.weight)
    losses = token_losses(gpt2, IDS)
    assert losses.shape == (2, 5) and losses.dtype == torch.float32 and not losses.requires_grad
    torch.testing.assert_close(losses, torch.full((2, 5), math.log(259)))


@pytest.mark.parametrize(
    "arguments, match",
    [
        ({"sae": empty_sae(), "mode": "median"}, "mode expected one of"),
        ({"sae": None, "hook_point": POINT}, "expected an SAE, got None"),
        ({"sae": None, "mode": "zero"}, "expected hook_point="),
        ({"sae": empty_sae(), "mode": "mean"}, "mean= belongs to mode='mean'"),
        ({"sae": empty_sae(), "mean": torch.zeros(32)}, "mean= belongs to mode='mean'"),
        ({"sae": empty_sae(), "positions": "bos"}, "positions expected 'non_bos'"),
    ],
)
def test_bad_arguments_are_named(gpt2, arguments, match):
    with pytest.raises(ValueError, match=match), splice(gpt2, **arguments):
        pass


def test_an_sae_of_another_width_is_refused(gpt2):
    with pytest.raises(ValueError, match=r"d_model=16.*got \[2, 6, 32\]"), splice(gpt2, identity_sae(16)):
        gpt2(IDS)
