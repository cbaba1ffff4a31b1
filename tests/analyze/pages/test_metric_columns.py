"""Columns of a metrics.jsonl, of many lines alike and of others, against a dict a line."""

import json
import math
import random
import sys

import numpy as np
import pytest

from saelens_lite.analyze.pages import metric_columns as module
from saelens_lite.analyze.pages.metric_columns import metric_columns


def plain(path):
    """What the lines of a file say, each parsed alone: (number of lines, values by name)."""
    lines = [json.loads(line) for line in path.read_text().splitlines() if line.strip()]
    lines = [line for line in lines if number(line.get("step")) is not None]
    names = dict.fromkeys(name for line in lines for name in line)
    return len(lines), {name: [number(line[name]) for line in lines if name in line] for name in names}


def number(value):
    told = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    return value if told else None


def check(path):
    found, (n_lines, expected) = metric_columns(path), plain(path)
    assert found.n_lines == n_lines and list(found.columns) == list(expected)
    for name, values in expected.items():
        column = found.columns[name]
        as_floats = np.array([math.nan if value is None else value for value in values], dtype=float)
        np.testing.assert_array_equal(column.values, as_floats)
        assert column.whole == all(isinstance(value, int) for value in values if value is not None), name
    return found


@pytest.mark.parametrize("odd", [None, "null", "NaN", "true", '"x"', "[1]", "Infinity", str(2**70), "-0"])
def test_a_value_that_is_no_plain_number_changes_nothing_else(tmp_path, monkeypatch, odd):
    """Lines of one stretch are alike but for one, and are read as a table exactly where all have numbers."""
    tables, made = [], module._table
    monkeypatch.setattr(module, "_table", lambda lines: tables.append(made(lines)) or tables[-1])
    draw = random.Random(0).random
    lines = [f'{{"step": {i}, "loss": {draw()!r}, "n": {3 * i}}}' for i in range(600)]
    if odd is not None:
        lines[400] = f'{{"step": 400, "loss": {odd}, "n": 1200}}'
    (tmp_path / "m").write_text("\n".join(lines))
    found = check(tmp_path / "m")
    assert found.steps(found.of("n"))[399:402].tolist() == [399, 400, 401]
    assert repr(found.of("n").last) == "1797"
    plain_number = odd in (None, "NaN", "-0")
    assert len(tables) == 1 and (tables[0] is not None) == plain_number


def test_lines_of_other_names_stand_between_as_they_do_in_training(tmp_path):
    draw = random.Random(1).random
    with (tmp_path / "m").open("w") as file:
        for step in range(1, 2001):
            dead = draw() if step > 700 else None
            file.write(json.dumps({"step": step, "l0": draw(), "dead@5": dead, "lr": 10 * draw()}) + "\n")
            if step % 100 == 0:
                file.write("\n" + json.dumps({"step": step, "held_out_fvu": draw()}) + "\n")
            if step % 500 == 0:  # as many names as the usual line, but others
                file.write(json.dumps({"step": step, "l0": 1, "other": 2, "lr": 3}) + "\n")
    found = check(tmp_path / "m")
    assert found.of("held_out_fvu").lines[:2].tolist() == [101, 203]  # of the file, from 0; blank ones count
    assert found.steps(found.of("other")).tolist() == [500, 1000, 1500, 2000]


@pytest.mark.parametrize(
    "broken", ['{"step": 1, "step": 2}', '{"step": 1}{"step": 2}', '{"step": 01}', '{"step": 1,}', "[1]", "{"]
)
def test_a_broken_line_among_many_is_named_and_a_repeated_name_counts_last(tmp_path, broken):
    lines = ['{"step": 7}'] * 300
    lines[290] = broken
    (tmp_path / "m").write_text("\n".join(lines))
    if broken.count("step") == 2 and "}{" not in broken:
        assert metric_columns(tmp_path / "m").of("step").values[289:292].tolist() == [7, 2, 7]
    else:
        with pytest.raises(ValueError, match=r"m expected a JSON object in line 291\b.*remove the line"):
            metric_columns(tmp_path / "m")


def test_a_last_line_that_is_cut_short_is_left_out(tmp_path):
    (tmp_path / "m").write_text('{"step": 7, "loss": 0.5}\n' * 300 + '{"step": 8, "loss": 0')
    assert metric_columns(tmp_path / "m").of("step").values.tolist() == [7] * 300


def test_two_objects_a_line_are_no_lines_of_metrics(tmp_path):
    (tmp_path / "m").write_text('{"step": 7}{"step": 8}\n' * 300)
    with pytest.raises(ValueError, match=r"line 1: Extra data"):
        metric_columns(tmp_path / "m")


def test_without_pyarrow_the_lines_say_the_same(tmp_path, monkeypatch):
    file = tmp_path / "metrics.jsonl"
    file.write_text("".join(f'{{"step": {i}, "fvu": {1 / (i + 1)}}}\n' for i in range(600)))
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    assert check(file).columns["fvu"].values[599] == 1 / 600
