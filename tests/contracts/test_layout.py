"""The house: which folders there are, and that each package of the source is one that is installed."""

import ast
import re
import subprocess
import tomllib
from collections import Counter
from fnmatch import fnmatch
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


FOLDERS = {"saelens_lite", "harvest", "train", "analyze", "tests", "notebooks"}
SOURCE = ("saelens_lite", "harvest", "train", "analyze")


def tracked_files() -> list[str]:
    return subprocess.run(
        ["git", "ls-files", "-z"], cwd=ROOT, check=True, capture_output=True, text=True
    ).stdout.split("\0")[:-1]


def installed_packages() -> dict[str, str]:
    """Package name → its folder in the repository."""
    setuptools = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    folders = setuptools["package-dir"]
    return {name: folders.get(name, name.replace(".", "/")) for name in setuptools["packages"]}


def test_top_level_folders_are_the_agreed_ones():
    folders = {file.split("/")[0] for file in tracked_files() if "/" in file}
    assert {folder for folder in folders if not folder.startswith(".")} == FOLDERS


def test_every_source_folder_is_an_installed_package():
    with_python = {
        file.rpartition("/")[0]
        for file in tracked_files()
        if file.endswith(".py") and file.startswith(SOURCE)
    }
    assert with_python == set(installed_packages().values())
    for folder in with_python:
        assert (ROOT / folder / "__init__.py").is_file(), f"{folder} has no __init__.py"


def test_folders_are_one_level_deep_and_nothing_is_called_utils():
    for file in tracked_files():
        if file.endswith(".py"):
            assert not file.endswith(("utils.py", "util.py", "helpers.py")), file
            if file.startswith(SOURCE):
                assert file.count("/") <= 2, file


def test_folders_hold_at_most_eighteen_files():
    sources = [file for file in tracked_files() if file.endswith(".py") and file.startswith(SOURCE)]
    n_files = Counter(file.rpartition("/")[0] for file in sources)
    too_many = {folder: n for folder, n in n_files.items() if n > 18 and folder != "saelens_lite/cli"}
    assert not too_many, "which capabilities are in them?"


def face_text(folder: str) -> str:
    """The docstring of a folder's `__init__.py`, as it stands."""
    return ast.get_docstring(ast.parse((ROOT / folder / "__init__.py").read_text()), clean=False) or ""


@pytest.mark.parametrize("package, folder", installed_packages().items())
def test_every_file_has_its_clause_in_the_face_of_its_folder(package, folder):
    """The docstring of `__init__.py`: a sentence, and a line for each file."""
    sentence, _, listed = face_text(folder).partition("\n")
    assert sentence.endswith((".", ";")) or package == "saelens_lite", (
        f"{folder}/__init__.py does not say what lives there"
    )
    clauses = dict(re.findall(r"^ *(\w+) {2,}(\S.*)$", listed, flags=re.MULTILINE))
    files = {path.stem for path in (ROOT / folder).glob("*.py")} - {"__init__", "__main__"}
    assert clauses.keys() == files


def test_every_line_of_the_source_fits_110_columns():
    for file in tracked_files():
        if file.endswith(".py") and file.startswith(SOURCE):
            for number, line in enumerate((ROOT / file).read_text(encoding="utf-8").splitlines(), 1):
                assert len(line) <= 110, f"{file}:{number} has {len(line)} columns"


FOR_READERS = {f"{room}/README.md" for room in SOURCE} | {
    "analyze/pages/feature_page.png",
    "saelens_lite/COMING_FROM.md",
}
"""What is read in a checkout and not installed."""


def test_every_data_file_of_the_source_is_installed():
    data = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["package-data"]
    packages = installed_packages()
    everywhere = data.pop("*", [])
    patterns = [f"{packages[package]}/{pattern}" for package, globs in data.items() for pattern in globs]
    patterns += [f"{folder}/{pattern}" for folder in packages.values() for pattern in everywhere]
    for file in tracked_files():
        if file.split("/")[0] in SOURCE and not file.endswith(".py") and file not in FOR_READERS:
            assert any(fnmatch(file, pattern) for pattern in patterns), (
                f"{file} would be missing from an installation"
            )
