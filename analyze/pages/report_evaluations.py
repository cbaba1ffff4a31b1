"""The part of a report that sets SAEs beside each other by what `saelens-lite evaluate --output` measured of
them.

One table holds the SAEs, their baselines, the ablations and the noise of seeds; plots show what the table
cannot. The values
come from files, so that anything may be missing or of another type: what is no number is a dash, and left out
    of plots.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..evaluation.result import BASELINE, TRAINED
from ..render import parts
from ..render.html import escaped
from ..render.plot import N_COLOURS, Axis, Series, curves, scatter, swatch
from .run_folders import Run, is_number

_LEFT_TO_THE_JSON = ("ev_", "density_", "dense_")
"""Beginnings of the names of numbers that the table leaves out for its width."""
_WINDOW_UNITS = {"k": 10**3, "M": 10**6, "B": 10**9}


@dataclass(frozen=True, slots=True)
class Evaluated:
    """One evaluation. name: of its SAE; run: number of its run, which gives the colour; values:
    Evaluation.to_dict()"""

    name: str
    run: int
    values: Mapping[str, Any]

    def row(self, name: str) -> Mapping[str, Any] | None:
        """The row of that name, unless it says that it was not given."""
        return next(
            (row for row in self.values["rows"] if row.get("name") == name and row.get("given", True)), None
        )

    def style(self, name: str) -> int:
        """A baseline has the colour of its SAE, and another line or mark."""
        return self.run + (N_COLOURS if name == BASELINE else 0)

    @property
    def text(self) -> str:
        """What must agree between evaluations for their numbers to compare."""
        return repr(
            [self.values.get(key) for key in ("store", "hook_point", "held_out", "n_tokens", "n_ce_tokens")]
        )


def comparison(runs: Sequence[Run], told: Callable[[Any], str]) -> list[str]:
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
    tables = _table(found) + _stability(found) + _sources(found, told) + _definitions(found)
    figures = [
        figure for figure in (_trade_off(found), _cost(found), _dead(found), _densities(found)) if figure
    ]
    sections = [parts.section("Evaluation", tables)]
    return [*sections, parts.section("Evaluation in plots", parts.grid(figures))] if figures else sections


# Tables ----------------------------------------------------------------------------------------------------------


def _table(found: Sequence[Evaluated]) -> str:
    """SAEs, baselines, then ablations (one line where they agree), then the noise of seeds."""
    rows: list[tuple[str, str, Mapping[str, Any], str]] = []  # run, row, numbers, legend
    for name in dict.fromkeys(row.get("name") for one in found for row in one.values["rows"]):
        of_name = [(one, row) for one in found if (row := one.row(name)) is not None]
        if (
            name not in (TRAINED, BASELINE)
            and len(of_name) > 1
            and all(row == of_name[0][1] for _, row in of_name)
        ):
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
    table = parts.table(["run", "row", *names], lines, [legend for *_, legend in rows])
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
    return "".join(f"<p>{escaped(note)}</p>" for note in notes) + table


def _stability(found: Sequence[Evaluated]) -> str:
    """Whether several seeds found the same directions."""
    known = [one for one in found if isinstance(one.values.get("stability"), Mapping)]
    if not known:
        return ""
    names = ["mmcs", "random_mmcs", "mcc", "random_mcc"]
    rows = [[one.name, *map(one.values["stability"].get, names)] for one in known]
    title = "<h3>The same directions in several seeds</h3>"
    return title + parts.table(["run", *names], rows, [swatch(one.run, mark=True) for one in known])


def _sources(found: Sequence[Evaluated], told: Callable[[Any], str]) -> str:
    """What each evaluation rests on; once where all rest on the same."""
    said = {}
    for one in found:
        facts = [
            f"{key} {told(value)}" for key, value in one.values.items() if not isinstance(value, list | dict)
        ]
        said.setdefault(", ".join(facts), []).append(one.name)
    lines = []
    for facts, names in said.items():
        who = "All" if len(names) == len(found) > 1 else ", ".join(names)
        lines.append(f"<p>{escaped(who)}: {escaped(facts)}</p>")
    return "".join(lines)


def _definitions(found: Sequence[Evaluated]) -> str:
    """What the files say of their numbers."""
    defined: dict[str, str] = {}
    for one in found:
        if isinstance(one.values.get("definitions"), Mapping):
            defined |= {name: str(text) for name, text in one.values["definitions"].items()}
    return parts.folded("What the columns mean", defined)


# Plots -----------------------------------------------------------------------------------------------------------


def _trade_off(found: Sequence[Evaluated]) -> str:
    definition = "Fraction of variance unexplained against latents a token, of SAEs and baselines; down and left is better."
    return _against_l0(found, "evaluated-fvu", "fvu against l0", definition, "fvu")


def _cost(found: Sequence[Evaluated]) -> str:
    definition = "What running on the reconstruction costs the model, nats a token, against latents a token."
    return _against_l0(found, "evaluated-ce", "ΔCE against l0", definition, "delta_ce", "ΔCE")


def _against_l0(
    found: Sequence[Evaluated], name: str, title: str, definition: str, key: str, label: str = ""
) -> str:
    """A mark for each SAE and baseline whose l0 and number are known; none where fewer than two are."""
    series, rows, legend = [], [], []
    for one, of in itertools.product(found, (TRAINED, BASELINE)):
        row = one.row(of) or {}
        l0, value = row.get("l0"), row.get(key)
        if is_number(l0) and is_number(value):
            series.append(Series(_named(one, of), [(l0, value)], one.style(of)))
            rows.append([_named(one, of), l0, value])
            legend.append(swatch(one.style(of), mark=True))
    if len(series) < 2:
        return ""
    sparsities = [row[1] for row in rows]
    x = Axis("l0", log=min(sparsities) > 0 and max(sparsities) > 8 * min(sparsities))
    plot = scatter(name, title, x, Axis(label or key), series)
    return parts.figure(title, definition, plot, parts.table(["run", "l0", label or key], rows, legend))


def _dead(found: Sequence[Evaluated]) -> str:
    """Share of latents that were silent, by how many last tokens one looks at; none where one window is
    known."""
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
        return ""
    rows = [[row[0], *(row[1 + i] for i in kept)] for row in rows]
    definition = (
        "Share of the latents silent for the last N tokens of the store. One silent for N tokens fires on "
        "less than 3 / N "
        "of them (95 %): a short window counts rare latents as dead."
    )
    plot = curves(
        "evaluated-dead",
        "Dead latents by window",
        Axis("tokens looked at", log=True),
        Axis("share dead"),
        series,
    )
    return parts.figure(
        "Dead latents by window",
        definition,
        plot,
        parts.table(["run", *(windows[i] for i in kept)], rows, legend),
    )


def _densities(found: Sequence[Evaluated]) -> str:
    """Outlines of the latents' densities."""
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
        return ""
    title = "Density of the latents"
    definition = "log10 of the share of scored tokens on which a latent fires; those that never fired stand in the table."
    plot = curves("evaluated-density", title, Axis("log10 of the density"), Axis("share of latents"), series)
    head = ["run", "latents", "never fired", "5 % have less", "median", "5 % have more"]
    return parts.figure(title, definition, plot, parts.table(head, rows, legend))


def _counted(one: Evaluated, of: str) -> tuple[list[float], list[int], int] | None:
    """log10 edges, latents between them, and those that never fired; None where the file has them not, or not
    whole."""
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
