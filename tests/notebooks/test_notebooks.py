"""The notebooks run, one after another or each alone in an empty folder, on the embedded model; and they keep
to their form."""

import json
from pathlib import Path

import pytest

NOTEBOOKS = sorted((Path(__file__).parents[2] / "notebooks").glob("*.ipynb"))
EACH = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)


STEPS, SLOW = ["01_harvest", "02_train", "03_analyze", "04_ablate"], ["05_hallucination", "06_autoencoders"]


def test_there_are_the_six():
    assert [path.stem for path in NOTEBOOKS] == STEPS + SLOW


SHORTER = {"MAX_TOKENS = 60_000": "MAX_TOKENS = 15_000", '"n_steps": 150': '"n_steps": 50'}
"""What is written, and what is run below; `test_it_runs_alone_in_a_kernel` runs what is written."""
RUN = """
import json, sys
from IPython.core.interactiveshell import InteractiveShell
shell = InteractiveShell.instance()
for source in json.loads(sys.argv[1]):
    shell.run_cell(source).raise_error()
"""


def code_of(path):
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    return ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Where the notebooks run one after another: each says that it uses what earlier ones left."""
    return tmp_path_factory.mktemp("notebooks")


@pytest.mark.notebook
@pytest.mark.parametrize(
    "path",
    [
        pytest.param(path, marks=pytest.mark.slow) if path.stem in SLOW else path
        for path in NOTEBOOKS
    ],
    ids=lambda path: path.stem,
)
def test_its_cells_run(path, folder, forked_python):
    sources = json.dumps(code_of(path))
    if path.stem in STEPS:
        assert "MAX_TOKENS = 60_000" in sources
        for written, shorter in SHORTER.items():
            sources = sources.replace(json.dumps(written)[1:-1], json.dumps(shorter)[1:-1])
    code, out, err = forked_python.run("-c", RUN, sources, cwd=folder, timeout=300)
    assert code == 0, out + err


@pytest.mark.notebook
@pytest.mark.slow
@EACH
@pytest.mark.filterwarnings("default")  # the kernel's client warns about event loops and frozen modules
def test_it_runs_alone_in_a_kernel(path, tmp_path):
    import nbformat
    from nbclient import NotebookClient

    notebook = nbformat.read(path, as_version=4)
    NotebookClient(
        notebook, timeout=300, kernel_name="python3", resources={"metadata": {"path": tmp_path}}
    ).execute()


@EACH
def test_it_is_short_and_argued(path):
    cells, code = json.loads(path.read_text(encoding="utf-8"))["cells"], code_of(path)
    assert all(len(source.splitlines()) <= 10 for source in code)
    assert sum(cell["cell_type"] == "markdown" for cell in cells) >= len(code) // 2
    assert "MODEL =" in code[0] and "DATASET =" in code[0], "parameters come first"
    assert "assert" in code[-1], "a checked number comes last"


@EACH
def test_it_keeps_no_paths_of_a_machine(path):
    text = path.read_text()
    assert "/home/" not in text and "/tmp/" not in text and "/work/" not in text
