"""What a search in a feature index found: rows for programs, lines for people."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from saelens_lite.analyze.index.labels import Label
from saelens_lite.analyze.index.latent_facts import LatentFacts
from saelens_lite.analyze.index.search import Match
from saelens_lite.analyze.index.unigram import UnigramLatent, UnigramShare
from saelens_lite.analyze.latents.text_latents import TokenFirings
from saelens_lite.analyze.latents.text_windows import visible
from saelens_lite.text_table import Lines, Tabular, cell, plain


@dataclasses.dataclass(frozen=True, slots=True)
class SearchAnswer(Tabular):
    """rows: values by name, one for each thing found; lines: the same as a terminal shows it; nothing: what
    is said where nothing was found"""

    rows: list[dict[str, Any]]
    lines: list[str]
    nothing: str = "nothing found"

    def __str__(self) -> str:
        return "\n".join(self.lines) or self.nothing

    def to_dict(self) -> dict[str, Any]:
        """The rows, for JSON."""
        return {"rows": plain(self.rows)}

    def _tables(self) -> list[tuple[str, Lines]]:
        if not self.rows:
            return []
        heads = [*self.rows[0]]
        cells = [[visible(_shown(row[name])) for name in heads] for row in self.rows]
        return [("", [heads, *cells])]

    def _notes(self) -> list[str]:
        return [] if self.rows else [self.nothing]


def _shown(value: Any) -> str:
    if isinstance(value, dict):
        return " ".join(map(_shown, value.values()))
    return ", ".join(map(_shown, value)) if isinstance(value, list | tuple) else cell(value)


def with_numbers(
    found: Mapping[str, Sequence[tuple[int, float]]], labels: Mapping[int, str]
) -> SearchAnswer:
    """(latent, number) of latents, under the name of the number"""
    named = [(name, *pair) for name, pairs in found.items() for pair in pairs]
    return SearchAnswer(
        [
            {"latent": latent, "number": name, "value": value, "label": labels.get(latent)}
            for name, latent, value in named
        ],
        [
            f"latent {latent:>7}  {name} {value:.4g}" + f"  {labels.get(latent)!r}" * (latent in labels)
            for name, latent, value in named
        ],
    )


def with_matches(matches: Sequence[Match], labels: Mapping[int, str]) -> SearchAnswer:
    """Latents and how well each marks what was asked for"""
    rows = [
        {
            "latent": of.latent, "f1": of.f1, "mean": of.mean, "fired": of.fired, "n_rows": of.n_rows,
            "elsewhere": of.elsewhere, "label": labels.get(of.latent),
        }
        for of in matches
    ]  # fmt: skip
    return SearchAnswer(rows, [repr(of) for of in matches])


def with_firings(tokens: Sequence[TokenFirings]) -> SearchAnswer:
    """Tokens of a text and the latents that fire on each"""
    rows = [
        {"place": place, "token": of.token, "latent": latent, "activation": value}
        for place, of in enumerate(tokens)
        for latent, value in of.latents
    ]
    return SearchAnswer(rows, [repr(of) for of in tokens])


def with_unigrams(share: UnigramShare, found: Sequence[UnigramLatent]) -> SearchAnswer:
    """Latents of one token, below how many there are"""
    return SearchAnswer([dataclasses.asdict(of) for of in found], [repr(share), *map(repr, found)])


def with_labels(found: Sequence[Label]) -> SearchAnswer:
    """Labels that people wrote"""
    return SearchAnswer([dataclasses.asdict(of) for of in found], [visible(repr(of)) for of in found])


def with_facts(of: LatentFacts, n: int) -> SearchAnswer:
    """Everything about one latent. n: firings in its row"""
    strongest = [
        {"activation": firing.value, "before": firing.before, "token": firing.token, "after": firing.after}
        for firing in of.firings[:n]
    ]
    row = {
        "latent": of.latent, "n_fired": of.n_fired, "n_tokens": of.n_tokens, "density": of.density,
        "max": of.largest, "token_entropy": of.token_entropy, "common_token": of.common_token,
        "token_share": of.token_share, "top_token_share": of.top_token_share, "pair_share": of.pair_share,
        "output_score": of.output_score, "promoted": [token for token, _ in of.promoted],
        "demoted": [token for token, _ in of.demoted], "label": of.label and of.label.label,
        "notes": of.label and of.label.notes, "strongest": strongest,
    }  # fmt: skip
    return SearchAnswer([row], [repr(of)])
