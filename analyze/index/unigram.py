"""Latents that stand for one token: whatever the text, they fire on that token and on hardly anything else.

    token share      share of a latent's firings on its commonest token, in the index's uniform sample of them
    top token share  the same over its strongest firings
    pair share       share of the sampled firings on its commonest pair of a token and the one before it

A latent is flagged as unigram where both token shares are at least UNIGRAM_SHARE and it fired MIN_FIRINGS
times or more. `token_entropy` looks at the strongest firings alone: a latent whose weak firings are on many
tokens has entropy 0 there and is not flagged here. A pair share near the token share says that what comes
before the token matters too.

Tokens are ids, so " The" and " the" are two. Where a latent fired more often than the sample holds
(IndexConfig.n_sample), the share is an estimate: of 40 firings and a true share of 0.9 its standard deviation
is 0.05.
"""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor

from saelens_lite.store.reader import ActivationStore

from .tally import Tally
from .token_table import token_ids

UNIGRAM_SHARE = 0.9
MIN_FIRINGS = 10
_PAIR_BASE = 2**31
_CHUNK_FIRINGS = 2**22


@dataclasses.dataclass(frozen=True, slots=True)
class UnigramLatent:
    latent: int
    token: str
    n_fired: int
    token_share: float
    top_token_share: float
    pair_share: float

    def __repr__(self) -> str:
        return (
            f"latent {self.latent:>7}  {self.token!r:<14}  {self.token_share:4.0%} of its firings, "
            f"{self.top_token_share:4.0%} of the strongest; with the token before "
            f"{self.pair_share:4.0%}; fired {self.n_fired:,} times"
        )


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class UnigramShare:
    """Which latents are flagged: bool[d_sae]; counts: int64[d_sae], rows on which each fired."""

    flagged: Tensor
    counts: Tensor

    @property
    def share(self) -> float:
        """Of the latents that fired MIN_FIRINGS times or more; nan where there are none."""
        return int(self.flagged.sum()) / n if (n := int((self.counts >= MIN_FIRINGS).sum())) else float("nan")

    def __repr__(self) -> str:
        n, of = int(self.flagged.sum()), int((self.counts >= MIN_FIRINGS).sum())
        fired = f"{n:,} of {of:,} latents with {MIN_FIRINGS} firings or more"
        return f"unigram: {fired} fire on one token nearly always"


def is_unigram(n_fired: Tensor, token_share: Tensor, top_token_share: Tensor) -> Tensor:
    """Which latents are flagged: bool[...]; nan, of rows without tokens or a silent latent, is not."""
    return (token_share.minimum(top_token_share) >= UNIGRAM_SHARE) & (n_fired >= MIN_FIRINGS)


def token_shares(store: ActivationStore, tally: Tally) -> dict[str, Tensor]:
    """token_share, top_token_share, pair_share float32[d_sae], and common_token int32[d_sae], -1 for none.

    Shares are nan for a latent without firings, rows without tokens, or an index without samples.
    """
    d_sae, sampled = tally.d_sae, tally.sample.rows
    names = ("token_share", "top_token_share", "pair_share")
    shares = {name: torch.full((d_sae,), torch.nan) for name in names}
    common = torch.full((d_sae,), -1, dtype=torch.int32)
    if store.has_tokens:
        for latents in torch.arange(d_sae).split(max(1, _CHUNK_FIRINGS // max(sampled.shape[1], 1))):
            tokens = token_ids(store, sampled[latents])
            before = 1 + token_ids(store, sampled[latents], back=1)
            pairs = torch.where(tokens < 0, -1, tokens + _PAIR_BASE * before)
            most_common, shares["token_share"][latents] = commonest(tokens)
            common[latents] = most_common.int()
            shares["pair_share"][latents] = commonest(pairs)[1]
            shares["top_token_share"][latents] = commonest(token_ids(store, tally.top.rows[latents]))[1]
    return shares | {"common_token": common}


def commonest(ids: Tensor) -> tuple[Tensor, Tensor]:
    """The number that each row has most often, the lowest of several, and its share: int64[n], -1 for none;
    float32[n], nan. ids: int64[n m], -1 in empty places"""
    if ids.shape[1] == 0:
        return ids.new_full((len(ids),), -1), torch.full((len(ids),), torch.nan)
    ascending = ids.sort(dim=1).values
    begins = torch.ones_like(ascending, dtype=torch.bool)
    begins[:, 1:] = ascending[:, 1:] != ascending[:, :-1]
    runs, there = begins.cumsum(1) - 1, ascending >= 0
    lengths = torch.zeros_like(ascending).scatter_add_(1, runs, there.long())
    longest = lengths.argmax(1, keepdim=True)
    found = ascending.gather(1, (runs == longest).int().argmax(1, keepdim=True))[:, 0]
    total, most = there.sum(1), lengths.gather(1, longest)[:, 0]
    return torch.where(total > 0, found, -1), (most / total).float()
