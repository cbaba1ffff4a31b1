"""A plain checkout works without installation, and maps the three rooms only."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def checkout(tmp_path_factory):
    """A copy of the checkout's source elsewhere, with a folder of tests as a real one has."""
    folder = tmp_path_factory.mktemp("checkout")
    for name in ("saelens_lite", "harvest", "train", "analyze"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__", "model"))
    shutil.copy(ROOT / "pyproject.toml", folder)
    (folder / "tests").mkdir()
    (folder / "tests" / "__init__.py").touch()
    return folder


def run(checkout, code):
    """Run code with the checkout first on the path and no .pth file read, so that no installation of ours is
    seen."""
    libraries = [path for path in sys.path if path.endswith(("site-packages", "dist-packages"))]
    env = {**os.environ, "PYTHONPATH": os.pathsep.join([str(checkout), *libraries])}
    return subprocess.run(
        [sys.executable, "-S", "-c", code], env=env, cwd=checkout.parent, capture_output=True, text=True
    )


@pytest.mark.parametrize("room", ["harvest", "train", "analyze"])
def test_rooms_import_from_a_plain_checkout(checkout, room):
    done = run(checkout, f"import saelens_lite.{room} as room; print(room.__name__, room.__file__)")
    assert done.stdout.split() == [f"saelens_lite.{room}", str(checkout / room / "__init__.py")], done.stderr


def test_classes_of_a_room_are_one_copy(checkout):
    done = run(
        checkout,
        "import saelens_lite, saelens_lite.train as room, importlib;"
        "assert saelens_lite.TrainConfig is room.TrainConfig is "
        "importlib.import_module('saelens_lite.train').TrainConfig",
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("name", ["tests", "saelens_lite", "notebooks"])
def test_nothing_else_beside_the_package_is_importable_through_it(checkout, name):
    done = run(checkout, f"import saelens_lite.{name}")
    assert f"ModuleNotFoundError: No module named 'saelens_lite.{name}'" in done.stderr
