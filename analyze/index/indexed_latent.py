"""TODO clause of analyze/index/indexed_latent.py."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch

from ..latents.text_windows import Context, Contexts, visible
from ..render.notebook import latent_html
from .feature_table import Firing, LatentFirings
from .intervals import Interval
from .labels import Label
from .unigram import is_unigram


@dataclass(frozen=True, slots=True)
class IndexedLatent:
    """All that an index knows of one latent.

    n_fired: rows on which it fired, of n_tokens
    first_fired, last_fired: the first and the last of them; -1 for never
    firings: the strongest, strongest first
    intervals: its firings in intervals of equal share, weakest first, with examples (see intervals.py)
    contrast: random rows on which it did not fire
    histogram: (low, high, firings) of the bins from the weakest to the strongest activation
    positions: firings by number of binary digits of the position in the context: 0, 1, 2–3, 4–7, …
    token_entropy: of the tokens of the strongest firings, nats; nan without tokens or firings
    common_token: the commonest token of its firings; "" for none
    token_share, top_token_share, pair_share: that token's share of its firings (see unigram.py); nan for none
    jaccard, pmi, cosine: (latent, score), nearest first: by rows on which both fire, and by decoder rows
    promoted, demoted: (token, logit) of the logit lens; empty without a model
    output_score: see outputscore.py; nan where it was not asked for
    label: what people wrote about it; None for nothing
    contexts: looks up the text of a row, such as those of the intervals
    """

    latent: int
    n_fired: int
    n_tokens: int
    first_fired: int
    last_fired: int
    firings: tuple[Firing, ...]
    intervals: tuple[Interval, ...]
    contrast: tuple[Context, ...]
    histogram: tuple[tuple[float, float, int], ...]
    positions: tuple[int, ...]
    token_entropy: float
    common_token: str
    token_share: float
    top_token_share: float
    pair_share: float
    jaccard: tuple[tuple[int, float], ...]
    pmi: tuple[tuple[int, float], ...]
    cosine: tuple[tuple[int, float], ...]
    promoted: tuple[tuple[str, float], ...]
    demoted: tuple[tuple[str, float], ...]
    output_score: float
    label: Label | None
    contexts: Contexts = field(compare=False)

    @property
    def density(self) -> float:
        """Share of rows on which it fired."""
        return self.n_fired / self.n_tokens

    @property
    def unigram(self) -> bool:
        """Whether it fires on one token nearly always."""
        return bool(is_unigram(*map(torch.tensor, (self.n_fired, self.token_share, self.top_token_share))))

    def __repr__(self) -> str:
        lines = [repr(LatentFirings(self.latent, self.n_fired, self.n_tokens, self.firings[:5]))]
        if self.label is not None:
            lines.insert(
                1,
                f"  label: {'★ ' * self.label.starred}{visible(self.label.label)}"
                + f" ({visible(self.label.notes)})" * bool(self.label.notes),
            )
        if self.intervals:
            edges = [self.intervals[0].low, *(interval.high for interval in self.intervals)]
            lines.append("  quantiles " + "  ".join(f"{edge:.3g}" for edge in edges))
        if not math.isnan(self.token_entropy):
            lines.append(
                f"  token entropy {self.token_entropy:.2f} nats of {math.log(max(len(self.firings), 1)):.2f}"
            )
        if not math.isnan(self.token_share):
            lines.append(
                f"  {visible(self.common_token)!r} has {self.token_share:.0%} of its firings, "
                f"{self.top_token_share:.0%} of "
                f"the strongest{': unigram' * self.unigram}"
            )
        for name in ("jaccard", "pmi", "cosine"):
            if nearest := getattr(self, name)[:5]:
                lines.append(
                    f"  {name:<8} " + "  ".join(f"{latent} {score:.2f}" for latent, score in nearest)
                )
        for name in ("promoted", "demoted"):
            if tokens := getattr(self, name)[:8]:
                lines.append(f"  {name:<8} " + " ".join(repr(visible(token)) for token, _ in tokens))
        if not math.isnan(self.output_score):
            lines.append(f"  output score {self.output_score:.3g}")
        return "\n".join(lines)

    def _repr_html_(self) -> str:
        """For notebooks: HTML without script, all text escaped."""
        return latent_html(self)
