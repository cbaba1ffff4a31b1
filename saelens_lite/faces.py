"""Lazy faces of packages: a name is imported from the file that defines it when it is first used (PEP 562).

The table of a face is the stub beside it, `__init__.pyi`: imports as an editor or type checker reads them,
    one line a file.
"""

from __future__ import annotations

import ast
import importlib
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from saelens_lite.errors import nearest


def face(
    package: str,
    file: str,
    renamed: Mapping[str, str] | None = None,
    elsewhere: Callable[[str], str | None] | None = None,
) -> tuple[Callable[[str], Any], Callable[[], list[str]], list[str]]:
    """`__getattr__`, `__dir__` and `__all__` of the package whose `__init__.py` is `file`.

    renamed: what to type today for each name of an earlier version; asking for one raises an AttributeError
        that says it
    elsewhere: what to say of a name that another library has; None for no such name
    """
    homes = _homes(Path(file).with_suffix(".pyi"))

    def get(name: str) -> Any:
        if name not in homes:
            if renamed and name in renamed:
                raise AttributeError(f"{package}.{name} is now {package}.{renamed[name]}")
            said = elsewhere(name) if elsewhere else None
            hint = f": {said}" if said else nearest(name, homes)
            raise AttributeError(f"module {package!r} has no attribute {name!r}{hint}")
        home = homes[name]
        module = importlib.import_module(f"{package}.{home or name}")
        value = getattr(module, name) if home else module
        setattr(sys.modules[package], name, value)
        return value

    return get, lambda: sorted(homes), list(homes)


def _homes(stub: Path) -> dict[str, str | None]:
    """The file that each name of a stub comes from, in its order; None for a folder of the package itself."""
    imports = [
        node for node in ast.parse(stub.read_text(encoding="utf-8")).body if isinstance(node, ast.ImportFrom)
    ]
    return {alias.name: node.module for node in imports for alias in node.names}
