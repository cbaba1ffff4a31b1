"""The browser's one module, which a page holds inline and a widget gives to its notebook, and its shell."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path

from markupsafe import Markup

from ..render.html import rendered, style

SCRIPTS = ("dom", "feature", "list", "scatter", "text", "steer", "compare", "app", "hosts")
_HERE = Path(__file__).parent


@cache
def module() -> str:
    """An ES module that imports nothing: the files of this folder, one behind the other."""
    return "\n".join((_HERE / f"{name}.js").read_text(encoding="utf-8") for name in SCRIPTS)


def widget_module() -> str:
    """The same with the style and the shell that a page has beside it."""
    beside = json.dumps({"style": style("page"), "shell": shell()})
    return f"const WIDGET = {beside};\n{module()}"


def shell(host: str = "", made: str = "") -> Markup:
    """The elements that the module fills. host: "static" or "server", for a page; made: who made it, a
    sentence"""
    return rendered("browser.html", host=host, made=made)
