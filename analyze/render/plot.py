"""Plots as plain SVG: curves and points with axes, a title and a description for who cannot see them.

Colours, line styles and the page's dark form are in report.css, by class:
series i has class `s<i>`, one of 30 pairs of 6 colours that the colour-blind tell apart and 5 line styles (or
marks).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from markupsafe import Markup
from numpy.typing import ArrayLike, NDArray

from saelens_lite.text_table import short

from .html import escaped

N_COLOURS, N_LINES = 6, 5
MAX_POINTS = 1_000
WIDTH, HEIGHT = 560, 270
LEFT, RIGHT, TOP, BOTTOM = 62, 14, 12, 44
_MARKS = (
    '<circle class="mark" cx="{x}" cy="{y}" r="4"/>',
    '<rect class="mark" x="{l}" y="{t}" width="8" height="8"/>',
    '<path class="mark" d="M{x} {t}L{r} {b}H{l}Z"/>',
    '<path class="mark" d="M{x} {t}L{r} {y}L{x} {b}L{l} {y}Z"/>',
    '<path class="mark" d="M{l} {t}L{r} {b}M{l} {b}L{r} {t}"/>',
)

Point = tuple[float, float | None]


@dataclass(frozen=True, slots=True)
class Series:
    """One line, or the points of one mark. points: (x, y) in order of x; y None or NaN leaves a gap"""

    name: str
    points: ArrayLike
    style: int = 0


@dataclass(frozen=True, slots=True)
class Axis:
    """What stands along an edge of a plot. log: in powers of ten; only positive numbers are drawn"""

    label: str
    log: bool = False


def curves(name: str, title: str, x: Axis, y: Axis, series: Sequence[Series]) -> Markup:
    """An <svg> of lines, each thinned to MAX_POINTS; single points are dots. name: unique in the page"""
    drawn = [Series(one.name, thinned(_on_axis(one.points, y), MAX_POINTS), one.style) for one in series]
    frame = _Frame(x, y, [point for one in drawn for point in one.points])
    return _svg(name, title, _described(x, y, series), [frame.axes(), *(frame.line(one) for one in drawn)])


def scatter(name: str, title: str, x: Axis, y: Axis, series: Sequence[Series]) -> Markup:
    """An <svg> of marks; x is positive where its axis is logarithmic."""
    drawn = [Series(one.name, _listed(_on_axis(one.points, y)), one.style) for one in series]
    frame = _Frame(x, y, [point for one in drawn for point in one.points])
    return _svg(name, title, _described(x, y, series), [frame.axes(), *(frame.marks(one) for one in drawn)])


def swatch(style: int, mark: bool = False) -> Markup:
    """The line or mark of a series, for a legend; hidden from readers for the blind."""
    drawn = _mark(style, 18, 6) if mark else '<path class="line" d="M2 6H34"/>'
    return Markup(
        f'<svg class="swatch" viewBox="0 0 36 12" aria-hidden="true">'
        f'<g class="{_class(style)}">{drawn}</g></svg>'
    )


def thinned(points: ArrayLike, limit: int) -> list[Point]:
    """At most `limit` of the points: the first, last, lowest and highest of each of limit / 4 stretches.

    A gap between two that stay is one point more, whose y is None.
    """
    points = _array(points)
    (at,) = np.nonzero(~np.isnan(points[:, 1]))
    kept = list(range(len(at)))  # of the points that are no gaps
    if len(at) > limit:
        n = max(1, limit // 4)
        kept, values = [], points[at, 1]
        for j in range(n):
            low, high = j * len(at) // n, (j + 1) * len(at) // n
            stretch = values[low:high]
            kept += sorted({low, low + int(stretch.argmin()), low + int(stretch.argmax()), high - 1})
    result = _listed(points[at[kept[:1]]])
    for (before, after), point in zip(pairwise(kept), _listed(points[at[kept[1:]]])):
        if at[after] - at[before] != after - before:
            result.append((point[0], None))
        result.append(point)
    return result


def linear_ticks(low: float, high: float, n: int = 5) -> list[float]:
    """About n multiples of 1, 2 or 5 times a power of ten within [low, high]."""
    rough = (high - low) / n
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= 0.8 * rough)
    return [i * step for i in range(math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9) + 1)]


def log_ticks(low: float, high: float) -> list[float]:
    """Powers of ten within [10^low, 10^high]; where these are few also 2 and 5 times them, or linear ones."""
    decades = range(math.floor(low), math.ceil(high) + 1)
    for factors in ((1,), (1, 2, 5)):
        every = max(1, len(decades) // 8) if factors == (1,) else 1
        places = [(decade + math.log10(factor), decade, factor) for decade in decades for factor in factors]
        kept = [place for place in places if place[1] % every == 0 and low <= place[0] <= high]
        ticks = [factor * 10.0**decade for _, decade, factor in kept]
        if len(ticks) >= 3:
            return ticks
    return linear_ticks(10.0**low, 10.0**high)


class _Frame:
    """Where numbers stand in the picture. points: all that will be drawn, for the ranges of the axes"""

    def __init__(self, x: Axis, y: Axis, points: Sequence[Point]) -> None:
        self.x, self.y = x, y
        shown = [(at, value) for at, value in points if value is not None]
        self.x_range = _range([_scaled(at, x) for at, _ in shown], x.log)
        self.y_range = _range([_scaled(value, y) for _, value in shown], y.log)

    def at(self, x: float, y: float) -> tuple[str, str]:
        """Coordinates in the picture, in tenths of its unit."""
        return self._place(_share(_scaled(x, self.x), self.x_range), _share(_scaled(y, self.y), self.y_range))

    def _place(self, right: float, up: float) -> tuple[str, str]:
        x, y = LEFT + right * (WIDTH - LEFT - RIGHT), HEIGHT - BOTTOM - up * (HEIGHT - TOP - BOTTOM)
        return f"{x:.1f}", f"{y:.1f}"

    def line(self, one: Series) -> str:
        segments: list[list[tuple[str, str]]] = [[]]
        for x, y in one.points:
            if y is None:
                segments.append([])
            else:
                segments[-1].append(self.at(x, y))
        path, dots = [], []
        for places in filter(None, segments):
            if len(places) == 1:
                dots.append('<circle class="dot" cx="{}" cy="{}" r="2.5"/>'.format(*places[0]))
            else:
                path.append("M" + "L".join(f"{x} {y}" for x, y in places))
        line = f'<path class="line" d="{"".join(path)}"/>' if path else ""
        return f'<g class="{_class(one.style)}">{line}{"".join(dots)}</g>'

    def marks(self, one: Series) -> str:
        places = [self.at(x, y) for x, y in one.points if y is not None]
        marks = "".join(_mark(one.style, float(x), float(y)) for x, y in places)
        return f'<g class="{_class(one.style)}">{marks}</g>'

    def axes(self) -> str:
        bottom, right, middle = HEIGHT - BOTTOM, WIDTH - RIGHT, TOP + (HEIGHT - TOP - BOTTOM) / 2
        parts = []
        for tick in _ticks(self.y_range, self.y.log):
            y = self._place(0, _share(_scaled(tick, self.y), self.y_range))[1]
            parts.append(f'<path class="grid" d="M{LEFT} {y}H{right}"/>')
            parts.append(f'<text class="y" x="{LEFT - 7}" y="{y}">{short(tick)}</text>')
        for tick in _ticks(self.x_range, self.x.log):
            x = self._place(_share(_scaled(tick, self.x), self.x_range), 0)[0]
            parts.append(f'<path class="grid" d="M{x} {TOP}V{bottom}"/>')
            parts.append(f'<text class="x" x="{x}" y="{bottom + 16}">{short(tick)}</text>')
        x_label, y_label = escaped(self.x.label), escaped(self.y.label)
        parts.append(f'<text class="x" x="{(LEFT + right) / 2}" y="{HEIGHT - 7}">{x_label}</text>')
        turned = f"rotate(-90 13 {middle})"
        parts.append(f'<text class="x" x="13" y="{middle}" transform="{turned}">{y_label}</text>')
        return "".join(parts)


def _array(points: ArrayLike) -> NDArray[np.float64]:
    """float64[n 2], NaN for None."""
    return np.asarray(points, dtype=np.float64).reshape(-1, 2)


def _listed(points: NDArray[np.float64]) -> list[Point]:
    return [(x, None if math.isnan(y) else y) for x, y in points.tolist()]


def _on_axis(points: ArrayLike, y: Axis) -> NDArray[np.float64]:
    """The points, with a gap for each not finite (or beyond 1e±300), or not positive where y is log."""
    points = _array(points).copy()
    values = points[:, 1]
    values[~((np.abs(values) <= 1e300) & ((values >= 1e-300) | (not y.log)))] = np.nan
    return points


def _scaled(value: float, axis: Axis) -> float:
    return math.log10(value) if axis.log else value


def _range(values: Sequence[float], log: bool) -> tuple[float, float]:
    """The ends of an axis: those of the values with some room, 0 where it is near, never of no length."""
    if not values:
        return (-1.0, 0.0) if log else (0.0, 1.0)
    low, high = min(values), max(values)
    if log:
        room = max(0.03 * (high - low), 0.3 if high - low < 0.02 else 0.0)
        return max(-300.0, low - room), min(300.0, high + room)
    if high - low <= 1e-6 * max(abs(low), abs(high)):
        return (0.0, 2 * high or 1.0) if low >= 0 else (2 * low, 0.0)
    room = 0.04 * (high - low)
    return (0.0 if 0 <= low < 0.5 * high else low - room), (0.0 if 0 >= high > 0.5 * low else high + room)


def _share(value: float, ends: tuple[float, float]) -> float:
    return (value - ends[0]) / (ends[1] - ends[0])


def _ticks(ends: tuple[float, float], log: bool) -> list[float]:
    return log_ticks(*ends) if log else linear_ticks(*ends)


def _mark(style: int, x: float, y: float) -> str:
    shape = _MARKS[style % N_LINES]
    return shape.format(x=x, y=y, l=f"{x - 4:.1f}", r=f"{x + 4:.1f}", t=f"{y - 4:.1f}", b=f"{y + 4:.1f}")


def _class(style: int) -> str:
    return f"c{style % N_COLOURS} l{style % N_LINES}"


def _svg(name: str, title: str, description: str, parts: Sequence[str]) -> Markup:
    return Markup(
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-labelledby="{name}-title {name}-desc">'
        f'<title id="{name}-title">{escaped(title)}</title>'
        f'<desc id="{name}-desc">{escaped(description)}</desc>'
        f"{''.join(parts)}</svg>"
    )


def _described(x: Axis, y: Axis, series: Sequence[Series]) -> str:
    words = [f"{y.label} against {x.label}."]
    for one in series:
        points = _array(one.points)
        finite = points[np.isfinite(points[:, 1])]
        if not len(finite):
            words.append(f"{one.name}: nothing to draw.")
        elif len(finite) == 1:
            words.append(f"{one.name}: {short(finite[0][1])} at {short(finite[0][0])}.")
        else:
            (first_x, first), (last_x, last) = finite[0], finite[-1]
            words.append(f"{one.name}: {short(first)} at {short(first_x)}, {short(last)} at {short(last_x)}.")
    return " ".join(words)
