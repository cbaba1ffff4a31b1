"""Things that the library's source does not do: read or write pickles, or print."""

import ast
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


def calls():
    """(relative name, the call) of every call in the source."""
    for top in ("saelens_lite", "harvest", "train", "analyze"):
        for path in sorted((ROOT / top).rglob("*.py")):
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, ast.Call):
                    yield path.relative_to(ROOT).as_posix(), node


def test_no_pickle_is_read_or_written():
    for name, call in calls():
        function = ast.unparse(call.func)
        if function in PICKLING:
            weights_only = [
                keyword for keyword in call.keywords if ast.unparse(keyword) == "weights_only=True"
            ]
            assert name.startswith("saelens_lite/formats/") and function == "torch.load" and weights_only, (
                f"{name}:{call.lineno} calls {function}; pickles run code, use safetensors or JSON"
            )


def test_no_pickle_is_imported():
    for top in ("saelens_lite", "harvest", "train", "analyze"):
        for path in sorted((ROOT / top).rglob("*.py")):
            for node in ast.walk(ast.parse(path.read_text())):
                names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
                names += [node.module] if isinstance(node, ast.ImportFrom) else []
                assert not {"pickle", "dill", "cloudpickle", "joblib"} & set(names), path


def test_the_library_does_not_print():
    for name, call in calls():
        if not name.startswith(("saelens_lite/cli", "saelens_lite/demo/")):
            assert ast.unparse(call.func) != "print", (
                f"{name}:{call.lineno} prints; use logging.getLogger(__name__)"
            )
