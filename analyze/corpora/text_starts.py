"""Texts cut to what a model reads of them, so that their surface is that of what was read."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import nn

from saelens_lite.lm.decoder import Decoder


def text_starts(
    model: nn.Module, tokenizer: Any, texts: Sequence[str], max_tokens: int | None = None
) -> list[str]:
    """Each text to the end of its last token within max_tokens, special ones included, and the model's
    longest context."""
    longest = getattr(Decoder(model).text_config, "max_position_embeddings", None)
    limit = min((n for n in (max_tokens, longest) if n is not None), default=None)
    if limit is None:
        return list(texts)
    cut = []
    for text in texts:
        offsets = tokenizer(text, return_offsets_mapping=True, truncation=True, max_length=limit)
        cut.append(text[: max((end for _, end in offsets["offset_mapping"]), default=0)])
    return cut
