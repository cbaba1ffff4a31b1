"""A few numbers of every latent, as arrays: what a page lists, sorts and scatters."""

from __future__ import annotations

import torch
from torch import Tensor

from ..index.feature_index import FeatureIndex
from ..index.token_table import token_ids
from ..index.unigram import is_unigram

GIST_TOKENS = 8
"""Distinct tokens of its strongest firings that stand for a latent."""

_NUMBERS = ("token_entropy", "token_share", "output_score")
_CHUNK_LATENTS = 2**15


def latent_table(index: FeatureIndex, decoder_norms: Tensor | None = None) -> dict[str, Tensor]:
    """The columns, each of d_sae rows.

    fired: float64, tokens on which it fires; max: float32, 0 where it never fired
    entropy, share, score, cosine, first, norm: float32, those that the index has: of the tokens of its
        strongest firings; of its commonest token; output score; with the nearest decoder row; of its firings
        on position 0; of its decoder row. nan for none
    unigram: uint8; gist: int32[d_sae GIST_TOKENS], tokens of its strongest firings, each once, -1 for none
    """
    counts, positions = index.column("counts"), index.column("positions")
    columns = {"fired": counts.double(), "max": index.column("top_values")[:, 0].float()}
    for name in _NUMBERS:
        if name != "output_score" or index.has("output_score"):
            columns[name.rpartition("_")[2]] = index.column(name).float()
    if index.plan["settings"]["n_neighbors"]:
        nearest = index.column("cosine")[:, 0]
        columns["cosine"] = nearest.masked_fill(index.column("cosine_ids")[:, 0] < 0, torch.nan)
    if positions.any():
        columns["first"] = positions[:, 0] / counts.clamp_min(1)
        columns["first"][counts == 0] = torch.nan
    if decoder_norms is not None:
        columns["norm"] = decoder_norms.float().cpu()
    shares = index.column("token_share"), index.column("top_token_share")
    columns["unigram"] = is_unigram(counts, *shares).to(torch.uint8)
    columns["gist"] = _gist(index)
    return {name: column for name, column in columns.items() if not _empty(column)}


def _empty(column: Tensor) -> bool:
    return column.is_floating_point() and bool(column.isnan().all())


def _gist(index: FeatureIndex) -> Tensor:
    """int32[d_sae GIST_TOKENS]"""
    rows = index.column("top_rows")
    found = torch.full((len(rows), GIST_TOKENS), -1, dtype=torch.int32)
    if not index.tokens.has_tokens:
        return found
    for latents in torch.arange(len(rows)).split(_CHUNK_LATENTS):
        ids = token_ids(index.tokens, rows[latents])
        earlier = torch.ones(ids.shape[1], ids.shape[1], dtype=torch.bool).tril(-1)
        again = ((ids[:, :, None] == ids[:, None, :]) & earlier).any(2) | (ids < 0)
        order = again.int().argsort(dim=1, stable=True)[:, :GIST_TOKENS]
        kept = ids.gather(1, order).masked_fill(again.gather(1, order), -1)
        found[latents, : kept.shape[1]] = kept.int()
    return found
