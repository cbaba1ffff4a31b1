"""Plots worked out by hand: where points stand, what thinning keeps, what cannot be drawn."""

import math
import re
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest

from saelens_lite.analyze.render import html, plot
from saelens_lite.analyze.render.plot import (
    Axis,
    Series,
    curves,
    linear_ticks,
    log_ticks,
    scatter,
    swatch,
    thinned,
)

CSS = (Path(plot.__file__).parent / "report.css").read_text()


def drawn(series, log=False, make=curves):
    return ElementTree.fromstring(make("p", "A plot", Axis("tokens"), Axis("loss", log), series))


def paths(svg):
    return [path.get("d") for path in svg.iter("path") if path.get("class") == "line"]


def test_points_stand_where_the_axes_say():
    """x and y from 0 to 10 and 4 % room: 10 stands at 10 / 10.4 of 484 pixels from 62, and of 214 up from
    226."""
    (path,) = paths(drawn([Series("a", [(0, 0.0), (10, 10.0)])]))
    assert path == f"M62.0 226.0L{62 + 484 / 1.04:.1f} {226 - 214 / 1.04:.1f}"


def test_a_decade_of_a_log_axis_is_as_long_as_the_next():
    (path,) = paths(drawn([Series("a", [(0, 1.0), (1, 10.0), (2, 100.0)])], log=True))
    heights = [float(place.split(" ")[1]) for place in path[1:].split("L")]
    assert heights[0] - heights[1] == pytest.approx(heights[1] - heights[2], abs=0.11)


def test_of_each_stretch_the_first_the_last_and_the_extremes_stay():
    values = [0, 5, 1, -2, 3, 2, 2, 2, 9, 1, 0, 4]
    points = [(float(x), float(y)) for x, y in enumerate(values)]
    assert [x for x, _ in thinned(points, 8)] == [0, 1, 3, 5, 6, 8, 10, 11]
    assert thinned(points, 12) == points


def test_a_long_curve_is_thinned_and_keeps_its_spikes():
    points = [(float(x), math.sin(x / 1000)) for x in range(50_000)]
    points[12_345], points[40_001] = (12_345.0, 99.0), (40_001.0, -99.0)
    kept = thinned(points, 1000)
    assert len(kept) <= 1000 and (kept[0], kept[-1]) == (points[0], points[-1])
    assert points[12_345] in kept and points[40_001] in kept
    svg = drawn([Series("a", points)])
    assert paths(svg)[0].count("L") < 1000


def test_gaps_stay_gaps_and_what_stands_alone_is_a_dot():
    points = [(0, 1.0), (1, 2.0), (2, None), (3, math.nan), (4, 3.0), (5, None), (6, 1.0), (7, 1.5)]
    svg = drawn([Series("a", points)])
    assert [path.count("M") for path in paths(svg)] == [2]
    assert len([dot for dot in svg.iter("circle") if dot.get("class") == "dot"]) == 1
    long = [(float(x), None if x == 5_000 else 1.0) for x in range(10_000)]
    assert paths(drawn([Series("a", long)]))[0].count("M") == 2


@pytest.mark.parametrize(
    "values", [[], [None], [math.nan], [0.0], [-1.0], [5.0], [0.0, 0.0], [1e-300, 1e300], [-2.0, -1.0]]
)
@pytest.mark.parametrize("log", [False, True])
def test_whatever_comes_is_a_picture(values, log):
    svg = drawn([Series("a", [(float(x), y) for x, y in enumerate(values)])], log)
    places = [
        value
        for element in svg.iter()
        for name, value in element.items()
        if name in ("d", "x", "y", "cx", "cy")
    ]
    assert not re.search("nan|inf|e", " ".join(places))
    assert len(svg.findall("text")) >= 3, "an axis has numbers"


def test_what_is_not_positive_leaves_a_gap_on_a_log_axis():
    svg = drawn([Series("a", [(0, 1.0), (1, 2.0), (2, 0.0), (3, 4.0), (4, 5.0)])], log=True)
    assert paths(svg)[0].count("M") == 2


def test_a_plot_is_told_in_words():
    svg = drawn(
        [
            Series("run <b>", [(0, 2.0), (1000, None), (20_000, 0.5)]),
            Series("one", [(3, 1.0)]),
            Series("none", []),
        ]
    )
    assert svg.get("role") == "img"
    assert svg.get("aria-labelledby").split() == [svg.find("title").get("id"), svg.find("desc").get("id")]
    assert svg.find("title").text == "A plot"
    told = "loss against tokens. run <b>: 2 at 0, 0.5 at 20k. one: 1 at 3. none: nothing to draw."
    assert svg.find("desc").text == told


def test_ticks_are_round():
    assert linear_ticks(0, 575_000) == [0, 100_000, 200_000, 300_000, 400_000, 500_000]
    assert linear_ticks(-0.7, 0.45) == pytest.approx([-0.6, -0.4, -0.2, 0.0, 0.2, 0.4])
    log10 = math.log10
    assert log_ticks(log10(0.5), log10(2000)) == pytest.approx([1, 10, 100, 1000])
    assert log_ticks(log10(11), log10(140)) == pytest.approx([20, 50, 100])
    assert log_ticks(log10(2.98), log10(3.52)) == pytest.approx([3.0, 3.1, 3.2, 3.3, 3.4, 3.5])


def test_thirty_runs_differ_in_line_and_mark():
    for mark in (False, True):
        assert len({swatch(i, mark) for i in range(30)}) == 30
    svg = drawn([Series("a", [(1, 1.0)], 0), Series("b", [(2, 2.0)], 1)], make=scatter)
    assert [len(list(svg.iter(tag))) for tag in ("circle", "rect")] == [1, 1]
    for i in range(plot.N_COLOURS):
        assert f".c{i} {{ color:" in CSS
    assert all(f".l{i} .line" in CSS for i in range(1, plot.N_LINES))


def luminance(colour):
    """Relative luminance of #rrggbb (WCAG 2.2)."""
    parts = (int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5))
    red, green, blue = (
        part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts
    )
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


@pytest.mark.parametrize("dark", [False, True])
def test_every_colour_stands_out_from_its_ground(dark):
    """A contrast of 3 at least, which WCAG 2.2 asks of graphics."""
    panel = re.findall(r"--panel: (#\w{6})", html.style("report"))[dark]
    ground = luminance(panel)
    colours = [re.findall(rf"--c{i}: (#\w{{6}})", CSS)[dark] for i in range(plot.N_COLOURS)]
    for colour in colours:
        low, high = sorted((ground, luminance(colour)))
        assert (high + 0.05) / (low + 0.05) >= 3, colour
