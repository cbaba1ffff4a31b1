"""One HTML file about a hallucination study: what was asked, what was found, and what it does not show. It
runs nothing."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import torch
from markupsafe import Markup
from torch import Tensor

from saelens_lite.atomic import check_output, write_file
from saelens_lite.misfits import names_misfits
from saelens_lite.text_table import span

from ..render.html import escaped
from ..render.plot import Axis, Series, curves, scatter, swatch
from ..render.report_blocks import Block, Figure, Figures, Folded, Paragraph, Section, Table, document

N_BINS = 30
_SHOWN_CHARACTERS = 160
_DOES_NOT_SHOW = (
    "The intervals draw entities again. They leave out how language model and SAE were trained: another "
    "seed of "
    "training may move an effect by more than the interval is wide.",
    "A rank p says that the chosen latents do more than matched random ones, which those of an SAE with "
    "a random "
    "decoder do too. What training added is the difference from the baseline.",
    "That an edit works makes its latents neither those that the model uses nor good detectors: compare "
    "the AUROC, "
    "and the verdicts beside surface rivals.",
    "Entities, questions and prompts are those of the records; nothing is said about other kinds.",
)


class Studied(Protocol):
    """What this page reads of the result of a study."""

    hook_point: str
    n_known: int
    n_unknown: int
    n_questions: int
    rows: Sequence[Any]
    tested: Any


@names_misfits
def study_page(
    result: Studied, output: str | os.PathLike[str], asked: Mapping[str, Any] | None = None
) -> Path:
    """Write a study's result as one page, whole or not at all; returns its path.

    result: what `HallucinationStudy.run` gave; asked: what was asked, by name, such as the command's flags
    """
    path = Path(output)
    check_output(path)
    sections = [
        Section("What was found", _found(result, asked or {})),
        Section("Edits", _edits(result)),
        *_optional("Dose and response", _dose_response(result)),
        *_optional("The effect among its controls", _histograms(result)),
        *_optional("Reading who is known", _reading(result)),
        *_optional("What hallucination costs", _trade_off(result)),
        *_optional("Answers that turned", _flipped(result)),
        Section("What this does not show", [Paragraph(text) for text in _DOES_NOT_SHOW]),
    ]
    write_file(path, document("Hallucination study", sections, []))
    return path


def _optional(title: str, blocks: Sequence[Block]) -> list[Section]:
    return [Section(title, blocks)] if blocks else []


def _found(result: Any, asked: Mapping[str, Any]) -> list[Block]:
    versions = {"torch": torch.__version__, "threads": torch.get_num_threads()}
    facts = {
        "hook point": result.hook_point,
        "known entities": result.n_known,
        "unknown entities": result.n_unknown,
        "questions": result.n_questions,
        **versions,
    }
    given = {name: _in_words(value) for name, value in asked.items() if value not in (None, "", (), [])}
    return [
        Table(list(facts), [list(facts.values())], [""]),
        *[Paragraph(sentence) for sentence in result.summary()],
        Folded("What was asked", given),
        Folded("What the measures mean", result.to_dict()["measures"]),
    ]


def _in_words(value: Any) -> str:
    return ", ".join(map(str, value)) if isinstance(value, tuple | list) else str(value)


def _edits(result: Any) -> list[Block]:
    blocks: list[Block] = []
    for measure, other in zip(result.tested, result.tested[::-1]):
        head = ["edit", "SAE", "dose", "push", measure, "interval", "controls 5–95 %", "p", "p max"]
        head += ["less baseline", "accuracy", "wrong", other, "coverage", "right of those", "risk area"]
        rows = [_edit_row(row, measure, other) for row in result.rows if row.edit.measure in (None, measure)]
        effects = [row.edit.side_effects for row in result.rows if row.edit.measure in (None, measure)]
        if any(effects):
            head += ["ΔCE", "KL", "repeated"]
            rows = [row + _side_effects(of) for row, of in zip(rows, effects)]
        title = f"To raise {measure.replace('_', ' ')}"
        blocks.append(Table(head, rows, [""] * len(rows), title))
    return blocks


def _edit_row(row: Any, measure: str, other: str) -> list[Any]:
    edit, of, less, tried = row.edit, row.measures[measure], row.less_baseline, row.attempts
    name = f"{edit.name} ({len(edit.latents)})" if edit.latents else edit.name
    cells: list[Any] = [name, edit.sae or None, edit.dose, row.push or None, of.estimate.item()]
    cells.append(span(of.low.item(), of.high.item(), ".3f"))
    band = None if row.controls is None else span(*_band(row.controls), ".3f")
    cells += [band, row.p, row.p_adjusted]
    if less is not None:
        less = f"{less.estimate.item():+.3f} ({span(less.low.item(), less.high.item(), '+.2f')})"
    rates = [row.measures[of].estimate.item() for of in ("accuracy", "wrong", other)]
    return [*cells, less, *rates, tried.coverage, tried.accuracy, tried.risk_area]


def _side_effects(of: Any) -> list[Any]:
    if of is None:
        return [None] * 3
    repeated = None if of.repetition is None else of.repetition.repeated
    return [of.delta_ce.estimate.item(), of.kl.estimate.item(), repeated]


def _band(draws: Tensor) -> tuple[float, float]:
    low, high = draws.quantile(torch.tensor([0.05, 0.95], dtype=draws.dtype)).tolist()
    return low, high


def _dose_response(result: Any) -> list[Block]:
    figures = []
    for name, measure in zip(("clamp known", "clamp unknown"), result.tested):
        rows = {(row.edit.sae, row.edit.dose): row for row in result.rows if row.edit.name == name}
        doses = sorted(dose for sae, dose in rows if sae == "trained")
        own = [rows["trained", dose] for dose in doses]
        lines = {
            "trained": [row.measures[measure].estimate.item() for row in own],
            "trained, lower end": [row.measures[measure].low.item() for row in own],
            "trained, upper end": [row.measures[measure].high.item() for row in own],
            "controls, 5 %": [_band(row.controls)[0] for row in own],
            "controls, 95 %": [_band(row.controls)[1] for row in own],
        }
        if all(("baseline", dose) in rows for dose in doses):
            of = [rows["baseline", dose].measures[measure].estimate.item() for dose in doses]
            lines["frozen decoder"] = of
        for other in dict.fromkeys(row.edit.name for row in result.rows if not row.edit.sae):
            of_name = {row.edit.dose: row for row in result.rows if row.edit.name == other}
            if set(doses) <= set(of_name) and of_name[doses[0]].edit.measure == measure:
                lines[other] = [of_name[dose].measures[measure].estimate.item() for dose in doses]
        styles = {"trained": 0, "trained, lower end": 6, "trained, upper end": 6}
        styles |= {"controls, 5 %": 7, "controls, 95 %": 7, "frozen decoder": 2}
        rest = iter(range(3, 30))
        style = {line: styles.get(line) or (0 if line == "trained" else next(rest)) for line in lines}
        series = [Series(line, list(zip(doses, of)), style[line]) for line, of in lines.items()]
        words = measure.replace("_", " ")
        table = Table(
            ["line", *(f"dose {dose:g}" for dose in doses)],
            [[line, *of] for line, of in lines.items()],
            [swatch(style[line]) for line in lines],
        )
        figures.append(
            Figure(
                f"{name}: {words}",
                "Dose 1 sets a latent to the 95 % quantile of its positive activations. The interval draws "
                "entities; controls are matched random sets of latents at the same push.",
                curves(f"dose{len(figures)}", name, Axis("dose"), Axis(words), series),
                table,
            )
        )
        figures += _costs(f"costs{len(figures)}", name, words, own, measure)
    return [Figures(figures)]


def _costs(key: str, name: str, words: str, rows: Sequence[Any], measure: str) -> list[Figure]:
    """What each dose does against what it costs on neutral text, where that was measured."""
    if any(row.edit.side_effects is None for row in rows):
        return []
    points = [
        (float(row.edit.side_effects.delta_ce.estimate), row.measures[measure].estimate.item())
        for row in rows
    ]
    table = Table(
        ["dose", "ΔCE", words],
        [[f"{row.edit.dose:g}", *point] for row, point in zip(rows, points, strict=True)],
        [""] * len(points),
    )
    about = (
        "What each dose costs on neutral text, in nats a token. Of two doses that cost the same, take the "
    )
    about += "one that does more."
    drawn = curves(key, f"{name}, by cost", Axis("ΔCE"), Axis(words), [Series("trained", sorted(points), 0)])
    return [Figure(f"{name}: {words} against its cost", about, drawn, table)]


def _histograms(result: Any) -> list[Block]:
    figures = []
    for row in result.rows:
        edit = row.edit
        if edit.sae == "trained" and edit.name in ("clamp known", "clamp unknown"):
            figures.append(_histogram(f"controls{len(figures)}", row))
    return [Figures(figures)] if figures else []


def _histogram(name: str, row: Any) -> Figure:
    """Shares of the controls, and the effect as an upright line."""
    draws, effect = row.controls.double(), row.measures[row.edit.measure].estimate.item()
    low, high = min(float(draws.min()), effect), max(float(draws.max()), effect)
    low, high = (low - 0.01, high + 0.01) if high - low < 1e-9 else (low, high)
    bins = ((draws - low) / (high - low) * N_BINS).long().clamp(0, N_BINS - 1)
    shares = (torch.bincount(bins, minlength=N_BINS).double() / len(draws)).tolist()
    edges = torch.linspace(low, high, N_BINS + 1, dtype=torch.float64).tolist()
    outline = [(edges[0], 0.0)]
    for left, right, share in zip(edges, edges[1:], shares):
        outline += [(left, share), (right, share)]
    series = [
        Series("matched random sets", [*outline, (edges[-1], 0.0)], 2),
        Series("the chosen latents", [(effect, 0.0), (effect, max(shares))], 0),
    ]
    words = (row.edit.measure or "").replace("_", " ")
    title = f"{row.edit.name} at dose {row.edit.dose:g}"
    plot = curves(name, title, Axis(words), Axis("share of controls"), series)
    table = Table(
        ["", words],
        [["the chosen latents", effect], ["controls, median", float(draws.median())], ["rank p", row.p]],
        [swatch(0), swatch(2), ""],
    )
    return Figure(title, f"{len(draws):,} matched random sets of latents at the same push.", plot, table)


def _reading(result: Any) -> list[Block]:
    guard, blocks = result.guard, []
    if guard is not None:
        names = [("latent", row) for row in guard.scores] + [("rival", row) for row in guard.rivals]
        names += [("beside", row) for row in guard.beside]
        kinds = {"latent": 0, "rival": 1, "beside": 2}
        series = [
            Series(
                kind, [(row.auroc, len(names) - i) for i, (of, row) in enumerate(names) if of == kind], style
            )
            for kind, style in kinds.items()
        ]
        series = [Series(one.name, sorted(one.points), one.style) for one in series if one.points]
        plot = scatter("auroc", "AUROC", Axis("AUROC"), Axis("line of the table, from below"), series)
        rows = []
        for kind, row in names:
            less = None
            if kind == "latent":
                less = f"{row.less:+.3f} ({span(row.less_low, row.less_high, '+.3f')}) than {row.closest}"
            interval = span(row.auroc_low, row.auroc_high, ".3f")
            rows.append([row.name, kind, row.auroc, interval, less, getattr(row, "verdict", None)])
        head = ["", "kind", "AUROC", "interval", "less its closest rival", "verdict"]
        table = Table(head, rows, [swatch(kinds[kind], mark=True) for kind, _ in names])
        said = (
            "How well each tells known from unknown entities that chose nothing. A rival sees only the "
            "surface of the question; a latent counts as more where it is above each of them."
        )
        blocks.append(Figure("Latents beside surface rivals", said, plot, table))
    else:
        blocks.append(
            Paragraph("Too few entities on a side of the split to compare latents with surface rivals.")
        )
    if result.across:
        rows = [[of.type, of.inside, of.outside] for of in result.across]
        head = ["type", "AUROC, chosen on this type", "chosen on the others"]
        blocks.append(Table(head, rows, [""] * len(rows), "Between types of entities"))
    return blocks


def _trade_off(result: Any) -> list[Block]:
    points = {"no edit": [_rates(result.rows[0])]}
    for name in ("clamp known", "clamp unknown"):
        points[name] = [
            _rates(row) for row in result.rows if (row.edit.name, row.edit.sae) == (name, "trained")
        ]
    points["constant on the logit of refusal"] = [(of.hallucination, of.accuracy) for of in result.curve]
    points = {name: sorted(of) for name, of in points.items() if of}
    series = [Series(name, of, i) for i, (name, of) in enumerate(points.items())]
    rows = [
        [name, *(_pair(of, i) for i in range(max(map(len, points.values()))))] for name, of in points.items()
    ]
    head = ["hallucination / accuracy", *(str(i + 1) for i in range(len(rows[0]) - 1))]
    plot = curves("trade", "Trade-off", Axis("hallucination on unknown"), Axis("accuracy on known"), series)
    said = (
        "Each point is an edit: answers about unknown entities against right answers about known ones. A "
        "constant on the logit of refusal needs no latents; what lies above its line does better."
    )
    table = Table(head, rows, [swatch(i) for i in range(len(rows))])
    return [Figure("Trade-off", said, plot, table)]


def _pair(points: Sequence[tuple[float, float]], i: int) -> str | None:
    return f"{points[i][0]:.2f} / {points[i][1]:.2f}" if i < len(points) else None


def _rates(row: Any) -> tuple[float, float]:
    return tuple(row.measures[name].estimate.item() for name in ("hallucination", "accuracy"))  # type: ignore


def _flipped(result: Any) -> list[Block]:
    rows = [
        [
            of.edit,
            highlighted(of.prompt, of.place),
            "known" if of.known else "unknown",
            f"{of.before}: {of.text_before}" if of.text_before else of.before,
            f"{of.after}: {of.text_after}" if of.text_after else of.after,
        ]
        for of in result.flipped
    ]
    head = ["edit", "question", "entity", "before", "after"]
    return [Table(head, rows, [""] * len(rows))] if rows else []


def highlighted(prompt: str, place: tuple[int, int] | None) -> Markup:
    """The prompt with its entity marked; of a long one what stands around it, or its end."""
    if place is None:
        return escaped(("…" if len(prompt) > _SHOWN_CHARACTERS else "") + prompt[-_SHOWN_CHARACTERS:])
    start, end = place
    room = max(0, _SHOWN_CHARACTERS - (end - start)) // 2
    before, after = prompt[:start], prompt[end:]
    before = before if len(before) <= room else "…" + before[-room:]
    after = after if len(after) <= room else after[:room] + "…"
    return Markup("{}<mark>{}</mark>{}").format(*map(escaped, (before, prompt[start:end], after)))
