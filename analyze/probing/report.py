"""What probes found: a row for each, with its interval and its distance from the probe of all activations."""

from __future__ import annotations

import dataclasses
from typing import Any

from saelens_lite.misfits import names_misfits
from saelens_lite.text_table import Lines, Tabular, filled_columns, number, span

from ..stats.interval_plots import interval_plot
from ..stats.rival_report import RivalReport

ACTS, DIFF_MEAN, LENGTH = "activations", "DiffMean of activations", "text length"

DEFINITIONS = {
    "auroc": "area under the ROC curve on the test texts; of several classes the mean over classes, each "
    "against the rest",
    "auroc_low": "lower end of the interval, from drawing clusters of test texts again; the fitted probe "
    "stays as it is",
    "auroc_high": "upper end",
    "less_acts": "auroc less that of the probe of all activations, on the same texts",
    "less_acts_low": "lower end of its interval, from the same draws",
    "less_acts_high": "upper end",
    "f1": "F1 on the test texts where log odds above 0 say the class; of several classes the mean over "
    "classes",
    "accuracy": "share of test texts given their class: by log odds above 0, of several classes by the "
    "highest",
    "shuffled": "mean auroc of the same probe where the labels of either side were shuffled before anything "
    "was fitted: 0.5 unless labels of test texts reach the fit; copies of texts, whose labels are shuffled "
    "apart, do not show",
    "inverse_l2": "C of the logistic regression, by cross-validation within the training texts; one for "
    "each class",
    "converged": "whether every regression ended before its limit of iterations",
    "latents": "those the probe sees, strongest first; one list for each class; empty where it sees all "
    "features",
    "splits_mean": "mean auroc over splits of other seeds, this one included",
    "splits_sd": "standard deviation of auroc over these splits: the noise of which texts train and which "
    "test",
    "verdict": "of two classes: whether the probe says more than the surface of the texts, such as their "
    "length, by rivals fitted on the training texts: beyond the rivals, confounded by one, reads nothing, or "
    "undecided",
}


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class ProbeRow:
    """One probe, its numbers as in DEFINITIONS. sae, k: None for a probe of activations, of all latents."""

    name: str
    sae: str | None
    k: int | None
    auroc: float
    auroc_low: float
    auroc_high: float
    less_acts: float
    less_acts_low: float
    less_acts_high: float
    f1: float
    accuracy: float
    shuffled: float | None
    inverse_l2: tuple[float, ...]
    converged: bool
    latents: tuple[tuple[int, ...], ...]
    splits_mean: float | None
    splits_sd: float | None
    verdict: str | None


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class ProbeReport(Tabular):
    """What `sparse_probes` found; `print(report)`. `report["sae k=1"]` is the row of that name.

    classes: in order; of two the last is the positive one. n_train, n_test: texts of each by side
    n_clusters: unrelated texts, or groups of related ones, by side; n_copies: texts that repeat another one
    guard: the probes beside the surface of the texts; None for more than two classes
    """

    rows: tuple[ProbeRow, ...]
    classes: tuple[Any, ...]
    n_train: tuple[int, ...]
    n_test: tuple[int, ...]
    n_clusters: tuple[int, int]
    n_copies: int
    n_truncated: int
    max_tokens: int | None
    selection: str
    pool: str
    acts_pool: str
    hook_point: str
    model_name: str
    seed: int
    n_splits: int
    n_shuffles: int
    n_resamples: int
    confidence: float
    guard: RivalReport | None

    @names_misfits
    def __getitem__(self, name: str) -> ProbeRow:
        for row in self.rows:
            if row.name == name:
                return row
        raise KeyError(f"no probe {name!r}, there are {', '.join(row.name for row in self.rows)}")

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers, for JSON."""
        facts = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)[1:]}
        facts["guard"] = None if self.guard is None else self.guard.to_dict()
        return {**facts, "rows": [dataclasses.asdict(row) for row in self.rows], "definitions": DEFINITIONS}

    def _tables(self) -> list[tuple[str, Lines]]:
        percent = f"{self.confidence:.0%} interval"
        head = ["", "AUROC", percent, f"less {ACTS}", "F1", "accuracy", "shuffled", f"{self.n_splits} splits"]
        head.append("beside the surface")
        lines = [head, *(self._cells(row) for row in self.rows)]
        return [("", list(map(list, filled_columns(lines))))]

    __str__ = Tabular.table

    @names_misfits
    def plot(self, ax: Any = None) -> Any:
        """Matplotlib axes: the AUROC of every probe with its interval.

        ax: to draw on; None makes a figure. raises: ImportError without matplotlib
        """
        parts = zip(*((row.name, row.auroc, row.auroc_low, row.auroc_high) for row in self.rows))
        return interval_plot(*map(list, parts), f"AUROC, {self.confidence:.0%} interval", ax)

    def _cells(self, row: ProbeRow) -> list[str]:
        less = f"{row.less_acts:+.3f} ({span(row.less_acts_low, row.less_acts_high, '+.3f')})"
        return [
            row.name,
            f"{row.auroc:.3f}",
            span(row.auroc_low, row.auroc_high, ".3f"),
            "" if row.name == ACTS else less,
            f"{row.f1:.3f}",
            f"{row.accuracy:.3f}",
            number(row.shuffled, ".3f", absent=""),
            "" if row.splits_sd is None else f"{row.splits_mean:.3f} ± {row.splits_sd:.3f}",
            row.verdict or "",
        ]

    def _notes(self) -> list[str]:
        named = [f"{label} {n:,}" for label, n in zip(self.classes, self.n_test)]
        if len(self.classes) == 2:
            what = f"{named[1]} against {named[0]}"
        else:
            first = ", ".join(named[:8]) + ", …" * (len(named) > 8)
            what = f"each of {len(self.classes)} classes against the rest ({first})"
        copies = f"; {self.n_copies:,} are copies" if self.n_copies else ""
        cut = f"; {self.n_truncated:,} were cut after {self.max_tokens} tokens" if self.n_truncated else ""
        pooled = f"{self.pool} over tokens" if self.pool != "last" else "last token"
        if self.acts_pool != self.pool:
            pooled = f"latents: {pooled}, activations: {self.acts_pool}"
        text = [
            f"{self.hook_point} of {self.model_name}, {pooled}; latents by "
            f"|{self.selection.replace('_', ' ')}| in training",
            f"tested on {what}, trained on {sum(self.n_train):,} texts{copies}{cut}",
            f"intervals draw the {self.n_clusters[1]:,} unrelated test texts, "
            "or groups of related ones, again",
        ]
        rivals = [row for row in self.rows if row.sae is not None]
        if rivals:
            less = sum(row.less_acts < 0 for row in rivals)
            surely = sum(row.less_acts_high < 0 for row in rivals)
            more = sum(row.less_acts_low > 0 for row in rivals)
            text.append(
                f"of {len(rivals)} probes of latents {less} below that of the {ACTS}, {surely} of them with "
                f"the whole interval; {more} above with the whole interval"
            )
        if self.guard is not None:
            reached = ", ".join(f"{rival.name} {rival.auroc:.3f}" for rival in self.guard.rivals)
            text.append(f"the surface alone, in AUROC: {reached}")
        if slow := [row.name for row in self.rows if not row.converged]:
            text.append(f"not converged: {', '.join(slow)}")
        return text
