"""All that an index knows of one latent, which print, notebooks, pages and searches show."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch

from saelens_lite.sae.metrics import rate_interval

from ..latents.text_windows import Context, Contexts, token_text, visible
from ..render.html import rendered
from .feature_table import Firing, LatentFirings
from .intervals import Interval
from .labels import Label
from .tally import bin_edges
from .unigram import is_unigram

N_QUANTILES = 20


@dataclass(frozen=True, slots=True)
class LatentFacts:
    """All that an index knows of one latent: numbers as they are stored, texts looked up when they are read.

    n_fired: rows on which it fired, of n_tokens
    first_fired, last_fired: the first and the last of them; -1 for never
    strongest: (activation, row) of its strongest firings, strongest first
    intervals: its firings in intervals of equal share, weakest first, with examples (see intervals.py)
    quantiles: the activations that 0, 5, …, 100 % of its firings are below; empty where it never fired
    contrast_rows: random rows on which it did not fire
    first_bin, bin_counts: firings by bin (tally.bin_edges), from the weakest activation to the strongest
    positions: firings by number of binary digits of the position in the context: 0, 1, 2–3, 4–7, …
    token_entropy: of the tokens of the strongest firings, nats; nan without tokens or firings
    common_token_id: the commonest token of its firings; -1 for none
    token_share, top_token_share, pair_share: that token's share of its firings (see unigram.py); nan for none
    jaccard, pmi, cosine: (latent, score), nearest first: by rows on which both fire, and by decoder rows
    promoted_ids, demoted_ids: (token id, logit) of the logit lens; empty without a model
    output_score: see output_score.py; nan where it was not asked for
    label: what people wrote about it; None for nothing
    contexts: looks up the text of a row
    """

    latent: int
    n_fired: int
    n_tokens: int
    first_fired: int
    last_fired: int
    strongest: tuple[tuple[float, int], ...]
    intervals: tuple[Interval, ...]
    quantiles: tuple[float, ...]
    contrast_rows: tuple[int, ...]
    first_bin: int
    bin_counts: tuple[int, ...]
    positions: tuple[int, ...]
    token_entropy: float
    common_token_id: int
    token_share: float
    top_token_share: float
    pair_share: float
    jaccard: tuple[tuple[int, float], ...]
    pmi: tuple[tuple[int, float], ...]
    cosine: tuple[tuple[int, float], ...]
    promoted_ids: tuple[tuple[int, float], ...]
    demoted_ids: tuple[tuple[int, float], ...]
    output_score: float
    label: Label | None
    contexts: Contexts = field(compare=False)

    @property
    def density(self) -> float:
        """Share of rows on which it fired."""
        return self.n_fired / self.n_tokens

    @property
    def density_interval(self) -> tuple[float, float]:
        """The 95 % interval of the density, with tokens taken as independent."""
        return rate_interval(self.n_fired, self.n_tokens)

    @property
    def largest(self) -> float:
        """Its largest activation; 0 where it never fired."""
        return self.strongest[0][0] if self.strongest else 0.0

    @property
    def firings(self) -> tuple[Firing, ...]:
        """The strongest firings with their text, strongest first."""
        return tuple(Firing(value, self.contexts.at(row)) for value, row in self.strongest)

    @property
    def contrast(self) -> tuple[Context, ...]:
        """The text of random rows on which it did not fire."""
        return tuple(map(self.contexts.at, self.contrast_rows))

    @property
    def histogram(self) -> tuple[tuple[float, float, int], ...]:
        """(low, high, firings) of the bins from the weakest to the strongest activation."""
        edges = bin_edges()[self.first_bin :]
        return tuple(zip(edges, edges[1:], self.bin_counts))

    @property
    def unigram(self) -> bool:
        """Whether it fires on one token nearly always."""
        return bool(is_unigram(*map(torch.tensor, (self.n_fired, self.token_share, self.top_token_share))))

    @property
    def common_token(self) -> str:
        """The commonest token of its firings; "" for none."""
        return "" if self.common_token_id < 0 else token_text(self.contexts.tokenizer, self.common_token_id)

    @property
    def promoted(self) -> tuple[tuple[str, float], ...]:
        """(token, logit) of the tokens that the logit lens says it raises; empty without a model."""
        return self._tokens(self.promoted_ids)

    @property
    def demoted(self) -> tuple[tuple[str, float], ...]:
        """(token, logit) of those that it lowers."""
        return self._tokens(self.demoted_ids)

    def _tokens(self, pairs: tuple[tuple[int, float], ...]) -> tuple[tuple[str, float], ...]:
        return tuple((token_text(self.contexts.tokenizer, token), logit) for token, logit in pairs)

    def __repr__(self) -> str:
        shown = tuple(Firing(value, self.contexts.at(row)) for value, row in self.strongest[:5])
        lines = [repr(LatentFirings(self.latent, self.n_fired, self.n_tokens, shown))]
        if self.label is not None:
            notes = f" ({visible(self.label.notes)})" if self.label.notes else ""
            lines.insert(1, f"  label: {'★ ' * self.label.starred}{visible(self.label.label)}{notes}")
        if self.intervals:
            edges = [self.intervals[0].low, *(interval.high for interval in self.intervals)]
            lines.append("  quantiles " + "  ".join(f"{edge:.3g}" for edge in edges))
        if not math.isnan(self.token_entropy):
            largest = math.log(max(len(self.strongest), 1))
            lines.append(f"  token entropy {self.token_entropy:.2f} nats of {largest:.2f}")
        if not math.isnan(self.token_share):
            lines.append(
                f"  {visible(self.common_token)!r} has {self.token_share:.0%} of its firings, "
                f"{self.top_token_share:.0%} of the strongest{': unigram' * self.unigram}"
            )
        for name in ("jaccard", "pmi", "cosine"):
            if nearest := getattr(self, name)[:5]:
                pairs = "  ".join(f"{latent} {score:.2f}" for latent, score in nearest)
                lines.append(f"  {name:<8} {pairs}")
        for name in ("promoted", "demoted"):
            if tokens := getattr(self, name)[:8]:
                lines.append(f"  {name:<8} " + " ".join(repr(visible(token)) for token, _ in tokens))
        if not math.isnan(self.output_score):
            lines.append(f"  output score {self.output_score:.3g}")
        return "\n".join(lines)

    def _repr_html_(self) -> str:
        """For notebooks: HTML without script."""
        return rendered("latent.html", latent=self)
