"""The READMEs keep their word: their code parses, their commands and names exist, the tour runs, links lead
somewhere."""

import ast
import dataclasses
import importlib
import inspect
import re
import shlex
from pathlib import Path
from typing import Any

import pytest

import saelens_lite
from saelens_lite.cli.add_hook_points import AddHookPointsConfig
from saelens_lite.cli.analyze import AnalyzeConfig
from saelens_lite.cli.browse import BrowseConfig
from saelens_lite.cli.commands import COMMANDS
from saelens_lite.cli.convert import ConvertConfig
from saelens_lite.cli.demo import DemoConfig
from saelens_lite.cli.diff import DiffConfig
from saelens_lite.cli.diff_models import DiffModelsConfig
from saelens_lite.cli.evaluate import EvaluateConfig
from saelens_lite.cli.export import ExportConfig
from saelens_lite.cli.labels import LabelsConfig
from saelens_lite.cli.probe import ProbeConfig
from saelens_lite.cli.pull import PullConfig
from saelens_lite.cli.push import PushConfig
from saelens_lite.cli.refit import RefitConfig
from saelens_lite.cli.report import ReportConfig
from saelens_lite.cli.saes import SaesConfig
from saelens_lite.cli.search import SearchConfig
from saelens_lite.cli.steer import SteerConfig
from saelens_lite.cli.study import StudyConfig
from saelens_lite.cli.verify import VerifyConfig
from saelens_lite.train.autoencoders.config import AutoencoderConfig
from saelens_lite.train.transcoders import TranscoderConfig

ROOT = Path(__file__).parents[2]
ROOMS = [ROOT / room / "README.md" for room in ("saelens_lite", "harvest", "train", "analyze")]
TEXTS = {
    path.relative_to(ROOT).as_posix(): path.read_text(encoding="utf-8")
    for path in [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *ROOMS]
}
EACH = pytest.mark.parametrize("name", TEXTS)
CONFIGS = {
    "demo": DemoConfig,
    "harvest": saelens_lite.HarvestConfig,
    "add-hook-points": AddHookPointsConfig,
    "verify": VerifyConfig,
    "train": saelens_lite.TrainConfig,
    "refit": RefitConfig,
    "evaluate": EvaluateConfig,
    "analyze": AnalyzeConfig,
    "search": SearchConfig,
    "browse": BrowseConfig,
    "export": ExportConfig,
    "import": importlib.import_module("saelens_lite.cli.import").ImportConfig,  # a keyword of the language
    "labels": LabelsConfig,
    "probe": ProbeConfig,
    "diff": DiffConfig,
    "diff-models": DiffModelsConfig,
    "report": ReportConfig,
    "steer": SteerConfig,
    "push": PushConfig,
    "pull": PullConfig,
    "study": StudyConfig,
    "saes": SaesConfig,
    "convert": ConvertConfig,
}


def python_blocks(name: str) -> list[str]:
    return re.findall(r"^```python\n(.*?)^```", TEXTS[name], flags=re.DOTALL | re.MULTILINE)


def flags(command: str) -> set[str]:
    """The long flags of a command, read from its dataclass as tyro does."""
    names = {field.name.replace("_", "-") for field in dataclasses.fields(CONFIGS[command])}
    names |= {"harvest": {"dry-run"}, "train": {"grid", "eval-model"}}.get(command, set())
    if command == "train":  # with the kind of a relative of the SAE
        names |= {f.name.replace("_", "-") for f in dataclasses.fields(AutoencoderConfig)}
        names |= {f.name.replace("_", "-") for f in dataclasses.fields(TranscoderConfig)}
    both = {f"--{name}" for name in names} | {f"--no-{name}" for name in names}
    return both | {"--help", "--config", "--traceback"}


def test_every_command_is_shown_with_an_example_and_in_the_list():
    assert CONFIGS.keys() == COMMANDS.keys()
    examples = "".join(TEXTS[path.relative_to(ROOT).as_posix()] for path in ROOMS)
    assert set(re.findall(r"^\$ saelens-lite ([\w-]+)", examples, flags=re.MULTILINE)) == set(COMMANDS)
    assert set(re.findall(r"^\| \[`([\w-]+)`\]", TEXTS["README.md"], flags=re.MULTILINE)) == set(COMMANDS)


@EACH
def test_every_shown_command_has_the_flags_it_is_given(name):
    for line in re.findall(r"^(?:\$ )?saelens-lite (.+)$", TEXTS[name], flags=re.MULTILINE):
        command, *arguments = shlex.split(line)
        given = {argument for argument in arguments if argument.startswith("--")}
        assert given <= flags(command), line


@EACH
def test_every_flag_in_the_text_belongs_to_some_command(name):
    everywhere = set().union(*(flags(command) for command in CONFIGS))
    for line in re.findall(r"`(--[^`]+)`", TEXTS[name]):
        assert {word for word in line.split() if word.startswith("--")} <= everywhere, line


def resolved(dotted: str) -> Any:
    """What a snippet's `sl.…` is, as far as modules, classes and their methods go."""
    value: Any = saelens_lite
    for part in dotted.split(".")[1:]:
        value = getattr(value, part)
    return value


@EACH
def test_python_blocks_parse_and_name_what_exists(name):
    """Names of the face, of its namespaces and of their functions' parameters."""
    for text in python_blocks(name):
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.Attribute) and re.fullmatch(r"sl(\.\w+)*", ast.unparse(node.value)):
                resolved(ast.unparse(node))
            if isinstance(node, ast.Call) and re.fullmatch(r"sl(\.\w+)+", ast.unparse(node.func)):
                given = {keyword.arg: None for keyword in node.keywords if keyword.arg}
                if not any(isinstance(value, ast.Starred) for value in node.args):
                    inspect.signature(resolved(ast.unparse(node.func))).bind_partial(*node.args, **given)
            if isinstance(node, ast.ImportFrom):
                for alias in node.names:
                    assert hasattr(importlib.import_module(node.module), alias.name)


@EACH
def test_public_names_in_the_text_exist(name):
    """`f(…)` and `sl.a.f` in the prose are something of the face, of one of its namespaces, or a method."""
    homes = [saelens_lite, *(getattr(saelens_lite, name) for name in saelens_lite.__all__ if name.islower())]
    for dotted in re.findall(r"`(sl(?:\.\w+)+)", TEXTS[name]):
        resolved(dotted)
    for called in re.findall(r"`(\w+)\(", TEXTS[name]):
        assert any(hasattr(home, called) for home in homes), called


@pytest.mark.long
def test_the_tour_runs_on_the_embedded_model(tmp_path, monkeypatch):
    """As it stands, but for the number of tokens: all its calls, in an empty folder."""
    monkeypatch.chdir(tmp_path)
    tour, n_changes = re.subn(
        r"max_tokens=100_000", "max_tokens=30_000, progress=False", python_blocks("README.md")[0]
    )
    assert n_changes == 1
    names: dict = {}
    exec(compile(tour, "README.md", "exec"), names)
    assert names["store"].n_rows == 30_000
    assert names["sae"].d_sae == 16 * names["sae"].d_model
    assert len(names["top"]) == names["sae"].d_sae
    assert names["out"].shape[1] > 1
    assert (tmp_path / "runs" / "sae" / "cfg.json").exists()


def test_the_top_readme_is_two_screens():
    assert len(TEXTS["README.md"].splitlines()) <= 125


def test_the_core_is_five_files_of_1500_lines_together():
    files = re.findall(r"^\d\. \[([\w/.]+)\]\(\1\)", TEXTS["README.md"], flags=re.MULTILINE)
    assert len(files) == 5
    assert sum(len((ROOT / file).read_text(encoding="utf-8").splitlines()) for file in files) <= 1500


@pytest.mark.parametrize("path", ROOMS, ids=lambda path: path.parent.name)
def test_a_room_lists_each_of_its_folders(path):
    listed = re.findall(r"^\| `(\w+)/` \| \w", path.read_text(encoding="utf-8"), flags=re.MULTILINE)
    assert sorted(listed) == sorted(folder.parent.name for folder in path.parent.glob("*/__init__.py"))


@EACH
def test_every_make_target_exists(name):
    makefile = (ROOT / "Makefile").read_text()
    for target in re.findall(r"^make ([\w-]+)|`make ([\w-]+)`", TEXTS[name], flags=re.MULTILINE):
        assert re.search(rf"^{''.join(target)}:", makefile, flags=re.MULTILINE), target


@EACH
def test_links_lead_somewhere(name):
    """To files that exist, and to headings in them."""
    for target, heading in re.findall(r"\]\(([^)#]*)#?([^)]*)\)", TEXTS[name]):
        file = (ROOT / name).parent / target if target else ROOT / name
        assert file.exists(), target
        if heading:
            headings = re.findall(r"^#+ (.+)$", file.read_text(encoding="utf-8"), flags=re.MULTILINE)
            assert heading in [text.lower().replace(" ", "-") for text in headings], f"{target}#{heading}"


def test_every_path_in_the_text_exists():
    for name, text in TEXTS.items():
        for path in re.findall(r"`((?:tests|notebooks|harvest|train|analyze|saelens_lite)/[\w./]*)`", text):
            assert (ROOT / path).exists(), f"{name} names {path}"
