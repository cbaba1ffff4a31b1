"""Tables, numbers in words and data frames: by value."""

import json
import math
import sys

import pandas
import pytest

from saelens_lite.text_table import aligned, cell, filled_columns, frame, number, plain, rounded, short, span


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
