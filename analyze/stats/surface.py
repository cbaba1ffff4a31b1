"""What the surface of texts says, as rivals of latents: lengths, places, how common the tokens are."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from saelens_lite.misfits import names_misfits


@names_misfits
def surface_rivals(
    tokenizer: Any,
    texts: Sequence[str],
    spans: Sequence[tuple[int, int]] | None = None,
    *,
    token_counts: Tensor | None = None,
) -> dict[str, Tensor]:
    """Numbers of each text that need no model, float64[n] by name, for `against_rivals`.

    Without spans "tokens", "characters" and "log probability", the mean over tokens of the log of their
    share of all tokens (unigrams). With spans, of what they hold "entity tokens", "entity characters",
    "entity log probability" and "position", the place of its last token, and of the whole text "prompt
    tokens". Special tokens are left out, and so is what is the same of all texts.

    texts: such as prompts; spans: of each, start and end in characters, such as an entity's
    token_counts: int64[vocabulary], of text at large; by default of these texts, each once. One is added to
        each
    raises: ValueError for no texts, a tokenizer without offsets, a text or span without a token, or counts of
        another vocabulary
    """
    if not texts or (spans is not None and len(spans) != len(texts)):
        n_spans = "none" if spans is None else len(spans)
        raise ValueError(
            f"surface_rivals expected texts, and a span of each or none, got {len(texts)} and {n_spans}"
        )
    if not getattr(tokenizer, "is_fast", False):
        raise ValueError(f"expected a fast tokenizer, which gives offsets, got {type(tokenizer).__name__}")
    encoded = [tokenizer(text, return_offsets_mapping=True) for text in texts]
    whole = [_inside(one, 0, len(text)) for one, text in zip(encoded, texts)]
    part = whole if spans is None else [_inside(one, *span) for one, span in zip(encoded, spans)]
    for text, ids in zip(texts, part):
        if not ids:
            raise ValueError(f"expected a token in each text, and in its span, got none in {text[:80]!r}")
    log_p = _log_shares(tokenizer, dict(zip(texts, whole)), token_counts)
    means = [float(log_p[[id_ for _, id_ in ids]].mean()) for ids in part]
    n_tokens = [len(ids) for ids in part]
    if spans is None:
        found = {"tokens": n_tokens, "characters": list(map(len, texts)), "log probability": means}
    else:
        found = {
            "entity tokens": n_tokens,
            "entity characters": [end - start for start, end in spans],
            "entity log probability": means,
            "position": [ids[-1][0] for ids in part],
            "prompt tokens": list(map(len, whole)),
        }
    numbers = {name: torch.tensor(of, dtype=torch.float64) for name, of in found.items()}
    return {name: of for name, of in numbers.items() if len(of.unique()) > 1}


def _inside(encoded: Any, start: int, end: int) -> list[tuple[int, int]]:
    """(place, id) of the tokens that hold a character from start to end."""
    rows = zip(encoded["input_ids"], encoded["offset_mapping"])
    return [
        (place, id_) for place, (id_, (left, right)) in enumerate(rows) if max(left, start) < min(right, end)
    ]


def _log_shares(tokenizer: Any, ids_of: dict[str, list[tuple[int, int]]], counts: Tensor | None) -> Tensor:
    """float64[vocabulary], in nats."""
    n = len(tokenizer)
    if counts is None:
        every = torch.tensor([id_ for ids in ids_of.values() for _, id_ in ids])
        counts = torch.bincount(every, minlength=n)
    elif counts.ndim != 1 or len(counts) < n:
        raise ValueError(f"token_counts expected {n} counts, one of each token, got {list(counts.shape)}")
    smoothed = counts.cpu().double() + 1
    return (smoothed / smoothed.sum()).log()
