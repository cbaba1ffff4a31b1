"""`make check` covers every area: marks sit on slow tests, not on whole files, and a file has a fast test."""

import ast
import re
from pathlib import Path

import pytest

TESTS = Path(__file__).parents[1]
FILES = sorted(path.relative_to(TESTS).as_posix() for path in TESTS.rglob("test_*.py"))
ELSEWHERE = {
    "peer/": "another library, in an environment of its own",
    "formats/test_peers.py": "other libraries, which read the golden folders",
    "train/test_accelerator.py": "an accelerator",
}
"""The files whose every test needs what `make check` does without."""


def left_out() -> set[str]:
    """The marks that `make check` leaves out, from the Makefile."""
    makefile = (TESTS.parent / "Makefile").read_text()
    (line,) = re.findall(
        r'^check: venv\n(?:\t.*\n)*?\t\$\(PYTEST\) .*-m "(.*)"$', makefile, flags=re.MULTILINE
    )
    return set(re.findall(r"not (\w+)", line))


def marks_of(decorators: list[ast.expr]) -> set[str]:
    """The marks of a test itself; marks of single parameters leave others of them unmarked."""
    texts = [ast.unparse(node.func if isinstance(node, ast.Call) else node) for node in decorators]
    return {text.removeprefix("pytest.mark.") for text in texts}


def functions_of(file: str) -> list[ast.FunctionDef]:
    """The tests of a file: at its top, or there in an `if`."""
    top = ast.parse((TESTS / file).read_text(encoding="utf-8")).body
    top += [node for choice in top if isinstance(choice, ast.If) for node in choice.body + choice.orelse]
    return [node for node in top if isinstance(node, ast.FunctionDef) and node.name.startswith("test_")]


def test_the_marks_left_out_are_read_from_the_makefile():
    assert left_out() == {"slow", "peer", "gpu", "notebook", "dist", "long"}


@pytest.mark.parametrize("file", FILES)
def test_every_file_has_a_test_that_make_check_runs(file):
    tests = functions_of(file)
    assert tests, f"tests/{file} has no test"
    if not file.startswith(tuple(ELSEWHERE)):
        assert any(not marks_of(test.decorator_list) & left_out() for test in tests)
        text = (TESTS / file).read_text(encoding="utf-8")
        assert not re.search(rf"^pytestmark = .*\b({'|'.join(left_out())})\b", text, flags=re.MULTILINE)
