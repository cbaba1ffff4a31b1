"""Who may import whom, read from the source: hub and spokes, no circles, layers, nothing heavy where it is
not needed."""

import ast
import functools
import json
import subprocess
import sys
from collections import defaultdict
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

ROOMS = ("harvest", "train", "analyze")
LAYERS = (
    {"latents", "stats"},
    {"render", "edits"},
    {"attribution"},
    {"index", "probing"},
    {"evaluation"},
    {"browse", "answers", "corpora", "model_diffing"},
    {"ground_truth", "study", "exchange", "pages"},
)
"""The folders of analyze/, lowest first: a folder imports those of lower layers only."""
REACH_ROOMS = ("__init__.py", "cli/", "recipes/", "demo/")


@functools.cache
def statements(path: Path) -> list[tuple[ast.Import | ast.ImportFrom, bool]]:
    """Every import statement of a file, and whether it runs when the file is imported.

    Only statements hold statements, so expressions are not walked; and the tree is not kept, which would make
    every later collection of garbage slow.
    """
    found = []

    def visit(node: ast.AST, at_import: bool) -> None:
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            found.append((node, at_import))
        at_import = at_import and not isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))
        for field, children in ast.iter_fields(node):
            for_checkers = (
                isinstance(node, ast.If) and field == "body" and "TYPE_CHECKING" in ast.unparse(node.test)
            )
            for child in children if isinstance(children, list) else ():
                if isinstance(child, (ast.stmt, ast.ExceptHandler, ast.match_case)):
                    visit(child, at_import and not for_checkers)

    visit(ast.parse(path.read_text()), True)
    return found


def origin(node: ast.ImportFrom, package: str) -> str:
    """The absolute name of the module that a `from … import …` in a file of the package names."""
    parts = package.split(".")
    base = ".".join(parts[: len(parts) - node.level + 1] if node.level else [])
    return ".".join(filter(None, [base, node.module]))


def imports(path: Path, package: str) -> list[tuple[str, bool]]:
    """Every import of a file as (absolute module name, whether it runs when the file is imported).

    package: the package that the file belongs to, against which its relative imports are resolved
    """
    found = []
    for node, at_import in statements(path):
        if isinstance(node, ast.Import):
            found.extend((alias.name, at_import) for alias in node.names)
        else:
            module = origin(node, package)
            found.append((module, at_import))
            if module == "saelens_lite":  # `from saelens_lite import train` reaches a room, too
                found.extend((f"saelens_lite.{alias.name}", at_import) for alias in node.names)
    return found


@functools.cache
def files() -> list[tuple[str, Path, str]]:
    """(relative name, path, package) of every source file."""
    listed = []
    for top in ("saelens_lite", *ROOMS):
        for path in sorted((ROOT / top).rglob("*.py")):
            folder = path.parent.relative_to(ROOT).as_posix().replace("/", ".")
            package = folder if top == "saelens_lite" else f"saelens_lite.{folder}"
            listed.append((path.relative_to(ROOT).as_posix(), path, package))
    return listed


def module_of(name: str) -> str:
    """The module that a source file is, such as saelens_lite.train.rows.row_order."""
    module = name.removesuffix(".py").removesuffix("/__init__").replace("/", ".")
    return module if module.startswith("saelens_lite") else f"saelens_lite.{module}"


@functools.cache
def arrows() -> dict[str, set[str]]:
    """The modules that each module imports anywhere in it: in functions and for type checkers too.

    An import through a face, `from folder import file`, is an arrow to the file; that a folder's own face is
    run by it is no arrow, since the face holds no code but its table.
    """
    modules = {module_of(name) for name, _, _ in files()}
    found = defaultdict(set)
    for name, path, package in files():
        for node, _ in statements(path):
            if isinstance(node, ast.Import):
                targets = [alias.name for alias in node.names]
            else:
                module = origin(node, package)
                targets = [
                    f"{module}.{alias.name}" if f"{module}.{alias.name}" in modules else module
                    for alias in node.names
                ]
            found[module_of(name)].update(
                target for target in targets if target in modules and target != "saelens_lite"
            )
    return {module: found[module] - {module} for module in modules}


def circles(graph: dict[str, set[str]]) -> list[list[str]]:
    """Strongly connected components of more than one node: Tarjan 1972, with a stack of our own."""
    order, low, on_stack, stack, found = {}, {}, set(), [], []

    def visit(root: str) -> None:
        work = [(root, iter(sorted(graph[root])))]
        order[root] = low[root] = len(order)
        stack.append(root)
        on_stack.add(root)
        while work:
            node, targets = work[-1]
            for target in targets:
                if target not in order:
                    order[target] = low[target] = len(order)
                    stack.append(target)
                    on_stack.add(target)
                    work.append((target, iter(sorted(graph[target]))))
                    break
                if target in on_stack:
                    low[node] = min(low[node], order[target])
            else:
                work.pop()
                if work:
                    low[work[-1][0]] = min(low[work[-1][0]], low[node])
                if low[node] == order[node]:
                    component = []
                    while not component or component[-1] != node:
                        component.append(stack.pop())
                        on_stack.discard(component[-1])
                    if len(component) > 1:
                        found.append(sorted(component))

    for node in sorted(graph):
        if node not in order:
            visit(node)
    return found


def room_of(module: str) -> str | None:
    parts = module.split(".")
    return parts[1] if parts[0] == "saelens_lite" and len(parts) > 1 and parts[1] in ROOMS else None


@pytest.mark.long
def test_rooms_are_reached_only_from_where_they_may_be():
    for name, path, package in files():
        top, _, rest = name.partition("/")
        for module, _ in imports(path, package):
            room = room_of(module)
            if top in ROOMS:
                assert room in (None, top), f"{name} imports another room: {module}"
            elif room:
                assert rest.startswith(REACH_ROOMS), f"{name} imports a room: {module}"


def test_no_room_is_imported_as_a_top_level_module():
    for name, path, package in files():
        for module, _ in imports(path, package):
            assert module.split(".")[0] not in ROOMS, (
                f"{name}: {module} would be a second copy of saelens_lite.{module}"
            )


def test_rooms_import_their_own_files_relatively():
    for name, path, _ in files():
        top = name.partition("/")[0]
        for node, _ in statements(path) if top in ROOMS else ():
            if isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
                assert room_of(node.module) != top, f"{name} imports its own room absolutely: {node.module}"


def test_heavy_libraries_load_where_they_are_used():
    heavy = {"transformers", "datasets", "wandb", "tokenizers", "huggingface_hub", "matplotlib", "sklearn"}
    for name, path, package in files():
        at_import = {module.split(".")[0] for module, runs in imports(path, package) if runs}
        assert not at_import & heavy, f"{name} imports {at_import & heavy} when it is imported"


def test_training_needs_no_transformers():
    for name, path, package in files():
        if name.startswith("train/"):
            anywhere = {module.split(".")[0] for module, _ in imports(path, package)}
            assert not anywhere & {"transformers", "datasets"}, name


def test_circles_are_found():
    assert circles({"a": {"b"}, "b": {"c"}, "c": {"a", "d"}, "d": {"e"}, "e": set()}) == [["a", "b", "c"]]
    assert circles({"a": {"b", "c"}, "b": {"d"}, "c": {"d"}, "d": set()}) == []


def test_no_circle_of_imports():
    assert circles(arrows()) == []


def test_layers_name_every_folder_of_the_analysis():
    assert set().union(*LAYERS) == {path.parent.name for path in (ROOT / "analyze").glob("*/__init__.py")}


def test_folders_of_the_analysis_import_lower_layers_only():
    layer = {folder: number for number, folders in enumerate(LAYERS) for folder in folders}
    for module, targets in arrows().items():
        here = module.split(".")[2] if module.startswith("saelens_lite.analyze.") else ""
        for target in targets:
            there = target.split(".")[2] if target.startswith("saelens_lite.analyze.") else ""
            if here in layer and there in layer and here != there:
                assert layer[there] < layer[here], f"{module} imports {target}, which lies no lower"


def test_the_source_imports_from_the_file_that_defines():
    faces = {module_of(name) for name, path, _ in files() if path.name == "__init__.py"} - {"saelens_lite"}
    for module, targets in arrows().items():
        assert not targets & faces, f"{module} imports through a face: {targets & faces}"


EVERY_MODULE = """
import importlib, json, sys, types

def ours():
    return [name for name in sys.modules if name.partition(".")[0] == "saelens_lite"]

every_nth, names, alone = int(sys.argv[1]), sys.argv[2:], {}
modules = [importlib.import_module(name) for name in names]
folders = {module.__name__.rpartition(".")[2] for module in modules if hasattr(module, "__path__")}
hidden = [
    f"{module.__name__}.{name}"
    for module in modules
    for name in getattr(module, "__all__", ())
    if isinstance(getattr(module, name), types.ModuleType) and name not in {*folders, "synthetic"}
]
for name in names[::every_nth]:
    for imported in ours():
        del sys.modules[imported]
    try:
        importlib.import_module(name)
        alone[name] = None
    except BaseException as error:
        alone[name] = repr(error)
print(json.dumps({"hidden": hidden, "alone": alone}))
"""


@pytest.fixture(scope="module", params=[4, pytest.param(1, marks=pytest.mark.slow)])
def imported(request):
    """What came of importing every module: all one after another, and each nth while none of ours was
    loaded."""
    modules = sorted(module_of(name) for name, path, _ in files() if path.name != "__main__.py")
    command = [sys.executable, "-c", EVERY_MODULE, str(request.param), *modules]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return json.loads(done.stdout) | {"expected": modules[:: request.param]}


@pytest.mark.long
def test_modules_import_alone(imported):
    assert list(imported["alone"]) == imported["expected"] and len(imported["expected"]) > 80
    assert {name: error for name, error in imported["alone"].items() if error} == {}


@pytest.mark.long
def test_no_public_name_is_a_module(imported):
    """Importing a file puts its module into its folder's face: a public name of the file's name would be
    lost."""
    assert imported["hidden"] == []
