"""The rule about skips: a listed reason is reported, any other fails the run."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

TESTS = Path(__file__).parents[1]


def run_pytest(folder, reason, *options):
    (folder / "test_it.py").write_text(
        f"import pytest\n\ndef test_it():\n    pytest.skip({reason!r})\n\ndef test_ok(): pass\n"
    )
    env = {**os.environ, "PYTHONPATH": str(TESTS)}
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-p",
        "conftest",
        "-p",
        "no:cacheprovider",
        "-q",
        *options,
        "test_it.py",
    ]
    return subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True)


@pytest.mark.long
@pytest.mark.parametrize("options", [[], ["-n", "2"]], ids=["alone", "with workers"])
def test_an_unlisted_skip_fails_the_run(tmp_path, options):
    done = run_pytest(tmp_path, "did not feel like it", *options)
    assert done.returncode == 1
    assert "NOT LISTED in tests/skips.txt: test_it.py::test_it: did not feel like it" in done.stdout


def test_a_listed_skip_is_reported(tmp_path):
    done = run_pytest(tmp_path, "shared data absent: expected ../shared/data beside the checkout")
    assert done.returncode == 0, done.stdout
    assert "skipped: test_it.py::test_it: shared data absent" in done.stdout


def test_a_module_that_skips_itself_counts(tmp_path):
    (tmp_path / "test_missing.py").write_text("import pytest\npytest.importorskip('no_such_library')\n")
    env = {**os.environ, "PYTHONPATH": str(TESTS)}
    command = [sys.executable, "-m", "pytest", "-p", "conftest", "-q", "test_missing.py"]
    done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True)
    assert done.returncode == 1
    assert "could not import 'no_such_library'" in done.stdout


def test_every_listed_reason_says_why_it_is_acceptable():
    for line in (TESTS / "skips.txt").read_text().splitlines():
        if line.strip() and not line.startswith("#"):
            reason, _, why = line.partition("|")
            assert reason.strip() and why.strip(), line
