"""The house: which folders there are, and that each package of the source is one that is installed."""

import subprocess
import tomllib
from fnmatch import fnmatch
from pathlib import Path

ROOT = Path(__file__).parents[2]


FOLDERS = {"saelens_lite", "harvest", "train", "analyze", "tests", "notebooks"}
SOURCE = ("saelens_lite", "harvest", "train", "analyze")


def tracked_files() -> list[str]:
    return subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, check=True, capture_output=True, text=True).stdout.split(
        "\0"
    )[:-1]


def installed_packages() -> dict[str, str]:
    """Package name → its folder in the repository."""
    setuptools = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    folders = setuptools["package-dir"]
    return {name: folders.get(name, name.replace(".", "/")) for name in setuptools["packages"]}


def test_top_level_folders_are_the_agreed_ones():
    folders = {file.split("/")[0] for file in tracked_files() if "/" in file}
    assert {folder for folder in folders if not folder.startswith(".")} == FOLDERS


def test_every_source_folder_is_an_installed_package():
    with_python = {file.rpartition("/")[0] for file in tracked_files() if file.endswith(".py") and file.startswith(SOURCE)}
    assert with_python == set(installed_packages().values())
    for folder in with_python:
        assert (ROOT / folder / "__init__.py").is_file(), f"{folder} has no __init__.py"


def test_rooms_are_flat_and_nothing_is_called_utils():
    for file in tracked_files():
        if file.endswith(".py"):
            assert not file.endswith(("utils.py", "util.py", "helpers.py")), file
            if file.startswith(("harvest/", "train/", "analyze/")):
                assert file.count("/") == 1, file


def test_every_data_file_of_the_source_is_installed():
    data = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["package-data"]
    packages = installed_packages()
    patterns = [f"{packages[package]}/{pattern}" for package, globs in data.items() for pattern in globs]
    for file in tracked_files():
        if file.split("/")[0] in SOURCE and not file.endswith(".py"):
            assert any(fnmatch(file, pattern) for pattern in patterns), f"{file} would be missing from an installation"
