"""An installation is whole: every module imports, every data file is there, and nothing of an old build is.

Three ways: `pip install .` over a checkout with an old build folder, an editable installation, and a plain
checkout. pip gets no network: the libraries are those of the environment that runs the tests.
"""

import os
import re
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

from .test_imports import files, module_of
from .test_layout import FOR_READERS, ROOT, SOURCE, tracked_files

LONG = pytest.mark.long
WAYS = (pytest.param("installed", marks=LONG), pytest.param("editable", marks=LONG), "checkout")
MODULES = sorted(module_of(name) for name, path, _ in files() if path.name != "__main__.py")
DATA = [
    file
    for file in tracked_files()
    if file.split("/")[0] in SOURCE and not file.endswith(".py") and file not in FOR_READERS
]
IMPORT_EVERYTHING = """
import importlib, sys
from pathlib import Path
for name in sys.argv[1].split():
    importlib.import_module(name)
for file in sys.argv[2].split():
    room, _, rest = file.partition("/")
    package = importlib.import_module("saelens_lite" if room == "saelens_lite" else f"saelens_lite.{room}")
    assert (Path(package.__file__).parent / rest).is_file(), f"{file} is missing"
try:
    import saelens_lite.harvest.deleted_module
except ModuleNotFoundError:
    print(Path(sys.modules["saelens_lite"].__file__).parent)
"""


@pytest.fixture(scope="module")
def checkout(tmp_path_factory) -> Path:
    """The tracked files of the source elsewhere, with a module in `build/` that exists no longer."""
    folder = tmp_path_factory.mktemp("checkout")
    for file in tracked_files():
        if file.startswith(tuple(f"{top}/" for top in SOURCE)) or "/" not in file:
            (folder / file).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / file, folder / file)
    stale = folder / "build" / "lib" / "saelens_lite" / "harvest" / "deleted_module.py"
    stale.parent.mkdir(parents=True)
    stale.touch()
    return folder


@pytest.fixture(scope="module", params=WAYS)
def python(request, checkout, tmp_path_factory) -> tuple[str, Path, Path]:
    """The way, an interpreter that has us in that way, and the folder where we should be found."""
    env = tmp_path_factory.mktemp(request.param) / "env"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", env], check=True)
    paths = {"base": str(env), "platbase": str(env)}
    site = Path(sysconfig.get_path("purelib", "venv", vars=paths))
    libraries = [path for path in sys.path if path.endswith(("site-packages", "dist-packages"))]
    lines = [*libraries, *([str(checkout)] if request.param == "checkout" else [])]
    (site / "libraries.pth").write_text("\n".join(lines) + "\n")
    executable = Path(sysconfig.get_path("scripts", "venv", vars=paths)) / "python"
    if request.param != "checkout":
        pip = [sys.executable, "-m", "pip", "--python", str(executable), "install", "-q", "--no-index"]
        pip += ["--no-deps", "--no-build-isolation", "--ignore-installed"]
        target = ["-e", str(checkout)] if request.param == "editable" else [str(checkout)]
        done = subprocess.run([*pip, *target], cwd=env, env=clean(), capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
    home = site if request.param == "installed" else checkout
    return request.param, executable, home / "saelens_lite"


def clean() -> dict[str, str]:
    """The environment without what would let an interpreter find us another way."""
    return {key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "PYTHONHOME")}


def run(python, folder: Path, *arguments: str) -> str:
    command = [str(python[1]), *arguments]
    done = subprocess.run(command, cwd=folder, env=clean(), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_every_module_and_data_file_is_there_and_no_deleted_one(python, tmp_path):
    """Where the source itself is imported, a module of each folder: that any imports alone, test_imports.py
    shows."""
    one_a_folder = {module.rpartition(".")[0]: module for module in MODULES}.values()
    modules = MODULES if python[0] == "installed" else one_a_folder
    found = run(python, tmp_path, "-c", IMPORT_EVERYTHING, " ".join(modules), " ".join(DATA))
    assert Path(found.strip()) == python[2]


@pytest.mark.slow
def test_the_tour_and_the_demo_run(python, tmp_path):
    """The README's tour and a short demo, in an empty folder."""
    (tour,) = re.findall(r"^```python\n(.*?)^```", (ROOT / "README.md").read_text(), re.DOTALL | re.MULTILINE)
    tour = tour.replace("max_tokens=100_000", "max_tokens=30_000, progress=False")
    assert run(python, tmp_path, "-c", f"{tour}\nprint(out.shape[0])") == "1\n"
    command = [str(python[1].parent / "saelens-lite")] if python[0] != "checkout" else []
    short = ["demo", "--max-tokens", "40000", "--n-steps", "20", "--d-sae", "384", "--no-progress"]
    command = command or [str(python[1]), "-m", "saelens_lite.cli"]
    done = subprocess.run([*command, *short], cwd=tmp_path, env=clean(), capture_output=True, text=True)
    assert "KL from before" in done.stdout, done.stderr
