"""Log probabilities of given texts behind prompts, token by token."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from saelens_lite.lm.decoder import Decoder, evaluation_mode
from saelens_lite.lm.forward_state import placed_inputs


class Continuation(NamedTuple):
    """A text behind a prompt.

    ids: int64[n], its tokens; log_p: float[n], of each, given all before it, in nats
    entropy: float[n], of the model's distribution at each, in nats; both float64 of a float64 model, else
        float32
    """

    ids: Tensor
    log_p: Tensor
    entropy: Tensor


def continuations(
    model: nn.Module,
    tokenizer: Any,
    prompts: Sequence[str],
    texts: Sequence[str],
    *,
    batch_size_seqs: int = 16,
) -> list[Continuation]:
    """How probable each text is behind its prompt, in their order.

    A text's tokens are those that hold a character of it when both are encoded as one. The model may be
    edited meanwhile; its dropout is off.

    prompts, texts: of one length
    raises: ValueError for a tokenizer without offsets, a text without a token, one at the very beginning, or
        one longer than the model's context
    """
    if len(prompts) != len(texts):
        raise ValueError(
            f"continuations expected a text for each prompt, got {len(texts)} and {len(prompts)}"
        )
    decoder = Decoder(model)
    limit = getattr(decoder.text_config, "max_position_embeddings", None)
    rows = [_encoded(tokenizer, prompt, text, limit) for prompt, text in zip(prompts, texts)]
    order = sorted(range(len(rows)), key=lambda i: -len(rows[i].ids))  # little padding, and the longest first
    found: list[Continuation | None] = [None] * len(rows)
    for start in range(0, len(order), batch_size_seqs):
        places = order[start : start + batch_size_seqs]
        for i, one in zip(places, _of_batch(decoder, tokenizer, [rows[i] for i in places])):
            found[i] = one
    return found


class _Row(NamedTuple):
    """ids: of prompt and text, which ends it; n: tokens of the text."""

    ids: list[int]
    n: int


def _encoded(tokenizer: Any, prompt: str, text: str, limit: int | None) -> _Row:
    if not getattr(tokenizer, "is_fast", False):
        raise ValueError(f"expected a fast tokenizer, which gives offsets, got {type(tokenizer).__name__}")
    given = tokenizer(prompt + text, return_offsets_mapping=True)
    places = [i for i, (_, end) in enumerate(given["offset_mapping"]) if end > len(prompt)]
    if not places or places[0] == 0:
        raise ValueError(
            f"expected a text of at least one token behind at least one, got {text!r} behind {prompt!r}"
        )
    end = places[-1] + 1
    if limit is not None and end > limit:
        raise ValueError(
            f"expected prompt and text of at most {limit} tokens, the model's context, got {end}: "
            f"{prompt[-60:]!r} "
            f"and {text[:60]!r}; shorten the prompt"
        )
    return _Row(list(given["input_ids"][:end]), end - places[0])


def _of_batch(decoder: Decoder, tokenizer: Any, rows: Sequence[_Row]) -> Iterator[Continuation]:
    """Padded on the left, so that logits are needed of the last columns only."""
    width, longest = max(len(row.ids) for row in rows), max(row.n for row in rows)
    pad = tokenizer.pad_token_id or 0
    ids = torch.tensor([[pad] * (width - len(row.ids)) + row.ids for row in rows])
    mask = torch.tensor([[0] * (width - len(row.ids)) + [1] * len(row.ids) for row in rows])
    inputs = placed_inputs(decoder, {"input_ids": ids, "attention_mask": mask})
    if decoder.accepts("logits_to_keep"):
        inputs["logits_to_keep"] = longest + 1
    with evaluation_mode(decoder), torch.no_grad():
        logits = decoder.given(**inputs).logits[:, -longest - 1 : -1]
        log_p = logits.to(torch.promote_types(logits.dtype, torch.float32)).log_softmax(-1)
        # a token of probability 0 adds nothing
        entropy = -(log_p.exp() * log_p.clamp_min(torch.finfo(log_p.dtype).min)).sum(-1).cpu()
        chosen = log_p.gather(2, ids[:, -longest:, None].to(log_p.device))[..., 0].cpu()
    for row, tokens, of_tokens, spread in zip(rows, ids, chosen, entropy):
        yield Continuation(tokens[-row.n :], of_tokens[-row.n :], spread[-row.n :])
