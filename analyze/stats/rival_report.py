"""What stood against surface rivals: scores with verdicts, rivals, and what only stands beside."""

from __future__ import annotations

import dataclasses
import math
from typing import Any, NamedTuple

from saelens_lite.misfits import names_misfits
from saelens_lite.text_table import Lines, Tabular, plain, span


class InStrata(NamedTuple):
    """AUROC over pairs of equal stratum; None below LEAST_PAIRS of them."""

    auroc: float | None
    n_pairs: int


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class GuardedScore:
    """One score on the testing side.

    sign: 1 where higher values went with label 1 on the selecting side, else −1: AUROC is of sign · score
    closest: the rival with the smallest difference; less: AUROC less the closest's, with its interval
    p: the largest of the p values against rivals and chance, after Holm
    in_strata: by rival
    """

    name: str
    sign: int
    auroc: float
    auroc_low: float
    auroc_high: float
    closest: str
    less: float
    less_low: float
    less_high: float
    p: float
    verdict: str
    in_strata: dict[str, InStrata]


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class RivalScore:
    """What a rival, or a score that only stands beside, reaches on the testing side.

    p: of its AUROC not being above .5
    """

    name: str
    auroc: float
    auroc_low: float
    auroc_high: float
    p: float


@dataclasses.dataclass(frozen=True, slots=True)
class RivalReport(Tabular):
    """What `against_rivals` found; `print(found)`. `found["latent 7"]` is the row of that name.

    n_clusters: of label 0 and 1, on the selecting side and on the testing side
    """

    scores: tuple[GuardedScore, ...]
    rivals: tuple[RivalScore, ...]
    beside: tuple[RivalScore, ...]
    n_clusters: tuple[tuple[int, int], tuple[int, int]]
    confidence: float

    @names_misfits
    def __getitem__(self, name: str) -> GuardedScore:
        for row in self.scores:
            if row.name == name:
                return row
        raise KeyError(f"no score {name!r}, there are {', '.join(row.name for row in self.scores)}")

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers, for JSON."""
        rows = [dataclasses.asdict(row) for row in self.scores]
        for row in rows:
            row["in_strata"] = {name: of._asdict() for name, of in row["in_strata"].items()}
        found = {"scores": rows, "n_clusters": self.n_clusters, "confidence": self.confidence}
        for name in ("rivals", "beside"):
            found[name] = [dataclasses.asdict(row) for row in getattr(self, name)]
        return plain(found)

    def _records(self) -> list[dict[str, Any]]:
        return self.to_dict()["scores"]

    def _tables(self) -> list[tuple[str, Lines]]:
        percent = f"{self.confidence:.0%} interval"
        lines = [["", "AUROC", percent, "less its closest rival", "", "verdict"]]
        for row in self.scores:
            less = f"{row.less:+.3f} ({_ends(row.less_low, row.less_high, '+.3f')})"
            lines.append([*self._cells(row), less, row.closest, row.verdict])
        rivals = [["rival", "AUROC", percent], *map(self._cells, self.rivals)]
        if self.beside:
            rivals += [["beside", "", ""], *map(self._cells, self.beside)]
        tables = [("", lines), ("", rivals)]
        if self.scores and self.scores[0].in_strata:
            names = list(self.scores[0].in_strata)
            strata = [["AUROC over pairs of equal", *names]]
            for row in self.scores:
                strata.append([row.name, *(_in_words(row.in_strata[name]) for name in names)])
            tables.append(("", strata))
        return tables

    __str__ = Tabular.table

    def _cells(self, row: GuardedScore | RivalScore) -> list[str]:
        return [row.name, f"{row.auroc:.3f}", _ends(row.auroc_low, row.auroc_high, ".3f")]


def _ends(low: float, high: float, spec: str) -> str:
    return "n/a" if math.isnan(low) else span(low, high, spec)


def _in_words(found: InStrata) -> str:
    return "n/a" if found.auroc is None else f"{found.auroc:.3f} ({found.n_pairs:,} pairs)"
