"""What reports are made of: a document that runs nothing, sections, figures, tables. All words are escaped
here."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from saelens_lite.text_table import short

from .html import escaped, policy, style


def document(title: str, sections: Sequence[str], problems: Sequence[str]) -> str:
    """A page; problems are sentences that stand at its top."""
    css = style("report")
    notes = "".join(f'<p class="problem">{escaped(problem)}</p>' for problem in problems)
    return (
        f'<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{policy(css)}">\n'
        f'<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escaped(title)}</title>\n<style>{css}</style>\n</head>\n<body>\n"
        f"<h1>{escaped(title)}</h1>\n{notes}\n{''.join(sections)}\n"
        "<footer><p>Made by saelens_lite; this file needs no network and runs no "
        "script.</p></footer>\n</body>\n</html>\n"
    )


def section(title: str, body: str) -> str:
    """body: markup"""
    return f"<section>\n<h2>{escaped(title)}</h2>\n{body}\n</section>\n"


def grid(figures: Sequence[str]) -> str:
    """Figures side by side where there is room."""
    return f'<div class="figures">\n{"".join(figures)}</div>'


def figure(title: str, definition: str, plot: str, legend: str) -> str:
    """plot, legend: markup, an <svg> and a table"""
    head = f"<h3>{escaped(title)}</h3><p>{escaped(definition)}</p>"
    return f"<figure><figcaption>{head}</figcaption>{plot}{legend}</figure>\n"


def table(head: Sequence[str], rows: Sequence[Sequence[Any]], legend: Sequence[str]) -> str:
    """A table that scrolls where it is too wide; legend: markup that stands before the first cell of each
    row."""
    columns = [[row[i] for row in rows] for i in range(len(head))]
    words = [' class="word"' if any(isinstance(value, str) for value in column) else "" for column in columns]
    cells = "".join(f'<th scope="col"{word}>{escaped(name)}</th>' for name, word in zip(head, words))
    lines = []
    for drawn, (name, *values) in zip(legend, rows):
        row = "".join(f"<td{word}>{escaped(text(value))}</td>" for value, word in zip(values, words[1:]))
        lines.append(f'<tr><th scope="row">{drawn}{escaped(text(name))}</th>{row}</tr>')
    lined = f"<table><thead><tr>{cells}</tr></thead><tbody>{''.join(lines)}</tbody></table>"
    return f'<div class="wide" role="region" aria-label="{escaped(", ".join(head[:4]))}" tabindex="0">{lined}</div>'


def folded(summary: str, pairs: Mapping[str, Any]) -> str:
    """Names and what is to say of each, to unfold; nothing without any."""
    listed = "".join(
        f"<dt>{escaped(name)}</dt><dd>{escaped(text(value))}</dd>" for name, value in pairs.items()
    )
    return f"<details><summary>{escaped(summary)}</summary><dl>{listed}</dl></details>" if listed else ""


def text(value: Any) -> str:
    """A cell: four significant digits, thousands apart, a dash for what is not known."""
    if value is None:
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    return short(value) if isinstance(value, float) else str(value)
