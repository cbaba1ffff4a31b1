"""Cross-entropy and KL of a language model's logits, in nats a token: one definition each.

A token that a model rules out, such as the padding of its vocabulary, has the logit −∞ and the probability 0.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from saelens_lite.lm.forward_state import placed_inputs
from saelens_lite.misfits import names_misfits


def cross_entropy(logits: Tensor, next_ids: Tensor) -> Tensor:
    """−log p(next token): float32[...] from float[... vocab] and int[...] on any device."""
    targets = next_ids.to(logits.device, torch.int64)
    rows = logits.float().reshape(-1, logits.shape[-1])
    return nn.functional.cross_entropy(rows, targets.reshape(-1), reduction="none").view(targets.shape)


@names_misfits
def kl_divergence(clean_logits: Tensor, logits: Tensor) -> Tensor:
    """KL(p_clean ‖ p) of next-token distributions: float32[...] from two float[... vocab].

    A token that p_clean rules out adds nothing (0 · log 0 = 0) and passes no gradient; one that p alone rules
    out makes the divergence infinite.

    raises: ValueError for logits of two shapes
    """
    if clean_logits.shape != logits.shape:
        raise ValueError(
            f"kl_divergence expected logits of one shape, got {list(clean_logits.shape)} and "
            f"{list(logits.shape)}"
        )
    clean, other = clean_logits.float().log_softmax(-1), logits.float().log_softmax(-1)
    # masked before the product: 0 · nan would be nan in the gradient too
    ratio = (clean - other).masked_fill(clean == -math.inf, 0.0)
    return (clean.exp() * ratio).sum(-1)


@names_misfits
def token_losses(model: nn.Module, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
    """Cross-entropy of every next token, without gradients.

    input_ids: int64[batch seq]; attention_mask: {bool|int}[batch seq], padding on either side
    returns: float32[batch seq-1]; entry t belongs to token t+1. 0 where the token or the one before it is
        padding: divide sums by the number of real pairs, `(mask[:, 1:] & mask[:, :-1]).sum()`
    raises: ValueError for a mask of another shape
    """
    inputs: dict[str, Any] = {"input_ids": input_ids}
    if attention_mask is not None:
        if attention_mask.shape != input_ids.shape:
            raise ValueError(
                f"attention_mask expected {list(input_ids.shape)}, as input_ids, got "
                f"{list(attention_mask.shape)}"
            )
        inputs["attention_mask"] = attention_mask
    with torch.no_grad():
        logits = model(**placed_inputs(model, inputs)).logits
        # one text at a time, since each needs a copy of its logits in float32
        losses = torch.stack([cross_entropy(row[:-1], ids[1:]) for row, ids in zip(logits, input_ids)])
        if attention_mask is not None:
            real = attention_mask.to(losses.device).bool()
            losses = losses.masked_fill(~(real[:, 1:] & real[:, :-1]), 0.0)
        return losses
