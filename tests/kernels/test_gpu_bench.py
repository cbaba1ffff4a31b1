"""tests/bench/gpu.py, dry: on a CPU, at tiny sizes, with a step that fails on purpose."""

import importlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

BENCH = Path(__file__).parents[1] / "bench" / "gpu.py"


def dry_run(output, *flags):
    command = [sys.executable, str(BENCH), "--output", str(output), "--dry-run", *flags]
    done = subprocess.run(command, env=os.environ | {"OMP_NUM_THREADS": "1"}, capture_output=True, text=True)
    lines = [json.loads(line) for line in (output / "gpu.jsonl").read_text().splitlines()]
    return done, lines, (output / "gpu.md").read_text()


@pytest.mark.long
def test_a_step_that_fails_is_reported_and_the_next_runs(tmp_path):
    done, lines, table = dry_run(tmp_path, "--steps", "environment", "peers", "--break-step", "environment")
    assert done.returncode == 1, done.stdout + done.stderr
    ends = {line["step"]: line.get("failed") for line in lines if "seconds" in line}
    assert ends == {"environment": "exit 1: broken on purpose (--break-step)", "peers": None}
    assert "1 of 2 steps passed; failed: environment" in done.stdout and "1 of 2 steps passed" in table
    skipped = [line["note"] for line in lines if "note" in line]
    assert skipped == ["skipped: sae_lens is not installed"] * 2 + ["skipped: sparsify is not installed"]


@pytest.mark.slow
def test_every_step_passes_on_a_cpu(tmp_path):
    pytest.importorskip("triton")
    done, lines, table = dry_run(tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "11 of 11 steps passed" in done.stdout
    fvu = {line["kind"]: line for line in lines if "fvu_on_cpu" in line}
    assert len(fvu) == 6 and all(abs(x["fvu"] / x["fvu_on_cpu"] - 1) < 0.02 for x in fvu.values())
    assert [line["bit_equal"] for line in lines if "bit_equal" in line] == [True]
    assert table.count("### ") == 11


def test_results_become_a_table_a_step(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCH.parent))
    table = importlib.import_module("gpu").as_markdown
    results = [
        {"step": "kinds", "kind": "topk", "fvu": 0.123456, "wrong": None},
        {"step": "kinds", "kind": "a|b", "fvu": 2.0, "wrong": None},
        {"step": "kinds", "note": "skipped"},
        {"step": "kinds", "seconds": 1.5, "failed": "exit 1: no"},
    ]
    assert table(results).splitlines() == [
        "### kinds: exit 1: no (1.5 s)",
        "",
        "",
        "| kind | fvu |",
        "|---|---|",
        "| topk | 0.1235 |",
        "| a\\|b | 2 |",
        "",
        "| note |",
        "|---|",
        "| skipped |",
        "",
    ]
