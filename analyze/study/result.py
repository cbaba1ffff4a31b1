"""What a study found: rates with intervals, ranks among controls, differences from the baseline."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from saelens_lite.atomic import write_file
from saelens_lite.misfits import names_misfits
from saelens_lite.text_table import Lines, Tabular, filled_columns, span

from ..edits.refusal_logit import TradeOff
from ..stats.attempts import Attempts, attempts
from ..stats.bootstrap import Interval, cluster_bootstrap, rank_p, spread, westfall_young_p
from ..stats.document_split import document_ids
from ..stats.interval_plots import interval_plot
from ..stats.rival_report import RivalReport
from .fixed_outcomes import FixedOutcome
from .half import Outcome, Side
from .planned_edits import Planned
from .surface import AcrossTypes

MEASURES = {
    "hallucination": "share of questions about unknown entities that are answered",
    "refusal": "share of questions about known entities that are refused",
    "accuracy": "share of questions about known entities that are answered right",
    "wrong": "share of questions about known entities that are answered wrong",
    "answer_margin": "logit of the best answer less that of refusal, mean over questions about unknown "
    "entities",
    "refusal_margin": "logit of refusal less that of the best answer, mean over questions about known "
    "entities",
}
OF_RATE = {"hallucination": "answer_margin", "refusal": "refusal_margin"}
"""What rises with the tested rates, in logits: where a rate is 0 or 1 whatever is done, it may still tell."""
_OF_UNKNOWN = ("hallucination", "answer_margin")
"""Measures of questions about unknown entities."""


class Detection(NamedTuple):
    """How well one latent, or one direction, reads off who is known, at the entity's last token.

    source: "trained", "baseline", or the direction's name; of: whom it should fire on
    statistic: what chose it, on the selecting side; separation and auroc: on the testing side
    """

    source: str
    of: str
    latent: int | None
    statistic: float | None
    separation: float | None
    auroc: float


@dataclass(frozen=True, slots=True, eq=False)
class StudyRow:
    """One edit.

    measures: of MEASURES, with intervals over entities
    controls: float64[n_controls], the tested measure under each matched set; control_push: their median push
    p: rank of the edit among them; p_adjusted: among the largest of each draw's effects over all tested
        edits, so that none of them is false with a chance above it; the primary outcome needs no correction
    less_baseline: the tested measure less that of the same edit of the baseline, question by question
    """

    edit: Planned
    push: float
    measures: dict[str, Interval]
    controls: Tensor | None
    control_push: float | None
    p: float | None
    p_adjusted: float | None
    less_baseline: Interval | None
    attempts: Attempts


class Flipped(NamedTuple):
    """A question that an edit turned: what the answer was worth before and after, and the texts if any.

    place: the entity in the prompt, in characters
    """

    edit: str
    prompt: str
    place: tuple[int, int] | None
    known: bool
    before: str
    after: str
    text_before: str
    text_after: str


@dataclass(frozen=True, slots=True, eq=False)
class StudyResult(Tabular):
    """The outcome of `HallucinationStudy.run`; printing it shows the table.

    n_known, n_unknown: entities that were measured; score: whether "rates" or "logits" were tested
    fixed: the primary outcome and mitigation; curve: the trade-off of a constant on the logit of refusal
    guard: what latents read beside surface rivals; across: between types; flipped: examples
    """

    rows: tuple[StudyRow, ...]
    detections: tuple[Detection, ...]
    hook_point: str
    n_known: int
    n_unknown: int
    n_questions: int
    confidence: float
    score: str
    fixed: tuple[FixedOutcome, ...] = ()
    curve: tuple[TradeOff, ...] = ()
    guard: RivalReport | None = None
    across: tuple[AcrossTypes, ...] = ()
    flipped: tuple[Flipped, ...] = ()
    _left = 2

    @names_misfits
    def row(self, name: str, sae: str = "trained", dose: float | None = None) -> StudyRow:
        """One row. raises: KeyError if there is none"""
        for row in self.rows:
            if (row.edit.name, row.edit.sae, row.edit.dose) == (name, sae, dose):
                return row
        raise KeyError(
            f"no row {name!r} of {sae!r} at dose {dose}: {[tuple(row.edit[:3]) for row in self.rows]}"
        )

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers, for JSON."""
        rows = []
        for row in self.rows:
            edit = row.edit
            cells: dict[str, Any] = {"edit": edit.name, "sae": edit.sae or None}
            cells |= {"dose": edit.dose, "push": row.push}
            if edit.own_dose is not None:
                cells["own_dose"] = edit.own_dose
            cells |= {name: interval.to_dict() for name, interval in row.measures.items()}
            if row.controls is not None:
                cells |= {"tested": edit.measure, "latents": list(edit.latents)}
                cells |= {"p": row.p, "p_adjusted": row.p_adjusted}
                drawn = {"n": len(row.controls), "mean": row.controls.mean().item()}
                drawn |= {"quantiles": spread(row.controls), "push": row.control_push}
                cells["controls"] = drawn | {"rate_ratio": edit.rate_ratio}
            if row.less_baseline is not None:
                cells["less_baseline"] = row.less_baseline.to_dict()
            if (of := edit.side_effects) is not None:
                cells |= {"delta_ce": of.delta_ce.to_dict(), "kl": of.kl.to_dict(), "neutral_push": of.push}
            rows.append(cells | {"attempts": row.attempts._asdict()})
        names = ("hook_point", "n_known", "n_unknown", "n_questions", "confidence", "score")
        detection = [found._asdict() for found in self.detections]
        facts = {name: getattr(self, name) for name in names}
        more = {
            "fixed": [of.to_dict() for of in self.fixed],
            "refusal_logit": [of._asdict() for of in self.curve],
            "guard": None if self.guard is None else self.guard.to_dict(),
            "across_types": [of._asdict() for of in self.across],
            "flipped": [of._asdict() for of in self.flipped],
        }
        return {**facts, "measures": MEASURES, "rows": rows, "detection": detection, **more}

    def summary(self) -> list[str]:
        """What the clamps at the dose nearest to 1 show, and what they do not: a few sentences."""
        edits = [row.edit for row in self.rows if row.edit.sae == "trained"]
        doses = [edit.dose for edit in edits if edit.dose is not None]
        dose = min(doses, key=lambda d: abs(d - 1), default=None)
        said = [
            sentence
            for name, measure in zip(("clamp known", "clamp unknown"), self.tested)
            for sentence in self._said_of(name, measure, dose)
        ]
        said += map(str, self.fixed)
        if self.guard is not None:
            verdicts = [f"{row.name} {row.auroc:.2f}: {row.verdict}" for row in self.guard.scores]
            said.append(f"Beside surface rivals (AUROC): {'; '.join(verdicts)}.")
        elif self.rows:
            said.append("Surface rivals: too few entities on a side of the split to tell.")
        said += [
            f"Type {of.type!r}: AUROC {of.inside:.2f} of the latent that its own entities chose, "
            f"{of.outside:.2f} of "
            "that which other types chose."
            for of in self.across
        ]
        said.append(
            "Edited were a few latents at one hook point, on the entity's own tokens, found on other "
            "entities of the same kind. That an edit works makes its latents neither those that the model "
            "uses nor good detectors: see AUROC."
        )
        return said

    def _said_of(self, name: str, measure: str, dose: float | None) -> list[str]:
        row, clean = self.row(name, "trained", dose), self.rows[0].measures[measure].estimate.item()
        rate, right, wrong = (row.measures[of].estimate.item() for of in (measure, "accuracy", "wrong"))
        low, _, high = spread(row.controls)
        shown = ("{:+.2f}" if self.score == "logits" else "{:.0%}").format
        said = [
            f"{name} at dose {dose:g}: {MEASURES[measure]} {shown(rate)}, without an edit {shown(clean)}. Of "
            f"{len(row.controls)} matched sets of latents 5 to 95 % reach {shown(low)} to {shown(high)}: p "
            f"{row.p:.3f}, adjusted {row.p_adjusted:.3f}. Of questions about known entities it then answers "
            f"{right:.0%} right and {wrong:.0%} wrong."
        ]
        if self.score == "rates" and clean == rate and clean in (0, 1):
            said.append(
                "  The rate stays where it is whatever is done; "
                "score='logits' (--score logits) may still tell."
            )
        if row.less_baseline is None:
            said.append(
                "  No baseline was given: an SAE of random directions beats random latents too, so this does "
                "not show that the dictionary learnt anything. Train one with --baseline."
            )
        else:
            rival, less = self.row(name, "baseline", dose), row.less_baseline
            theirs = shown(rival.measures[measure].estimate.item())
            verdict = "more" if less.low > 0 else "less" if less.high < 0 else "not told from chance"
            said.append(
                f"  The same of an SAE with a frozen random decoder, at push {rival.push:.2f} beside "
                f"{row.push:.2f}: {theirs}, p {rival.p:.3f} among its random sets. What training added is "
                f"the difference, {less.estimate:+.2f} ({span(less.low, less.high, '+.2f')}): {verdict}. The "
                "rank alone does not show that the dictionary learnt anything."
            )
        directions = [
            f"{other.edit.name}: {shown(other.measures[measure].estimate.item())}"
            for other in self.rows
            if not other.edit.sae and other.edit.dose == dose and other.edit.measure == measure
        ]
        return said + (
            [f"  Directions without an SAE, as strong: {', '.join(directions)}."] if directions else []
        )

    @names_misfits
    def save(self, path: str | Path) -> None:
        """Write the numbers as a JSON file, whole or not at all."""
        write_file(path, json.dumps(self.to_dict(), indent=1) + "\n")

    def _tables(self) -> list[tuple[str, Lines]]:
        answering, refusing = self.tested
        of = "logit margin" if self.score == "logits" else "share"
        answers = (
            f"to get answers: {of} of answers about unknown entities, and of known ones accuracy and wrong "
            "answers"
        )
        refusals = (
            f"to get refusals: {of} of refusals about known entities, wrong answers, and answers about "
            "unknown ones"
        )
        return [
            (answers, self._lines(answering, ("accuracy", "wrong"))),
            (refusals, self._lines(refusing, ("wrong", "hallucination"))),
        ]

    __repr__ = Tabular.table

    @names_misfits
    def plot(self, measure: str | None = None, ax: Any = None) -> Any:
        """Matplotlib axes: one measure under every edit that was tested on it, with its interval.

        measure: one of MEASURES; None takes that of edits that should bring answers
        ax: to draw on; None makes a figure. raises: ImportError without matplotlib
        """
        measure = measure or self.tested[0]
        rows = [row for row in self.rows if row.edit.measure in (None, measure)]
        names = [
            f"{row.edit.name} {row.edit.sae} {'' if row.edit.dose is None else format(row.edit.dose, 'g')}"
            for row in rows
        ]
        of = [row.measures[measure] for row in rows]
        ends = ([float(getattr(one, end)) for one in of] for end in ("estimate", "low", "high"))
        return interval_plot(names, *ends, f"{MEASURES[measure]}, {self.confidence:.0%} interval", ax)

    @property
    def tested(self) -> tuple[str, str]:
        """The measures that edits should raise: of unknown entities, and of known ones."""
        answering, refusing = OF_RATE.values() if self.score == "logits" else OF_RATE
        return answering, refusing

    def _lines(self, measure: str, beside: Sequence[str]) -> Lines:
        heads = ["edit", "SAE", "dose", "push", measure, f"{self.confidence:.0%} interval"]
        heads += ["controls 5–95 %", "p", "p max", "less baseline", *beside, "ΔCE", "KL"]
        table = [heads]
        for row in self.rows:
            edit, of = row.edit, row.measures[measure]
            if edit.measure not in (None, measure):
                continue
            cells = [f"{edit.name} ({len(edit.latents)})" if edit.latents else edit.name, edit.sae]
            cells += ["" if edit.dose is None else f"{edit.dose:g}", f"{row.push:.2f}" if row.push else ""]
            cells += [f"{of.estimate:.3f}", span(of.low, of.high, ".2f")]
            if row.controls is None:
                cells += [""] * 3
            else:
                low, _, high = spread(row.controls)
                cells += [span(low, high, ".3f"), f"{row.p:.3f}", f"{row.p_adjusted:.3f}"]
            less = row.less_baseline
            cells += ["" if less is None else f"{less.estimate:+.3f} ({span(less.low, less.high, '+.2f')})"]
            cells += [f"{row.measures[other].estimate:.3f}" for other in beside]
            side = edit.side_effects
            cells += [""] * 2 if side is None else [f"{of.estimate:+.3f}" for of in (side.delta_ce, side.kl)]
            table.append(cells)
        return list(map(list, filled_columns(table)))

    def _notes(self) -> list[str]:
        best = {}
        for found in self.detections:
            best[found.source] = max(best.get(found.source, 0.0), found.auroc)
        read = ", ".join(f"{name} {area:.2f}" for name, area in best.items())
        return [
            f"{self.n_known} known and {self.n_unknown} unknown entities that chose nothing, "
            f"{self.n_questions} questions; reading who is known at {self.hook_point}, "
            f"AUROC of the best on them: {read}"
        ]


def assembled(
    done: Sequence[tuple[Planned, Outcome]],
    side: Side,
    detections: Sequence[Detection],
    bootstrap: dict[str, Any],
    score: str,
) -> StudyResult:
    """The rows, from the outcomes on a side; bootstrap: n_resamples, confidence and seed of the intervals.

    raises: ValueError for scores of logits from a judge that gives none
    """
    if score == "logits":
        if done[0][1].margin is None:
            raise ValueError(
                "score='logits' expected a judge that gives margins, got one of refused and correct alone"
            )
        done = [(edit._replace(measure=OF_RATE.get(edit.measure or "")), outcome) for edit, outcome in done]
    known, ids = side.known, document_ids(side.clusters)
    ids_known, ids_unknown = ids[known], ids[~known]

    def intervals(measure: str, values: Sequence[Tensor]) -> list[Interval]:
        """Of columns of one measure, with one draw of entities for all."""
        of_item = ids_unknown if measure in _OF_UNKNOWN else ids_known
        of = cluster_bootstrap(torch.stack(list(values), 1), of_item, **bootstrap)
        return [Interval(*parts, of.confidence, of.n_clusters) for parts in zip(of.estimate, of.low, of.high)]

    items = [outcome.measures(known) for _, outcome in done]
    measures: list[dict[str, Interval]] = [{} for _ in done]
    for name in items[0]:
        for of, interval in zip(measures, intervals(name, [item[name] for item in items])):
            of[name] = interval
    tested = [i for i, (edit, _) in enumerate(done) if edit.controls]
    drawn, p = {}, {}
    for i in tested:
        edit = done[i][0]
        drawn[i] = torch.stack([control.measures(known)[edit.measure].mean() for control in edit.controls])
        p[i] = rank_p(items[i][edit.measure].mean(), drawn[i]).item()
    adjusted = {}
    if tested:
        seen = torch.stack([items[i][done[i][0].measure].mean() for i in tested])
        rankings = torch.stack([drawn[i] for i in tested], 1)  # row j: the j-th fake ranking, all its edits
        adjusted = dict(zip(tested, westfall_young_p(seen, rankings).tolist()))
    same = {(edit.name, edit.dose): i for i, (edit, _) in enumerate(done) if edit.sae == "baseline"}
    rows = []
    for i, (edit, outcome) in enumerate(done):
        rival = same.get((edit.name, edit.dose)) if edit.sae == "trained" and i in drawn else None
        less = None
        if rival is not None and edit.measure is not None:
            [less] = intervals(edit.measure, [items[i][edit.measure] - items[rival][edit.measure]])
        push = torch.tensor([of.push for of in edit.controls]).median().item() if i in drawn else None
        found = (drawn.get(i), push, p.get(i), adjusted.get(i))
        tried = attempts(outcome.refused, outcome.correct, outcome.margin)
        rows.append(StudyRow(edit, outcome.push, measures[i], *found, less, tried))
    n_known, n_unknown = (len(of.unique()) for of in (ids_known, ids_unknown))
    facts = (side.hook_point, n_known, n_unknown, len(known), bootstrap["confidence"], score)
    return StudyResult(tuple(rows), tuple(detections), *facts)
