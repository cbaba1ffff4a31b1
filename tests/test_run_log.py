"""metrics.jsonl as it is read back: of finished, running and killed runs."""

import json
import math
import sys
from types import SimpleNamespace

import pytest

from saelens_lite import run_log
from saelens_lite.run_log import Tracker, metric_chunks, read_metrics


def test_what_was_logged_comes_back(tmp_path):
    with Tracker(tmp_path, {}) as tracker:
        tracker.log(10, {"tokens": 100, "l0": 4.5, "dead@50": None})
        tracker.log(20, {"held_out_fvu": 0.25})
    assert read_metrics(tmp_path / "metrics.jsonl") == [
        {"step": 10, "tokens": 100, "l0": 4.5, "dead@50": None},
        {"step": 20, "held_out_fvu": 0.25},
    ]


@pytest.mark.parametrize("tail", [b'{"step": 20, "l0": 4', b'{"step": 20, "l0": "\xc3', b"\x00\x00\x00"])
def test_a_last_line_that_is_cut_short_is_left_out(tmp_path, tail):
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b'{"step": 10}\n' + tail)
    assert read_metrics(path) == [{"step": 10}]


def test_a_last_line_needs_no_end_of_line_and_nan_is_a_value(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 10, "l0": NaN}\n\n{"step": 20, "l0": Infinity}')
    lines = read_metrics(path)
    assert math.isnan(lines[0]["l0"]) and lines[1] == {"step": 20, "l0": math.inf}


@pytest.mark.parametrize("line, told", [("{'step': 2}", "line 2"), ("[1, 2]", "line 2, got list")])
def test_a_broken_line_before_the_last_is_named(tmp_path, line, told):
    path = tmp_path / "metrics.jsonl"
    path.write_text(f'{{"step": 1}}\n{line}\n{{"step": 3}}\n')
    with pytest.raises(ValueError, match=f"metrics.jsonl expected a JSON object in {told}.*remove the line"):
        read_metrics(path)


@pytest.mark.parametrize(
    "broken, told",
    [
        (b'{"a": 1},{"b": 2}', "line 5001: Extra data"),
        (b'{"step": 1\n"l0": 2}', "line 5001: "),
        (b"3", "line 5001, got int"),
        (b"\xef\xbb\xbf", "line 5001: "),
    ],
)
def test_a_long_file_is_read_in_stretches_and_its_broken_line_has_its_number(
    tmp_path, monkeypatch, broken, told
):
    monkeypatch.setattr(run_log, "CHUNK_BYTES", 1 << 18)
    path = tmp_path / "metrics.jsonl"
    whole = [{"step": i, "loss": i / 7, "dead@100": None} for i in range(20_000)]
    lines = [json.dumps(line).encode() for line in whole]
    assert sum(map(len, lines)) > 2 * run_log.CHUNK_BYTES
    path.write_bytes(b"\n\n".join(lines) + b"\n  \n" + lines[0][:9])
    assert [len(chunk) > 1_000 for chunk in metric_chunks(path)].count(True) > 2
    assert read_metrics(path) == whole
    path.write_bytes(b"\n".join([*lines[:5_000], broken, *lines[5_000:]]))
    with pytest.raises(ValueError, match=told):
        read_metrics(path)


def test_after_a_kill_wandb_is_given_what_it_lost(tmp_path, monkeypatch):
    """Three lines stand in the file up to the checkpoint, and the last two were never sent."""
    sent = []
    run = SimpleNamespace(id="one", step=2, log=lambda values, step: sent.append((step, values)))
    run.finish = lambda exit_code: None
    monkeypatch.setitem(sys.modules, "wandb", SimpleNamespace(init=lambda **_: run))
    lines = [{"step": 1, "loss": 4.0}, {"step": 2, "loss": 3.0}, {"step": 3, "loss": 2.0, "dead": None}]
    text = "".join(json.dumps(line) + "\n" for line in lines)
    (tmp_path / "metrics.jsonl").write_text(text + '{"step": 4, "loss": 1.5}\n')
    with Tracker(tmp_path, {}, "project", {"metrics_bytes": len(text), "wandb_run": "one"}) as tracker:
        tracker.log(4, {"loss": 1.0})
    assert sent == [(2, {"loss": 3.0}), (3, {"loss": 2.0}), (4, {"loss": 1.0})]
