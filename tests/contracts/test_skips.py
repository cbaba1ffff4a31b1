"""The rule about skips: a listed reason is reported, any other fails the run."""

import os
from pathlib import Path

import pytest

TESTS = Path(__file__).parents[1]


@pytest.fixture
def run_pytest(forked_python, tmp_path):
    """run_pytest(reason): pytest, under our rule, on a test that is skipped for that reason."""

    def run(reason, *options):
        (tmp_path / "test_it.py").write_text(
            f"import pytest\n\ndef test_it():\n    pytest.skip({reason!r})\n\ndef test_ok(): pass\n"
        )
        return run_rule(forked_python, tmp_path, *options, "test_it.py")

    return run


def run_rule(forked_python, folder, *arguments):
    """(exit code, standard output) of pytest under our rule."""
    argv = ["-m", "pytest", "-p", "conftest", "-p", "no:cacheprovider", "-q", *arguments]
    return forked_python.run(*argv, cwd=folder, env=os.environ | {"PYTHONPATH": str(TESTS)})[:2]


@pytest.mark.long
@pytest.mark.parametrize(
    "options", [[], pytest.param(["-n", "1"], marks=pytest.mark.slow)], ids=["alone", "with a worker"]
)
def test_an_unlisted_skip_fails_the_run(run_pytest, options):
    code, out = run_pytest("did not feel like it", *options)
    assert code == 1
    assert "NOT LISTED in tests/skips.txt: test_it.py::test_it: did not feel like it" in out


@pytest.mark.long
def test_a_listed_skip_is_reported(run_pytest):
    code, out = run_pytest("shared data absent: expected ../shared/data beside the checkout")
    assert code == 0, out
    assert "skipped: test_it.py::test_it: shared data absent" in out


@pytest.mark.long
def test_a_module_that_skips_itself_counts(forked_python, tmp_path):
    (tmp_path / "test_missing.py").write_text("import pytest\npytest.importorskip('no_such_library')\n")
    code, out = run_rule(forked_python, tmp_path, "test_missing.py")
    assert code == 1
    assert "could not import 'no_such_library'" in out


def test_every_listed_reason_says_why_it_is_acceptable():
    for line in (TESTS / "skips.txt").read_text().splitlines():
        if line.strip() and not line.startswith("#"):
            reason, _, why = line.partition("|")
            assert reason.strip() and why.strip(), line
