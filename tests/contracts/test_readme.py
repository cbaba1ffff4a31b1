"""The README keeps its word: its code parses, its commands and names exist, its tour runs, its files are
there."""

import ast
import dataclasses
import importlib
import re
import shlex
from pathlib import Path

import pytest

import saelens_lite
import saelens_lite.analyze
from saelens_lite.cli.add_hook_points import AddHookPointsConfig
from saelens_lite.cli.analyze import AnalyzeConfig
from saelens_lite.cli.commands import COMMANDS
from saelens_lite.cli.demo import DemoConfig
from saelens_lite.cli.evaluate import EvaluateConfig
from saelens_lite.cli.probe import ProbeConfig
from saelens_lite.cli.report import ReportConfig
from saelens_lite.cli.search import SearchConfig
from saelens_lite.cli.study import StudyConfig
from saelens_lite.cli.verify import VerifyConfig
from saelens_lite.harvest import HarvestConfig

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()
BLOCKS = re.findall(r"^```(\w*)\n(.*?)^```", README, flags=re.DOTALL | re.MULTILINE)
PYTHON = [text for language, text in BLOCKS if language == "python"]
CONFIGS = {
    "demo": DemoConfig,
    "harvest": HarvestConfig,
    "add-hook-points": AddHookPointsConfig,
    "verify": VerifyConfig,
    "train": saelens_lite.TrainConfig,
    "evaluate": EvaluateConfig,
    "analyze": AnalyzeConfig,
    "search": SearchConfig,
    "probe": ProbeConfig,
    "report": ReportConfig,
    "study": StudyConfig,
}


def flags(command: str) -> set[str]:
    """The long flags of a command, read from its dataclass as tyro does."""
    names = {field.name.replace("_", "-") for field in dataclasses.fields(CONFIGS[command])}
    names |= {"harvest": {"dry-run"}, "train": {"grid", "eval-model"}}.get(command, set())
    return (
        {f"--{name}" for name in names}
        | {f"--no-{name}" for name in names}
        | {"--help", "--config", "--traceback"}
    )


def test_every_command_is_shown_and_exists():
    assert CONFIGS.keys() == COMMANDS.keys()
    shown = re.findall(r"saelens-lite (\w+) --", README)
    assert set(shown) <= set(COMMANDS)
    assert {"harvest", "train", "evaluate", "analyze"} <= set(shown)


def test_every_shown_command_has_the_flags_it_is_given():
    lines = re.findall(r"^\$ saelens-lite (.+)$", README, flags=re.MULTILINE)
    assert len(lines) == len(COMMANDS)
    for line in lines:
        command, *arguments = shlex.split(line)
        given = {argument for argument in arguments if argument.startswith("--")}
        assert given <= flags(command), line


def test_every_flag_in_the_text_belongs_to_some_command():
    everywhere = set().union(*(flags(command) for command in CONFIGS))
    for line in re.findall(r"`(--[^`]+)`", README):
        assert {word for word in line.split() if word.startswith("--")} <= everywhere, line


def test_python_blocks_parse_and_name_what_exists():
    assert PYTHON
    for text in PYTHON:
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.Attribute) and ast.unparse(node.value) == "sl":
                assert node.attr in saelens_lite.__all__
            if isinstance(node, ast.ImportFrom):
                for alias in node.names:
                    assert hasattr(importlib.import_module(node.module), alias.name)


def test_public_names_in_the_text_exist():
    for name in re.findall(r"`(\w+)\((?:sae|store)", README):
        homes = [
            saelens_lite.analyze,
            saelens_lite,
            *(getattr(saelens_lite, folder) for folder in saelens_lite.__all__ if folder.islower()),
        ]
        assert any(name in getattr(home, "__all__", ()) for home in homes), name


def test_the_tour_runs_on_the_embedded_model(tmp_path, monkeypatch):
    """As it stands, but for the number of tokens: all its calls, in an empty folder."""
    monkeypatch.chdir(tmp_path)
    tour, n_changes = re.subn(r"max_tokens=100_000", "max_tokens=30_000, progress=False", PYTHON[0])
    assert n_changes == 1
    names: dict = {}
    exec(compile(tour, "README.md", "exec"), names)
    assert names["store"].n_rows == 30_000
    assert names["sae"].d_sae == 16 * names["sae"].d_model
    assert len(names["top"]) == names["sae"].d_sae
    assert names["out"].shape[1] > 1
    assert (tmp_path / "runs" / "sae" / "cfg.json").exists()


@pytest.mark.parametrize("target", sorted(set(re.findall(r"make (\w[\w-]*)", README)) - {"a"}))
def test_every_make_target_exists(target):
    assert re.search(rf"^{target}:", (ROOT / "Makefile").read_text(), flags=re.MULTILINE)


def test_links_lead_somewhere():
    for target in re.findall(r"\]\(([^)#]+)\)", README):
        assert (ROOT / target).exists(), target
