"""Latents that fire in more documents of one corpus than of another, and whether the surface explains it.

A document counts once for a latent that fires in it, however often. Rates are compared by Fisher's exact
test, with Benjamini and Hochberg's correction over all latents of the SAE. Two guards stand beside each
discovery: the same difference among documents of like length and word frequency (a stratum is a fifth of the
documents by one, and of these a fifth by the other), and the verdict of the rivals' guard (stats/rivals.py),
which asks on documents kept apart whether the latent tells the corpora apart better than that surface does.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from saelens_lite.misfits import names_misfits
from saelens_lite.text_table import Lines, Tabular, number, plain, span

from ..probing.pooling import PooledLatents
from ..stats.bootstrap import benjamini_hochberg
from ..stats.document_split import Split, document_ids
from ..stats.rivals import BEYOND, against_rivals
from .matched_rates import fisher_p, mantel_haenszel, newcombe

_FIFTHS = torch.arange(1, 5, dtype=torch.float64) / 5
MOST_SHOWN = 40
"""Rows of the printed table; `to_frame`, `to_csv` and `to_dict` have all."""
MOST_JUDGED = 100
"""Discoveries, those of the largest difference, that get a verdict."""


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class DifferingLatent:
    """One discovery.

    rate_a, rate_b: share of either corpus' documents in which it fires
    difference: rate_a − rate_b, with the ends of its 95 % interval; matched: among documents of like surface
    q: p of Fisher's test after Benjamini and Hochberg
    verdict: of the rivals' guard; None where it was not judged
    """

    latent: int
    rate_a: float
    rate_b: float
    difference: tuple[float, float, float]
    matched: tuple[float, float, float]
    p: float
    q: float
    verdict: str | None
    examples: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class CorpusDifference(Tabular):
    """What `compare_corpora` found: rows of latents, those of the largest difference first; `print(found)`.

    n_a, n_b: documents of either corpus; n_latents: tested; q: the share of false discoveries allowed
    """

    rows: tuple[DifferingLatent, ...]
    n_a: int
    n_b: int
    n_latents: int
    q: float

    @property
    def beyond_the_surface(self) -> tuple[DifferingLatent, ...]:
        """Those that no rival explains."""
        return tuple(row for row in self.rows if row.verdict == BEYOND)

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers, for JSON."""
        return plain(dataclasses.asdict(self))

    def _tables(self) -> list[tuple[str, Lines]]:
        heads = ["latent", "in A", "in B", "difference", "95 %", "matched", "95 %", "q", "verdict"]
        lines = [
            [
                f"{row.latent}",
                f"{row.rate_a:.3f}",
                f"{row.rate_b:.3f}",
                f"{row.difference[0]:+.3f}",
                span(*row.difference[1:], "+.3f"),
                number(row.matched[0], "+.3f"),
                "n/a" if np.isnan(row.matched[0]) else span(*row.matched[1:], "+.3f"),
                f"{row.q:.2g}",
                row.verdict or "not judged",
            ]
            for row in self.rows[:MOST_SHOWN]
        ]
        return [("", [heads, *lines])]

    def _notes(self) -> list[str]:
        found = f"{len(self.rows)} of {self.n_latents:,} latents fire in more documents of one corpus"
        notes = [
            f"{found} (false discoveries {self.q:.0%} at most, Benjamini–Hochberg); A has {self.n_a:,} "
            f"documents, B {self.n_b:,}",
            "matched: among documents of like length and word frequency; verdict: beside these as rivals",
        ]
        if len(self.rows) > MOST_SHOWN:
            notes.insert(1, f"shown are the {MOST_SHOWN} of the largest difference; JSON and CSV have all")
        for row in self.rows[:MOST_SHOWN]:
            notes += [f"  {row.latent}: {text}" for text in row.examples]
        return notes

    def __repr__(self) -> str:
        return self.table()


@names_misfits
def compare_corpora(
    features: PooledLatents,
    in_a: Tensor,
    rivals: Mapping[str, Tensor],
    *,
    q: float = 0.1,
    seed: int = 0,
) -> CorpusDifference:
    """Latents that fire in more documents of corpus A than of B, or of B than of A.

        features = pooled_latents(model, tokenizer, texts_a + texts_b, sae, pool="max")
        in_a = torch.arange(len(features)) < len(texts_a)
        print(compare_corpora(features, in_a, surface_rivals(tokenizer, texts_a + texts_b)))

    features: of one SAE, pooled by "max", so that one firing counts
    in_a: bool[n], which texts are of A; a text that a corpus holds twice counts once
    rivals: float[n] by name, numbers of the surface, such as `surface_rivals` gives; "tokens" and
        "log probability" are those that documents are matched by
    q: share of false discoveries allowed, above 0 and below 1
    raises: ValueError for features that are not pooled by max, a corpus without texts, or q out of range
    """
    if features.pool != "max":
        raise ValueError(f'compare_corpora expected features of pool="max", got {features.pool!r}')
    if not 0 < q < 1:
        raise ValueError(f"q expected above 0 and below 1, got {q}")
    in_a = torch.as_tensor(in_a).cpu().bool().reshape(-1)
    if len(in_a) != len(features) or not 0 < int(in_a.sum()) < len(in_a):
        raise ValueError(
            f"in_a expected which of {len(features)} texts are of A, some and not all, got "
            f"{int(in_a.sum())} of {len(in_a)}"
        )
    once = _first_of_each(features.documents, in_a)
    latents, documents, in_a = features.latents[once.numpy()], features.documents[once], in_a[once]
    rivals = {name: torch.as_tensor(of).double()[once] for name, of in rivals.items()}
    is_a, fires = in_a.numpy(), (latents > 0).astype(np.float64)
    n_a, n_b = int(is_a.sum()), int((~is_a).sum())
    hits_a, hits_b = (np.asarray(fires[of].sum(0)).ravel().astype(np.int64) for of in (is_a, ~is_a))
    p = fisher_p(hits_a, hits_b, n_a, n_b)
    adjusted = benjamini_hochberg(torch.from_numpy(p)).numpy()
    difference = np.stack([hits_a / n_a - hits_b / n_b, *newcombe(hits_a, hits_b, n_a, n_b)])
    found = np.flatnonzero(adjusted <= q)
    found = found[np.argsort(-np.abs(difference[0, found]), kind="stable")]

    matched = _matched(fires[:, found].toarray(), is_a, _strata(rivals))
    judged = found[:MOST_JUDGED].tolist()
    verdicts = _verdicts(latents[:, judged].toarray(), judged, in_a, rivals, documents, seed)
    rows = [
        DifferingLatent(
            latent=latent,
            rate_a=hits_a[latent] / n_a,
            rate_b=hits_b[latent] / n_b,
            difference=tuple(difference[:, latent].tolist()),
            matched=tuple(matched[:, i].tolist()),
            p=float(p[latent]),
            q=float(adjusted[latent]),
            verdict=verdicts.get(latent),
        )
        for i, latent in enumerate(found.tolist())
    ]
    return CorpusDifference(rows=tuple(rows), n_a=n_a, n_b=n_b, n_latents=len(p), q=q)


def _first_of_each(documents: Tensor, in_a: Tensor) -> Tensor:
    """int64[m], ascending: of texts that are equal within a corpus the first."""
    kept: dict[tuple[int, bool], int] = {}
    for i, key in enumerate(zip(documents.tolist(), in_a.tolist(), strict=True)):
        kept.setdefault(key, i)
    return torch.tensor(list(kept.values()))


def _strata(rivals: Mapping[str, Tensor]) -> np.ndarray:
    """int64[n]: the fifth by length, and in it the fifth by word frequency; 0 where neither is given."""
    length, frequency = (rivals.get(name) for name in ("tokens", "log probability"))
    n = len(next(iter(rivals.values()))) if rivals else 0
    fifth = torch.zeros(n, dtype=torch.int64) if length is None else _fifths(length)
    codes = fifth * 5
    if frequency is not None:
        for one in fifth.unique():
            here = fifth == one
            codes[here] += _fifths(frequency[here])
    return codes.numpy()


def _fifths(value: Tensor) -> Tensor:
    return torch.searchsorted(value.quantile(_FIFTHS), value)


def _matched(fires: np.ndarray, is_a: np.ndarray, strata: np.ndarray) -> np.ndarray:
    """float64[3 m] of fires float64[n m]: the difference within strata, and its interval."""
    strata = strata if len(strata) else np.zeros(len(is_a), dtype=np.int64)
    inside = np.eye(int(strata.max()) + 1)[strata]
    hits = [inside[of].T @ fires[of] for of in (is_a, ~is_a)]
    counts = [inside[of].sum(0) for of in (is_a, ~is_a)]
    return mantel_haenszel(*hits, *counts)


def _verdicts(
    acts: np.ndarray,
    latents: list[int],
    in_a: Tensor,
    rivals: Mapping[str, Tensor],
    documents: Tensor,
    seed: int,
) -> dict[int, str]:
    if not latents or not rivals:
        return {}
    tests = Split().tests(document_ids(documents))
    if any(len(in_a[side].unique()) < 2 for side in (tests, ~tests)):
        return {}
    scores = {f"latent {latent}": acts[:, i] for i, latent in enumerate(latents)}
    report = against_rivals(scores, in_a, rivals, documents, split=tests, seed=seed)
    return {latent: report[f"latent {latent}"].verdict for latent in latents}
