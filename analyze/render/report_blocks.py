"""What a report is made of, as plain values, which templates/report.html draws."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from markupsafe import Markup

from .html import policy, rendered, style


@dataclass(frozen=True, slots=True)
class Paragraph:
    kind: ClassVar = "paragraph"
    text: str


@dataclass(frozen=True, slots=True)
class Table:
    """A table that scrolls where it is too wide.

    rows: values as `text_table.cell` words them; legend: a swatch before the first cell of each
    title: above it; "" for none
    """

    kind: ClassVar = "table"
    head: Sequence[str]
    rows: Sequence[Sequence[Any]]
    legend: Sequence[Markup | str]
    title: str = ""

    @property
    def has_words(self) -> list[bool]:
        return [any(isinstance(row[i], str) for row in self.rows) for i in range(len(self.head))]


@dataclass(frozen=True, slots=True)
class Figure:
    kind: ClassVar = "figure"
    title: str
    definition: str
    plot: Markup | str = ""
    table: Table | None = None


@dataclass(frozen=True, slots=True)
class Figures:
    """Figures, side by side where there is room."""

    kind: ClassVar = "figures"
    figures: Sequence[Figure]


@dataclass(frozen=True, slots=True)
class Folded:
    """Names and what to say of each, to unfold; nothing without any."""

    kind: ClassVar = "folded"
    summary: str
    pairs: Mapping[str, Any]


Block = Paragraph | Table | Figure | Figures | Folded


@dataclass(frozen=True, slots=True)
class Section:
    title: str
    blocks: Sequence[Block]


def document(title: str, sections: Sequence[Section], problems: Sequence[str]) -> str:
    """A page that runs nothing; problems are sentences that stand at its top."""
    css = style("report")
    return rendered(
        "report.html", title=title, sections=sections, problems=problems, style=css, policy=policy(css)
    )
