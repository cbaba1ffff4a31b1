"""Where a latent fires most strongly in texts, as snippets with the token marked."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
from torch import Tensor, nn

from saelens_lite.sae.autoencoder import SparseAutoencoder

from ..latents.text_latents import EncodedText, encode_text
from ..latents.text_windows import visible
from ..probing.pooling import PooledLatents
from .differing_latents import CorpusDifference

_BEFORE, _AFTER = 8, 4


def with_examples(
    found: CorpusDifference,
    model: nn.Module,
    tokenizer: Any,
    sae: SparseAutoencoder,
    features: PooledLatents,
    texts: Sequence[str],
    in_a: Tensor,
    *,
    n: int = 2,
    n_latents: int = 20,
    hook_point: str | None = None,
) -> CorpusDifference:
    """The same rows, the first n_latents with the n texts in which each fires most strongly, of the corpus in
    which it fires more often. texts, in_a: as for `compare_corpora`"""
    encoded: dict[int, EncodedText] = {}
    rows, latents = list(found.rows), features.latents.tocsc()
    for i, row in enumerate(rows[:n_latents]):
        more = in_a.numpy() if row.rate_a > row.rate_b else ~in_a.numpy()
        acts = np.where(more, latents[:, [row.latent]].toarray().ravel(), 0)
        best = [text for text in np.argsort(-acts, kind="stable")[:n].tolist() if acts[text] > 0]
        snippets = []
        for text in best:
            if text not in encoded:
                encoded[text] = encode_text(model, tokenizer, sae, texts[text], hook_point=hook_point)
            snippets.append(_snippet(encoded[text], row.latent))
        rows[i] = dataclasses.replace(row, examples=tuple(snippets))
    return dataclasses.replace(found, rows=tuple(rows))


def _snippet(encoded: EncodedText, latent: int) -> str:
    """Some tokens around the strongest firing, which stands in ⟦ ⟧."""
    at = int(encoded[latent].argmax())
    tokens = [visible(token) for token in encoded.tokens]
    start = max(encoded.n_bos, at - _BEFORE)
    return f"{''.join(tokens[start:at])}⟦{tokens[at]}⟧{''.join(tokens[at + 1 : at + 1 + _AFTER])}"
