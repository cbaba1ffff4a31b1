"""The notebooks run, each alone in an empty folder, on the embedded model; and they keep to their form."""

from pathlib import Path

import nbformat
import pytest

NOTEBOOKS = sorted((Path(__file__).parents[2] / "notebooks").glob("*.ipynb"))
EACH = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)


def test_there_are_the_four():
    assert [path.stem for path in NOTEBOOKS] == ["01_harvest", "02_train", "03_analyze", "04_ablate"]


@pytest.mark.notebook
@EACH
@pytest.mark.filterwarnings("default")  # the kernel's client warns about event loops and frozen modules
def test_it_runs(path, tmp_path):
    from nbclient import NotebookClient

    notebook = nbformat.read(path, as_version=4)
    NotebookClient(
        notebook, timeout=300, kernel_name="python3", resources={"metadata": {"path": tmp_path}}
    ).execute()


@EACH
def test_it_is_short_and_argued(path):
    cells = nbformat.read(path, as_version=4).cells
    code = [cell.source for cell in cells if cell.cell_type == "code"]
    assert all(len(source.splitlines()) <= 10 for source in code)
    assert sum(cell.cell_type == "markdown" for cell in cells) >= len(code) // 2
    assert "MODEL =" in code[0] and "DATASET =" in code[0], "parameters come first"
    assert "assert" in code[-1], "a checked number comes last"


@EACH
def test_it_keeps_no_paths_of_a_machine(path):
    text = path.read_text()
    assert "/home/" not in text and "/tmp/" not in text and "/work/" not in text
