"""The part of a report that compares SAEs by what `saelens-lite evaluate --output` measured of them.

The values come from files, so anything may be missing or of another type: what is no number is a dash in the
table and stays out of the plots.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from saelens_lite.json_data import is_number

from ..evaluation.result import BASELINE, TRAINED
from ..render.plot import N_COLOURS, Axis, Series, curves, scatter, swatch
from ..render.report_blocks import Block, Figure, Figures, Folded, Paragraph, Section, Table
from .run_folders import Run

_LEFT_TO_THE_JSON = ("ev_", "density_", "dense_")
"""Prefixes of numbers that the table leaves out for its width."""
_WINDOW_UNITS = {"k": 10**3, "M": 10**6, "B": 10**9}


@dataclass(frozen=True, slots=True)
class Evaluated:
    """One evaluation, Evaluation.to_dict(). name: of its SAE; run: its number, which gives the colour"""

    name: str
    run: int
    values: Mapping[str, Any]

    def row(self, name: str) -> Mapping[str, Any] | None:
        rows = (row for row in self.values["rows"] if row.get("name") == name)
        return next((row for row in rows if row.get("given", True)), None)

    def style(self, name: str) -> int:
        """A baseline has the colour of its SAE, and another line or mark."""
        return self.run + (N_COLOURS if name == BASELINE else 0)

    @property
    def text(self) -> str:
        """What must agree between evaluations for their numbers to compare."""
        keys = ("store", "hook_point", "held_out", "n_tokens", "n_ce_tokens")
        return repr([self.values.get(key) for key in keys])


def comparison(runs: Sequence[Run], told: Callable[[Any], str]) -> list[Section]:
    """The sections on evaluations, none where there are none. told: says a fact of an evaluation in words"""
    found = []
    for i, run in enumerate(runs):
        several = len(run.evaluations) > 1
        found += [
            Evaluated(f"{run.name} {file.removesuffix('.json')}" if several else run.name, i, values)
            for file, values in run.evaluations.items()
        ]
    if not found:
        return []
    tables = [*_table(found), *_stability(found), *_sources(found, told), _definitions(found)]
    figures = [*filter(None, (_trade_off(found), _cost(found), _dead(found), _densities(found)))]
    sections = [Section("Evaluation", tables)]
    return [*sections, Section("Evaluation in plots", [Figures(figures)])] if figures else sections


# Tables -----------------------------------------------------------------------------------------------------


def _table(found: Sequence[Evaluated]) -> list[Block]:
    """SAEs, baselines, then ablations (one line where they agree), then the noise of seeds."""
    rows: list[tuple[str, str, Mapping[str, Any], str]] = []  # run, row, numbers, legend
    for name in dict.fromkeys(row.get("name") for one in found for row in one.values["rows"]):
        of_name = [(one, row) for one in found if (row := one.row(name)) is not None]
        agree = len(of_name) > 1 and all(row == of_name[0][1] for _, row in of_name)
        if agree and name not in (TRAINED, BASELINE):
            rows.append(("all", str(name), of_name[0][1], ""))
            continue
        rows += [(one.name, str(name), row, swatch(one.style(name), mark=True)) for one, row in of_name]
    for what in ("sd", "detectable"):
        for one in found:
            noise = one.values.get("seed_noise")
            if isinstance(noise, Mapping):
                of_what = {name: of.get(what) for name, of in noise.items() if isinstance(of, Mapping)}
                rows.append((one.name, f"seed noise: {what}", of_what, swatch(one.run, mark=True)))
    names = dict.fromkeys(key for _, _, row, _ in rows for key in row if key not in ("name", "given"))
    names = [name for name in names if any(row.get(name) is not None for _, _, row, _ in rows)]
    names = [name for name in names if not name.startswith(_LEFT_TO_THE_JSON)]
    lines = [[run, name, *map(row.get, names)] for run, name, row, _ in rows]
    table = Table(["run", "row", *names], lines, [legend for *_, legend in rows])
    notes = []
    if len({one.text for one in found}) > 1:
        notes.append(
            "These evaluations are over different text, as said below: their numbers do not compare."
        )
    if any(one.values.get("seed_noise") for one in found):
        notes.append(
            "Numbers less than “detectable” apart differ by no more than two seeds of one SAE may (95 %)."
        )
    elif len(found) > 1:
        notes.append(
            "How much another seed would change these numbers is not known: evaluate --seeds measures it."
        )
    if not any(one.row(BASELINE) for one in found):
        notes.append("There is no baseline of random directions here: evaluate --baseline adds one.")
    return [*map(Paragraph, notes), table]


def _stability(found: Sequence[Evaluated]) -> list[Block]:
    known = [one for one in found if isinstance(one.values.get("stability"), Mapping)]
    if not known:
        return []
    names = ["mmcs", "random_mmcs", "mcc", "random_mcc"]
    rows = [[one.name, *map(one.values["stability"].get, names)] for one in known]
    legend = [swatch(one.run, mark=True) for one in known]
    return [Table(["run", *names], rows, legend, title="The same directions in several seeds")]


def _sources(found: Sequence[Evaluated], told: Callable[[Any], str]) -> list[Block]:
    """What each evaluation rests on; once where all rest on the same."""
    said: dict[str, list[str]] = {}
    for one in found:
        plain = {key: value for key, value in one.values.items() if not isinstance(value, list | dict)}
        facts = ", ".join(f"{key} {told(value)}" for key, value in plain.items())
        said.setdefault(facts, []).append(one.name)
    who = {
        facts: "All" if len(names) == len(found) > 1 else ", ".join(names) for facts, names in said.items()
    }
    return [Paragraph(f"{names}: {facts}") for facts, names in who.items()]


def _definitions(found: Sequence[Evaluated]) -> Folded:
    defined: dict[str, str] = {}
    for one in found:
        if isinstance(one.values.get("definitions"), Mapping):
            defined |= {name: str(text) for name, text in one.values["definitions"].items()}
    return Folded("What the columns mean", defined)


# Plots ------------------------------------------------------------------------------------------------------


def _trade_off(found: Sequence[Evaluated]) -> Figure | None:
    definition = (
        "Fraction of variance unexplained against latents a token, of SAEs and baselines; "
        "down and left is better."
    )
    return _against_l0(found, "evaluated-fvu", "fvu against l0", definition, "fvu")


def _cost(found: Sequence[Evaluated]) -> Figure | None:
    definition = "What running on the reconstruction costs the model, nats a token, against latents a token."
    return _against_l0(found, "evaluated-ce", "ΔCE against l0", definition, "delta_ce", "ΔCE")


def _against_l0(
    found: Sequence[Evaluated], name: str, title: str, definition: str, key: str, label: str = ""
) -> Figure | None:
    known = []
    for one, of in itertools.product(found, (TRAINED, BASELINE)):
        row = one.row(of) or {}
        if is_number(row.get("l0")) and is_number(row.get(key)):
            known.append((_named(one, of), row["l0"], row[key], one.style(of)))
    return against(name, title, definition, ("l0", label or key), known)


def against(
    name: str,
    title: str,
    definition: str,
    labels: tuple[str, str],
    known: Sequence[tuple[str, float, float, int]],
) -> Figure | None:
    """A number against l0; None where fewer than two are known.

    name: unique in the page; labels: of l0 and the number; known: (name, l0, number, style) of each mark
    """
    if len(known) < 2:
        return None
    sparsities = [l0 for _, l0, _, _ in known]
    x = Axis(labels[0], log=min(sparsities) > 0 and max(sparsities) > 8 * min(sparsities))
    series = [Series(one, [(l0, value)], style) for one, l0, value, style in known]
    legend = [swatch(style, mark=True) for *_, style in known]
    table = Table(["run", *labels], [row[:3] for row in known], legend)
    return Figure(title, definition, scatter(name, title, x, Axis(labels[1]), series), table)


def _dead(found: Sequence[Evaluated]) -> Figure | None:
    """Share of latents that were silent, by window; None where fewer than two are known."""
    series, rows, legend = [], [], []
    columns = {key for one in found for of in (TRAINED, BASELINE) for key in one.row(of) or {}}
    windows = sorted(filter(_tokens, columns), key=_tokens)
    for one, of in itertools.product(found, (TRAINED, BASELINE)):
        row = one.row(of) or {}
        points = [(_tokens(key), row[key]) for key in windows if is_number(row.get(key))]
        if points:
            series.append(Series(_named(one, of), points, one.style(of)))
            rows.append([_named(one, of), *map(row.get, windows)])
            legend.append(swatch(one.style(of)))
    kept = [i for i in range(len(windows)) if any(row[1 + i] is not None for row in rows)]
    if len(kept) < 2:
        return None
    rows = [[row[0], *(row[1 + i] for i in kept)] for row in rows]
    title = "Dead latents by window"
    definition = (
        "Share of the latents silent for the last N tokens of the store. One silent for N tokens fires on "
        "less than 3 / N of them (95 %): a short window counts rare latents as dead."
    )
    x = Axis("tokens looked at", log=True)
    plot = curves("evaluated-dead", title, x, Axis("share dead"), series)
    return Figure(title, definition, plot, Table(["run", *(windows[i] for i in kept)], rows, legend))


def _densities(found: Sequence[Evaluated]) -> Figure | None:
    series, rows, legend = [], [], []
    for one, of in itertools.product(found, (TRAINED, BASELINE)):
        counted = _counted(one, of)
        filled = [i for i, count in enumerate(counted[1]) if count] if counted else []
        if counted is None or not filled:
            continue
        edges, counts, never = counted
        n = sum(counts) + never
        span = range(filled[0], filled[-1] + 1)
        outline = [(edges[span[0]], 0.0)]
        for i in span:
            outline += [(edges[i], counts[i] / n), (edges[i + 1], counts[i] / n)]
        series.append(Series(_named(one, of), [*outline, (edges[span[-1] + 1], 0.0)], one.style(of)))
        quantiles = [(one.row(of) or {}).get(f"density_q{q}") for q in ("05", "50", "95")]
        rows.append([_named(one, of), n, never, *quantiles])
        legend.append(swatch(one.style(of)))
    if not series:
        return None
    title = "Density of the latents"
    definition = (
        "log10 of the share of scored tokens on which a latent fires; "
        "those that never fired stand in the table."
    )
    plot = curves("evaluated-density", title, Axis("log10 of the density"), Axis("share of latents"), series)
    head = ["run", "latents", "never fired", "5 % have less", "median", "5 % have more"]
    return Figure(title, definition, plot, Table(head, rows, legend))


def _counted(one: Evaluated, of: str) -> tuple[list[float], list[int], int] | None:
    """log10 edges, latents between them, and those that never fired; None where the file lacks them."""
    densities = one.values.get("densities")
    counted = densities.get(of) if isinstance(densities, Mapping) else None
    if not isinstance(counted, Mapping):
        return None
    edges, counts, never = densities.get("log10_edges"), counted.get("counts"), counted.get("never")
    if not isinstance(edges, list) or not isinstance(counts, list) or len(edges) != len(counts) + 1:
        return None
    return (edges, counts, never) if all(map(is_number, [*edges, *counts, never])) else None


def _named(one: Evaluated, of: str) -> str:
    return one.name if of == TRAINED else f"{one.name} {of}"


def _tokens(column: str) -> int:
    """dead@10k → 10000; 0 for another column."""
    window = column.removeprefix("dead@")
    digits, factor = (window[:-1], _WINDOW_UNITS[window[-1]]) if window[-1:] in _WINDOW_UNITS else (window, 1)
    return int(digits) * factor if window != column and digits.isdecimal() else 0
