"""TODO clause of saelens_lite/lm/losses.py."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from saelens_lite.lm.forward_state import prepared_inputs


def _divergence(clean: Tensor, other: Tensor) -> float:
    """Σ over positions of KL(p_clean ‖ p), nats, from two float32[n vocab] of log-probabilities; 0 · log 0 is
    0."""
    terms = (clean.exp() * (clean - other)).masked_fill(clean == -math.inf, 0.0)
    return terms.sum(-1).double().sum().item()


def token_losses(model: nn.Module, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
    """Cross-entropy of every next token, in nats, without gradients.

    input_ids: int64[batch seq]; attention_mask: {bool|int}[batch seq], padding on either side
    returns: float32[batch seq-1]; entry t belongs to token t+1. 0 where the token or the one before it is
        padding: divide sums by the number of real pairs, `(mask[:, 1:] & mask[:, :-1]).sum()`
    """
    inputs: dict[str, Any] = {"input_ids": input_ids}
    if attention_mask is not None:
        inputs["attention_mask"] = attention_mask
    with torch.no_grad():
        logits = model(**prepared_inputs(model, inputs)).logits
        losses = torch.stack(
            [_next_token_loss(row, ids.to(row.device)) for row, ids in zip(logits, input_ids)]
        )
        if attention_mask is not None:
            real = attention_mask.to(losses.device).bool()
            losses = losses.masked_fill(~(real[:, 1:] & real[:, :-1]), 0.0)
        return losses


def kl_to_clean(clean_logits: Tensor, logits: Tensor) -> Tensor:
    """KL(p_clean ‖ p) of next-token distributions, in nats: float32[...] from two float[... vocab]."""
    clean, other = clean_logits.float().log_softmax(-1), logits.float().log_softmax(-1)
    return (clean.exp() * (clean - other)).sum(-1)


def _next_token_loss(logits: Tensor, ids: Tensor) -> Tensor:
    """float32[seq-1] of one example: logits float[seq vocab], ids int64[seq]. One at a time, for the float32
    copy."""
    return nn.functional.cross_entropy(logits[:-1].float(), ids[1:].long(), reduction="none")
