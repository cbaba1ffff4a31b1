"""Cross-entropy and KL by hand, against float64, and with tokens that the model rules out."""

import math

import pytest
import torch

from saelens_lite.lm.losses import cross_entropy, kl_divergence, token_losses

IDS = torch.tensor([[1, 5, 9, 13, 7, 2], [1, 6, 3, 8, 4, 10]])


@pytest.mark.parametrize("side", ["left", "right"])
def test_losses_of_a_padded_batch_are_those_of_its_texts(gpt2, side):
    text = [1, 80, 90, 70]
    ids = torch.tensor([[0, 0, *text] if side == "left" else [*text, 0, 0], IDS[0].tolist()])
    mask = (ids != 0).long()
    losses = token_losses(gpt2, ids, mask)
    pairs = (mask[:, 1:] & mask[:, :-1]).bool()
    assert losses[0][~pairs[0]].tolist() == [0.0, 0.0]
    alone = token_losses(gpt2, torch.tensor([text]))[0]
    torch.testing.assert_close(losses[0][pairs[0]], alone, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(losses[1], token_losses(gpt2, IDS[:1])[0], rtol=1e-5, atol=1e-5)


def test_cross_entropy_by_hand():
    """p = (1/8, 5/8, 2/8): −ln 1/8 of token 0, −ln 2/8 of token 2. A ruled-out token changes nothing."""
    logits = torch.tensor([[1.0, 5.0, 2.0], [1.0, 5.0, 2.0]]).log()
    expected = torch.tensor([math.log(8), math.log(4)])
    for rows in (logits, padded(logits)):
        torch.testing.assert_close(cross_entropy(rows, torch.tensor([0, 2], dtype=torch.int32)), expected)
    assert cross_entropy(padded(logits), torch.tensor([3, 0]))[0] == math.inf
    assert cross_entropy(logits[0], torch.tensor(2)).shape == ()


def test_kl_by_hand():
    """p = (3/4, 1/4) against q = (1/2, 1/2): 3/4 ln(3/2) + 1/4 ln(1/2). Finite where a softmax would
    underflow."""
    clean, other = torch.tensor([[3.0, 1.0]]).log(), torch.zeros(1, 2)
    expected = torch.tensor([0.75 * math.log(1.5) + 0.25 * math.log(0.5)])
    torch.testing.assert_close(kl_divergence(clean, other), expected)
    torch.testing.assert_close(kl_divergence(padded(clean), padded(other)), expected)
    apart = torch.tensor([500.0, 0.0])
    torch.testing.assert_close(kl_divergence(apart, apart.flip(0)), torch.tensor(500.0))


def test_kl_where_one_of_the_two_rules_a_token_out():
    """p = (1, 0) against q = (1/2, 1/2) is ln 2; the other way round it is infinite."""
    certain, even = torch.tensor([0.0, -math.inf]), torch.zeros(2)
    torch.testing.assert_close(kl_divergence(certain, even), torch.tensor(math.log(2)))
    assert kl_divergence(even, certain) == math.inf


@pytest.mark.parametrize("n_ruled_out", [0, 3])
def test_values_and_gradients_are_those_of_float64(n_ruled_out):
    clean, logits = torch.randn(2, 5, 40, generator=torch.Generator().manual_seed(0)).mul(4)
    p, q = clean.double().softmax(-1), logits.double().softmax(-1)
    expected = (p * (p / q).log()).sum(-1)
    logits.requires_grad_()
    found = kl_divergence(padded(clean, n_ruled_out), padded(logits, n_ruled_out))
    torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-6)
    (gradient,) = torch.autograd.grad(found.sum(), logits)
    torch.testing.assert_close(gradient.double(), q - p, rtol=1e-5, atol=1e-6)


def test_ruled_out_tokens_get_a_gradient_of_zero_on_either_side():
    clean, logits = (padded(torch.randn(4, 6)).requires_grad_() for _ in range(2))
    for gradient in torch.autograd.grad(kl_divergence(clean, logits).sum(), [clean, logits]):
        assert gradient.isfinite().all() and not gradient[:, 6:].any() and gradient[:, :6].all()


def padded(logits, n_ruled_out=1):
    return torch.cat(
        [logits, torch.full_like(logits[..., :1], -math.inf).expand(*logits.shape[:-1], n_ruled_out)], -1
    )
