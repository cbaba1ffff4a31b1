"""Results as people and programs take them: aligned text, numbers in words, plain values, and `Tabular`, by
which a result leaves for pandas, Markdown, LaTeX, CSV and notebooks."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pandas import DataFrame


def aligned(lines: Sequence[Sequence[str]], left: int = 1) -> str:
    """Cells as text, the first `left` columns to the left and the others to the right.

    lines: the first has all columns; another has as many, or fewer that widen the first column only
    """
    full = [line for line in lines if len(line) == len(lines[0])]
    widths = [max(len(line[i]) for line in full) for i in range(len(lines[0]))]
    widths[0] = max(len(line[0]) for line in lines)
    sides = [str.ljust] * left + [str.rjust] * len(widths)
    padded = [[side(*cell) for side, *cell in zip(sides, line, widths)] for line in lines]
    return "\n".join("  ".join(cells).rstrip() for cells in padded)


def filled_columns(lines: Sequence[Sequence[str]]) -> list[tuple[str, ...]]:
    """The lines without the columns that have a head only; the first column stays."""
    columns = list(zip(*lines))
    return list(zip(*(column for i, column in enumerate(columns) if i == 0 or any(column[1:]))))


def number(value: float | None, spec: str, absent: str = "n/a") -> str:
    """A number in a format such as ".3f"; `absent` for None and nan."""
    return absent if value is None or math.isnan(value) else format(value, spec)


def span(low: float, high: float, spec: str) -> str:
    """The ends of an interval: "0.21 to 0.35"."""
    return f"{low:{spec}} to {high:{spec}}"


def short(value: float) -> str:
    """Four significant digits: 0.1416, 12.5, 200k, 1.5M, 3e-05."""
    for unit, suffix in ((1e9, "B"), (1e6, "M"), (1e4, "k")):
        if unit <= abs(value) < 1e15:
            return f"{value / (1e3 if suffix == 'k' else unit):.4g}{suffix}"
    return f"{value:.4g}"


def cell(value: Any) -> str:
    """Any value in a table: four significant digits, thousands apart, a dash for what is not known."""
    if value is None:
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, str):  # markup stays markup
        return value
    return short(value) if isinstance(value, float) else str(value)


def rounded(value: float) -> float:
    return float(f"{value:.4g}")


def plain(value: Any) -> Any:
    """As JSON has it: None for nan and infinity, lists for tuples."""
    if isinstance(value, dict):
        return {key: plain(held) for key, held in value.items()}
    if isinstance(value, list | tuple):
        return [plain(held) for held in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def frame(rows: Sequence[Mapping[str, Any]]) -> DataFrame:
    """A line for each row; what a row holds by name becomes columns such as "effect.low".

    raises: ImportError without pandas
    """
    try:
        import pandas
    except ImportError as error:
        raise ImportError("to_frame expected pandas, which is not installed: pip install pandas") from error
    return pandas.json_normalize(list(rows))


Lines = list[list[str]]
"""The cells of a table, heads first. Another line has as many, or fewer where the rest is empty."""


class Tabular:
    """A result that leaves as a table. A subclass says what is in it: `_tables` and `_notes` for people,
    `_records` for programs."""

    __slots__ = ()
    _left = 1
    """columns to the left in aligned text"""

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers, for JSON."""
        return {"rows": plain(self._records())}

    def _records(self) -> list[dict[str, Any]]:
        """A row of plain values for each line."""
        return self.to_dict()["rows"]

    def _tables(self) -> list[tuple[str, Lines]]:
        """(title, cells) of each table; one title may be empty."""
        rows = [_flat(record) for record in self._records()]
        heads = list(dict.fromkeys(name for row in rows for name in row))
        return [("", [heads, *([cell(row.get(name)) for name in heads] for row in rows)])]

    def _notes(self) -> list[str]:
        """Sentences below the tables."""
        return []

    def table(self) -> str:
        """Aligned text."""
        tables = [(title, aligned(lines, self._left)) for title, lines in self._tables()]
        parts = [f"{title}\n{text}" if title else text for title, text in tables]
        notes = "\n".join(self._notes())
        return ("\n\n" if len(parts) > 1 else "\n").join([*parts, *([notes] if notes else [])])

    def to_frame(self) -> DataFrame:
        """A pandas DataFrame, a line for each row; what a row holds by name becomes columns such as
        effect.low. raises: ImportError without pandas"""
        return frame(self._records())

    def to_csv(self) -> str:
        """The same columns as comma-separated values."""
        rows, text = [_flat(record) for record in self._records()], io.StringIO()
        heads = list(dict.fromkeys(name for row in rows for name in row))
        writer = csv.DictWriter(text, heads, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
        return text.getvalue()

    def to_markdown(self) -> str:
        """A pipe table of the cells that `print` shows, with the notes below."""
        parts = []
        for title, lines in self._tables():
            table = markdown_table(lines)
            parts.append(f"{_in_markdown(title)}\n\n{table}" if title else table)
        return "\n\n".join([*parts, *map(_in_markdown, self._notes())])

    def to_latex(self) -> str:
        """A tabular of the cells that `print` shows, for LaTeX's booktabs."""
        parts = []
        for title, lines in self._tables():
            heads, *rows = [" & ".join(map(_in_latex, line)) + r" \\" for line in _full(lines)]
            columns = "l" + "r" * (len(lines[0]) - 1)
            body = [r"\toprule", heads, r"\midrule", *rows, r"\bottomrule"]
            tabular = "\n".join([rf"\begin{{tabular}}{{{columns}}}", *body, r"\end{tabular}"])
            parts.append(f"% {title}\n{tabular}" if title else tabular)
        return "\n\n".join(parts)

    def _repr_html_(self) -> str:
        from markupsafe import escape

        parts = []
        for title, lines in self._tables():
            heads, *rows = _full(lines)
            head = "".join(f"<th>{escape(text)}</th>" for text in heads)
            body = ("".join(f"<td>{escape(text)}</td>" for text in line) for line in rows)
            caption = f"<caption>{escape(title)}</caption>" if title else ""
            lines_ = "".join(f"<tr>{cells}</tr>" for cells in body)
            parts.append(f"<table>{caption}<thead><tr>{head}</tr></thead><tbody>{lines_}</tbody></table>")
        return "\n".join([*parts, *(f"<p>{escape(note)}</p>" for note in self._notes())])


def markdown_table(lines: Lines) -> str:
    """Cells as a pipe table, in which no text becomes markup."""
    heads, *rows = [[_in_markdown(text) for text in line] for line in _full(lines)]
    rule = ["---", *["---:"] * (len(heads) - 1)]
    return "\n".join(f"| {' | '.join(line)} |" for line in (heads, rule, *rows))


FORMATS = ("table", "markdown", "csv", "json")


def in_format(result: Tabular, form: str) -> str:
    """A result as one of FORMATS."""
    if form == "json":
        return json.dumps(result.to_dict(), indent=1, ensure_ascii=False)
    text = {"table": str, "markdown": type(result).to_markdown, "csv": type(result).to_csv}[form](result)
    return text.rstrip("\n")


def _flat(record: Mapping[str, Any], before: str = "") -> dict[str, Any]:
    """What a record holds by name as columns "effect.low"; a list is JSON."""
    flat: dict[str, Any] = {}
    for name, value in record.items():
        if isinstance(value, Mapping):
            flat |= _flat(value, f"{before}{name}.")
        else:
            flat[f"{before}{name}"] = json.dumps(value) if isinstance(value, list | tuple) else value
    return flat


def _full(lines: Lines) -> Lines:
    return [[*line, *[""] * (len(lines[0]) - len(line))] for line in lines]


def _in_markdown(text: str) -> str:
    for mark in "\\|*_`<[":
        text = text.replace(mark, f"\\{mark}")
    return " ".join(text.split())


_LATEX = {mark: rf"\{mark}" for mark in "&%$#_{}"} | {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "Δ": r"$\Delta$",
    "±": r"$\pm$",
    "×": r"$\times$",
    "−": "$-$",
    "–": "--",
    "<": "$<$",
    ">": "$>$",
}


def _in_latex(text: str) -> str:
    return "".join(_LATEX.get(character, character) for character in text)
