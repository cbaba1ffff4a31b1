"""Reading a feature index: everything about one latent at once, or one number of all latents, mapped from disk."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from saelens_lite.errors import FeatureIndexError
from saelens_lite.files import LocalFolder
from saelens_lite.sae import SparseAutoencoder
from saelens_lite.store import ActivationStore

from .context import Context, Contexts, token_text, visible
from .dead import LatentDensity
from .indexfile import PARTS, check_same_sae, identity, index_folder, open_tensors, read_index
from .intervals import Interval, intervals
from .labels import Label, Labels
from .lens import LogitLens
from .notebookview import index_html, latent_html
from .table import Firing, LatentFirings
from .tally import Tally, bin_edges
from .tokensample import TokenSample
from .tokentable import TokenTable
from .unigram import UnigramShare, is_unigram

_ANALYZE = "`saelens-lite analyze` with the same --sae, --store and --index, and --model"
_OF_MODEL = {f"{end}_{what}": _ANALYZE for end in ("promoted", "demoted") for what in ("ids", "logits")}
_OF_MODEL["output_score"] = f"{_ANALYZE} --output-score"
"""What an index made without a model lacks, and what adds it."""


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
            lines.append(f"  token entropy {self.token_entropy:.2f} nats of {math.log(max(len(self.firings), 1)):.2f}")
        if not math.isnan(self.token_share):
            lines.append(
                f"  {visible(self.common_token)!r} has {self.token_share:.0%} of its firings, {self.top_token_share:.0%} of "
                f"the strongest{': unigram' * self.unigram}"
            )
        for name in ("jaccard", "pmi", "cosine"):
            if nearest := getattr(self, name)[:5]:
                lines.append(f"  {name:<8} " + "  ".join(f"{latent} {score:.2f}" for latent, score in nearest))
        for name in ("promoted", "demoted"):
            if tokens := getattr(self, name)[:8]:
                lines.append(f"  {name:<8} " + " ".join(repr(visible(token)) for token, _ in tokens))
        if not math.isnan(self.output_score):
            lines.append(f"  output score {self.output_score:.3g}")
        return "\n".join(lines)

    def _repr_html_(self) -> str:
        """For notebooks: HTML without script, all text escaped."""
        return latent_html(self)


class FeatureIndex:
    """A finished feature index, open for reading; all data is memory-mapped.

        index = FeatureIndex.open("index/")
        index[1234]                    # everything about one latent
        index.column("counts")         # one number of every latent

    raises, from `open`: FeatureIndexError if the folder is no index, is unfinished, or a file is missing or altered
    """

    def __init__(self, folder: LocalFolder, facts: dict[str, Any], tokenizer: Any, context_tokens: int) -> None:
        self.folder, self._facts = folder, facts
        self.plan: dict[str, Any] = facts["plan"]
        files = facts["files"]
        self._latents = open_tensors(folder, files["latents"]["file"], files["latents"]["bytes"])
        self._tokens = open_tensors(folder, files["tokens"]["file"], files["tokens"]["bytes"])
        self._names = set(self._latents.keys())
        self.tokens = TokenTable(self._tokens, self.path, self.plan["store"]["tokenizer"], facts["bos_id"])
        self.contexts = Contexts(self.tokens, tokenizer, context_tokens, context_tokens // 2)
        self.labels = Labels(folder.root / "labels.sqlite", self.sae)

    @classmethod
    def open(cls, path: str | os.PathLike[str], tokenizer: Any = None, context_tokens: int = 16) -> FeatureIndex:
        """The index in a folder.

        tokenizer: None loads the store's own when text is first shown
        context_tokens: tokens shown before the firing one; half as many after it
        """
        folder = index_folder(path)
        facts = read_index(folder)
        if facts is None:
            if folder.sizes(PARTS):
                raise FeatureIndexError(f"the index {path} is unfinished: give the same command again, and it goes on")
            makes = f"`saelens-lite analyze STORE SAE --index {path}`"
            raise FeatureIndexError(f"the index {path} does not exist; {makes} makes it")
        return cls(folder, facts, tokenizer, context_tokens)

    @property
    def path(self) -> Path:
        return self.folder.root

    @property
    def sae(self) -> dict[str, Any]:
        """What the SAE is, with the sha256 of its weights."""
        return self.plan["sae"]

    @property
    def hook_point(self) -> str:
        return self.plan["hook_point"]

    @property
    def n_tokens(self) -> int:
        """Rows that the counts are over."""
        return self.plan["rows"]

    def __len__(self) -> int:
        return self.sae["d_sae"]

    def __iter__(self) -> Iterator[IndexedLatent]:
        return (self[latent] for latent in range(len(self)))

    def __repr__(self) -> str:
        extras = " and ".join(name for name, there in sorted(self._facts["has"].items()) if there)
        return (
            f"FeatureIndex({str(self.path)!r}, {len(self):,} latents of {self.hook_point} over {self.n_tokens:,} tokens"
            f"{f', with {extras}' if extras else ''})"
        )

    def _repr_html_(self) -> str:
        """For notebooks: HTML without script, all text escaped."""
        return index_html(self)

    def check(self, sae: SparseAutoencoder, store: ActivationStore | None = None) -> None:
        """raises: ValueError naming both unless this is the index of that SAE, and over that store where one is given"""
        check_same_sae(self.folder, self.sae, identity(sae), "open the index of this SAE, or make one")
        if store is not None and store.fingerprint != self.plan["store"]["sha256"]:
            raise ValueError(
                f"{self.path} is an index over the store {self.plan['store']['sha256'][:8]}, not over {store.path} "
                f"({store.fingerprint[:8]}): make one over this store"
            )

    def column(self, name: str) -> Tensor:
        """One tensor of all latents, by its name in the file (see indexfile.py): [d_sae ...].

        raises: ValueError for a name that this index lacks
        """
        if name not in self._names:
            if name in _OF_MODEL:
                raise ValueError(f"{self.path} has no {name!r}: {_OF_MODEL[name]} adds it, without another pass")
            raise ValueError(f"{self.path} has no {name!r}; it has {', '.join(sorted(self._names))}")
        return self._latents.get_tensor(name)

    def row(self, name: str, latent: int) -> Tensor:
        """What a column holds of one latent, read without the others: [...]."""
        return self._latents.get_slice(name)[latent : latent + 1][0]

    def has(self, what: str) -> bool:
        """Whether it was made with "lens" or "output_score"."""
        return bool(self._facts["has"][what])

    @cached_property
    def tally(self) -> Tally:
        """The counts of the pass; read it, do not write to it."""
        names = ("counts", "first_fired", "last_fired", "histogram", "positions")
        tensors = {name: self.column(name) for name in (*names, "top_values", "top_rows", "sample_values", "sample_rows")}
        tensors["token_positions"] = torch.tensor(self._facts["token_positions"])
        return Tally.from_tensors(tensors | {"n_tokens": torch.tensor([self.n_tokens])}, self.plan["settings"]["seed"])

    @cached_property
    def token_sample(self) -> TokenSample:
        """The rows whose firings are kept together."""
        names = [name for name in self._tokens.keys() if name.startswith("token_sample_")]  # noqa: SIM118
        return TokenSample.from_tensors({name: self._tokens.get_tensor(name) for name in names})

    def lens(self, latents: Tensor | None = None, tokenizer: Any = None) -> LogitLens | None:
        """The logit lens of latents int64[m], None for all; None where the index has none."""
        if "promoted_ids" not in self._names:
            return None
        latents = torch.arange(len(self)) if latents is None else latents
        ends = (self.column(name)[latents] for name in ("promoted_ids", "promoted_logits", "demoted_ids", "demoted_logits"))
        return LogitLens(latents, *ends, tokenizer=tokenizer or self.contexts.tokenizer)

    @property
    def density(self) -> LatentDensity:
        """How often each latent fires."""
        return LatentDensity(self.column("counts"), self.n_tokens)

    @property
    def unigram(self) -> UnigramShare:
        """Which latents fire on one token nearly always. raises: ValueError for rows without text, or without samples"""
        if not self.tokens.has_tokens:
            raise ValueError(f"{self.path} is of rows without text: no latent of it fires on a token")
        if not self.plan["settings"]["n_sample"]:
            raise ValueError(f"{self.path} sampled no firings, of which shares are taken: index with n_sample of 1 or more")
        counts = self.column("counts")
        return UnigramShare(is_unigram(counts, self.column("token_share"), self.column("top_token_share")), counts)

    def __getitem__(self, latent: int) -> IndexedLatent:
        """Everything about one latent, whatever their number. raises: ValueError for one out of range"""
        if not hasattr(latent, "__index__") or not 0 <= latent < len(self):
            raise ValueError(f"expected a latent from 0 to {len(self) - 1}, got {latent}: {self.path} has {len(self):,}")

        def of(name: str) -> Tensor:
            return self.row(name, latent)

        n_fired, values = int(of("counts")), of("top_values")
        kept = zip(values.tolist(), of("top_rows").tolist())
        histogram, edges = of("histogram"), bin_edges()
        filled = histogram.nonzero().flatten().tolist()
        return IndexedLatent(
            latent=latent,
            n_fired=n_fired,
            n_tokens=self.n_tokens,
            first_fired=int(of("first_fired")),
            last_fired=int(of("last_fired")),
            firings=tuple(Firing(value, self.contexts.at(row)) for value, row in kept if row >= 0),
            intervals=intervals(histogram, of("sample_values"), of("sample_rows"), n_fired, float(values[0])),
            contrast=tuple(self.contexts.at(row) for row in of("contrast_rows").tolist() if row >= 0),
            histogram=tuple((edges[b], edges[b + 1], int(histogram[b])) for b in range(filled[0], filled[-1] + 1))
            if filled
            else (),
            positions=tuple(of("positions").tolist()),
            token_entropy=float(of("token_entropy")),
            common_token=self.token_text(int(of("common_token"))),
            **{name: float(of(name)) for name in ("token_share", "top_token_share", "pair_share")},
            **{name: _pairs(of(f"{name}_ids"), of(name)) for name in ("jaccard", "pmi", "cosine")},
            **{name: self._lens(name, of) for name in ("promoted", "demoted")},
            output_score=float(of("output_score")) if "output_score" in self._names else math.nan,
            label=self.labels.get(latent),
            contexts=self.contexts,
        )

    def token_text(self, token: int) -> str:
        """The text of a token as it reads inside a text; "" for -1."""
        return "" if token < 0 else token_text(self.contexts.tokenizer, token)

    def _lens(self, end: str, of: Any) -> tuple[tuple[str, float], ...]:
        if f"{end}_ids" not in self._names:
            return ()
        pairs = _pairs(of(f"{end}_ids"), of(f"{end}_logits"))
        return tuple((token_text(self.contexts.tokenizer, token), logit) for token, logit in pairs)


def _pairs(ids: Tensor, scores: Tensor) -> tuple[tuple[int, float], ...]:
    return tuple((i, score) for i, score in zip(ids.tolist(), scores.tolist()) if i >= 0)
