"""The public face: what it has, that it has nothing else, and that each name is where the face says."""

import ast
from pathlib import Path

import pytest

import saelens_lite

ROOT = Path(__file__).parents[2]


def test_every_public_name_exists():
    for name in saelens_lite.__all__:
        assert getattr(saelens_lite, name) is not None


def test_dir_is_exactly_the_public_names():
    assert dir(saelens_lite) == sorted(saelens_lite.__all__)


def test_every_public_name_is_documented():
    for name in set(saelens_lite.__all__) - {"__version__"}:
        assert getattr(saelens_lite, name).__doc__, f"{name} has no docstring"


def test_static_tools_see_the_same_names():
    tree = ast.parse((ROOT / "saelens_lite" / "__init__.py").read_text())
    (block,) = [n for n in tree.body if isinstance(n, ast.If) and ast.unparse(n.test) == "TYPE_CHECKING"]
    seen = {(alias.name, node.module) for node in block.body if isinstance(node, ast.ImportFrom) for alias in node.names}
    assert seen == {(name, f"saelens_lite.{home}") for name, home in saelens_lite._HOME_OF.items()}
    assert {name for name, _ in seen} | {"__version__"} == set(saelens_lite.__all__)


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="has no attribute 'train_sea'"):
        _ = saelens_lite.train_sea
