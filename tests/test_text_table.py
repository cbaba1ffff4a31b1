"""Tables, numbers in words and data frames: by value."""

import csv
import io
import json
import math
import sys
from dataclasses import dataclass

import pandas
import pytest

from saelens_lite.text_table import (
    Tabular,
    aligned,
    cell,
    filled_columns,
    frame,
    in_format,
    number,
    plain,
    rounded,
    short,
    span,
)


def test_columns_align_and_a_short_line_widens_the_first_alone():
    lines = [["", "fvu", "l0"], ["trained", "0.1", "32.0"], ["zero ablation", "not given, but long"]]
    assert aligned(lines).splitlines() == [
        "               fvu    l0",
        "trained        0.1  32.0",
        "zero ablation  not given, but long",
    ]
    assert aligned([["a", "bb", "ccc"], ["aaa", "b", "c"]], left=0) == "  a  bb  ccc\naaa   b    c"
    assert aligned([["a", "bb", "ccc"], ["aaa", "b", "c"]], left=2) == "a    bb  ccc\naaa  b     c"


def test_a_column_with_a_head_alone_is_left_out():
    lines = [["", "p", "q", "r"], ["", "1", "", "x"], ["", "", "", "y"]]
    assert filled_columns(lines) == [("", "p", "r"), ("", "1", "x"), ("", "", "y")]


def test_numbers_in_words():
    assert [number(x, ".2f") for x in (1.005, None, math.nan, math.inf)] == ["1.00", "n/a", "n/a", "inf"]
    assert number(None, ".2f", absent="") == "" and number(0.1234, ".1%") == "12.3%"
    assert span(-0.5, 0.25, "+.3g") == "-0.5 to +0.25"
    values = {
        0: "0",
        0.14159: "0.1416",
        12.5: "12.5",
        200_000: "200k",
        1.5e6: "1.5M",
        2.5e9: "2.5B",
        3e-5: "3e-05",
    }
    assert [short(value) for value in values] == list(values.values())
    words = [cell(value) for value in (None, True, False, 12345, 12345.0, 0.5, "as it is")]
    assert words == ["–", "yes", "no", "12,345", "12.35k", "0.5", "as it is"]
    assert rounded(0.123456) == 0.1235 and rounded(123456.0) == 123500.0


def test_json_has_no_nan():
    values = plain({"a": (1.0, math.nan), "b": {"c": [math.inf, 2]}, "d": None, "e": "x"})
    assert json.loads(json.dumps(values, allow_nan=False)) == values
    assert values == {"a": [1.0, None], "b": {"c": [None, 2]}, "d": None, "e": "x"}


def test_a_frame_has_a_column_for_each_nested_number(monkeypatch):
    table = frame([{"dose": 1.0, "effect": {"low": 2.0}}, {"dose": 3.0, "effect": {"low": None}}])
    assert list(table.columns) == ["dose", "effect.low"] and len(table) == 2
    assert table["dose"].tolist() == [1.0, 3.0] and pandas.isna(table["effect.low"][1])
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(ImportError, match="to_frame expected pandas.*pip install pandas"):
        frame([])


# Results ------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Found(Tabular):
    rows: tuple

    def to_dict(self):
        return {"rows": [{"name": name, "effect": {"low": low}} for name, low in self.rows]}

    def _tables(self):
        rows = [[name, f"{low:.2f}"] for name, low in self.rows]
        return [("", [["", "low & high"], *rows, ["gone"]])]

    def _notes(self):
        return ["a note of 95 %"]


FOUND = Found((("a|b", 0.25), ("<i>x_1</i>", -1.5)))


def test_cells_by_hand():
    assert FOUND.table().splitlines() == [
        "            low & high",
        "a|b               0.25",
        "<i>x_1</i>       -1.50",
        "gone",
        "a note of 95 %",
    ]
    assert FOUND.to_markdown() == (
        "|  | low & high |\n| --- | ---: |\n| a\\|b | 0.25 |\n| \\<i>x\\_1\\</i> | -1.50 |\n| gone |  |\n\n"
        "a note of 95 %"
    )
    assert FOUND.to_latex() == (
        "\\begin{tabular}{lr}\n\\toprule\n & low \\& high \\\\\n\\midrule\na|b & 0.25 \\\\\n"
        "$<$i$>$x\\_1$<$/i$>$ & -1.50 \\\\\ngone &  \\\\\n\\bottomrule\n\\end{tabular}"
    )
    assert FOUND.to_csv() == "name,effect.low\na|b,0.25\n<i>x_1</i>,-1.5\n"
    html = FOUND._repr_html_()
    assert "<td>&lt;i&gt;x_1&lt;/i&gt;</td><td>-1.50</td>" in html and "<i>" not in html
    assert FOUND.to_frame()["effect.low"].tolist() == [0.25, -1.5]
    assert json.loads(in_format(FOUND, "json")) == FOUND.to_dict()
    assert in_format(FOUND, "csv") + "\n" == FOUND.to_csv()


def test_what_says_nothing_of_its_tables_shows_its_records():
    class Plain(Tabular):
        def _records(self):
            return [{"a": 1, "b": [1, 2]}, {"a": 2.5}]

    assert Plain().to_markdown() == "| a | b |\n| --- | ---: |\n| 1 | \\[1, 2] |\n| 2.5 | – |"
    assert list(csv.DictReader(io.StringIO(Plain().to_csv())))[1] == {"a": "2.5", "b": ""}


def test_results_with_rows_are_tabular():
    from saelens_lite.analyze import edits, evaluation, ground_truth, probing, stats, study

    found = [edits.DoseResponse, evaluation.Evaluation, evaluation.Evaluations, evaluation.Decomposition]
    found += [study.StudyResult, probing.ProbeReport, ground_truth.Recovery, stats.RivalReport]
    for one in found:
        assert issubclass(one, Tabular), one


def test_plot_without_matplotlib_says_what_to_install(monkeypatch):
    from saelens_lite.analyze.stats.interval_plots import new_axes

    monkeypatch.setitem(sys.modules, "matplotlib.pyplot", None)
    with pytest.raises(ImportError, match="not installed: pip install"):
        new_axes()
