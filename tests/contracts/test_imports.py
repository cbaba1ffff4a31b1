"""Who may import whom, read from the source: hub and spokes, and nothing heavy where it is not needed."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

ROOMS = ("harvest", "train", "analyze")
REACH_ROOMS = {"__init__.py", "clistores.py", "clianalysis.py", "clishared.py", "recipes.py"}  # and demo/


def imports(path: Path, package: str) -> list[tuple[str, bool]]:
    """Every import of a file as (absolute module name, whether it runs when the file is imported).

    package: the package that the file belongs to, against which its relative imports are resolved
    """
    found = []

    def visit(node: ast.AST, at_import: bool) -> None:
        if isinstance(node, ast.Import):
            found.extend((alias.name, at_import) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            parts = package.split(".")
            base = ".".join(parts[: len(parts) - node.level + 1] if node.level else [])
            module = ".".join(filter(None, [base, node.module]))
            found.append((module, at_import))
            if module == "saelens_lite":  # `from saelens_lite import train` reaches a room, too
                found.extend((f"saelens_lite.{alias.name}", at_import) for alias in node.names)
        for field, children in ast.iter_fields(node):
            inner = at_import and not isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda))
            if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test) and field == "body":
                inner = False
            for child in children if isinstance(children, list) else [children]:
                if isinstance(child, ast.AST):
                    visit(child, inner)

    visit(ast.parse(path.read_text()), True)
    return found


def files() -> list[tuple[str, Path, str]]:
    """(relative name, path, package) of every source file."""
    listed = []
    for top in ("saelens_lite", *ROOMS):
        for path in sorted((ROOT / top).rglob("*.py")):
            folder = path.parent.relative_to(ROOT).as_posix().replace("/", ".")
            package = folder if top == "saelens_lite" else f"saelens_lite.{folder}"
            listed.append((path.relative_to(ROOT).as_posix(), path, package))
    return listed


def room_of(module: str) -> str | None:
    parts = module.split(".")
    return parts[1] if parts[0] == "saelens_lite" and len(parts) > 1 and parts[1] in ROOMS else None


SOURCE = pytest.mark.parametrize("name, path, package", files(), ids=lambda value: value if "/" in str(value) else "")


@SOURCE
def test_rooms_are_reached_only_from_where_they_may_be(name, path, package):
    top, _, rest = name.partition("/")
    for module, _ in imports(path, package):
        room = room_of(module)
        if top in ROOMS:
            assert room in (None, top), f"{name} imports another room: {module}"
        elif room and not rest.startswith("demo/"):
            assert rest in REACH_ROOMS, f"{name} imports a room: {module}"


@SOURCE
def test_no_room_is_imported_as_a_top_level_module(name, path, package):
    for module, _ in imports(path, package):
        assert module.split(".")[0] not in ROOMS, f"{name}: {module} would be a second copy of saelens_lite.{module}"


@SOURCE
def test_rooms_import_their_own_files_relatively(name, path, package):
    top = name.partition("/")[0]
    if top in ROOMS:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
                assert room_of(node.module) != top, f"{name} imports its own room absolutely: {node.module}"


@SOURCE
def test_heavy_libraries_load_where_they_are_used(name, path, package):
    if name == "saelens_lite/demo/train_lm.py":  # a script, imported by nobody
        return
    heavy = {"transformers", "datasets", "wandb", "tokenizers", "huggingface_hub", "matplotlib", "sklearn"}
    at_import = {module.split(".")[0] for module, runs in imports(path, package) if runs}
    assert not at_import & heavy, f"{name} imports {at_import & heavy} when it is imported"


def test_training_needs_no_transformers():
    for name, path, package in files():
        if name.startswith("train/"):
            anywhere = {module.split(".")[0] for module, _ in imports(path, package)}
            assert not anywhere & {"transformers", "datasets"}, name
