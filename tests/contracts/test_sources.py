"""Things that the library's source does not do: read or write pickles, or print."""

import ast
import functools
from pathlib import Path

ROOT = Path(__file__).parents[2]


PICKLING = {
    "torch.load",
    "torch.save",
    "pickle.load",
    "pickle.loads",
    "pickle.dump",
    "pickle.dumps",
    "numpy.load",
    "np.load",
}


@functools.cache
def sources() -> list[tuple[str, str]]:
    """(relative name, text) of the whole source."""
    return [
        (path.relative_to(ROOT).as_posix(), path.read_text(encoding="utf-8"))
        for top in ("saelens_lite", "harvest", "train", "analyze")
        for path in sorted((ROOT / top).rglob("*.py"))
    ]


def nodes(words: set[str]):
    """(relative name, node of its syntax tree) of every file that has one of the words in it."""
    for file, text in sources():
        if any(word in text for word in words):
            yield from ((file, node) for node in ast.walk(ast.parse(text)))


def calls(names: set[str]):
    """(relative name, what is called, the call) of every call in the source of something with such a last
    name."""
    for file, node in nodes(names):
        called = node.func if isinstance(node, ast.Call) else None
        if getattr(called, "id", getattr(called, "attr", None)) in names:
            yield file, ast.unparse(called), node


def test_no_pickle_is_read_or_written():
    for name, function, call in calls({pickling.rpartition(".")[2] for pickling in PICKLING}):
        if function in PICKLING:
            if (name, function) == ("saelens_lite/formats/dictionary_learning.py", "torch.save"):
                continue  # tensors by name: that program opens nothing else
            weights_only = [
                keyword for keyword in call.keywords if ast.unparse(keyword) == "weights_only=True"
            ]
            assert name.startswith("saelens_lite/formats/") and function == "torch.load" and weights_only, (
                f"{name}:{call.lineno} calls {function}; pickles run code, use safetensors or JSON"
            )


def test_no_pickle_is_imported():
    pickling = {"pickle", "dill", "cloudpickle", "joblib"}
    for name, node in nodes(pickling):
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        names += [node.module] if isinstance(node, ast.ImportFrom) else []
        assert not pickling & set(names), name


def test_the_library_does_not_print():
    for name, function, call in calls({"print"}):
        if not name.startswith(("saelens_lite/cli", "saelens_lite/demo/")):
            assert function != "print", f"{name}:{call.lineno} prints; use logging.getLogger(__name__)"
