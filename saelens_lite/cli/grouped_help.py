"""The help of a command with many flags: by what they are for, those of other kinds left out."""

from __future__ import annotations

import ast
import dataclasses
import inspect
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any, Literal, get_args, get_origin, get_type_hints

from saelens_lite.cli.places import with_places
from saelens_lite.config import bounds_in_words

WIDTH = 110


def documented(cls: Any) -> dict[str, str]:
    """Of each field the text below it, from the source of the class and its bases."""
    found: dict[str, str] = {}
    for base in reversed(cls.__mro__):
        if not dataclasses.is_dataclass(base):
            continue
        [body] = ast.parse(textwrap.dedent(inspect.getsource(base))).body
        assert isinstance(body, ast.ClassDef)
        for field, text in zip(body.body, body.body[1:], strict=False):
            if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name):
                said = text.value.value if _is_text(text) else ""  # type: ignore[attr-defined]
                found[field.target.id] = " ".join(str(said).split())
    return found


def _is_text(node: ast.stmt) -> bool:
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)


def grouped_help(
    cls: Any, command: str, groups: Mapping[str, Sequence[str]], left_out: Mapping[str, Sequence[str]]
) -> str:
    """The help of a command: its flags by group, each with its default, its text and its bounds.

    groups: fields by title, in order; left_out: fields by why they are not shown
    """
    texts, fields = documented(cls), {field.name: field for field in dataclasses.fields(cls)}
    hints = get_type_hints(cls, include_extras=True)
    about = " ".join((cls.__doc__ or "").split())
    lines = [f"usage: {with_places(cls, command)} [flags]", "", *textwrap.wrap(about, WIDTH)]
    for title, names in groups.items():
        lines += ["", title]
        for name in names:
            field = fields[name]
            flag = f"--{name.replace('_', '-')}"
            no = f" | --no-{flag[2:]}" if isinstance(field.default, bool) else ""
            typed = "" if field.default is dataclasses.MISSING else _typed(field.default)
            default = f"  (default: {typed})" if typed else ""
            bounds = bounds_in_words(hints[name]).capitalize()
            lines.append(f"  {flag}{no}{default}")
            choices = ", ".join(_choices(hints[name]))
            said = [texts[name], f"One of {choices}." if choices else "", f"{bounds}." if bounds else ""]
            lines += textwrap.wrap(
                " ".join(filter(None, said)),
                WIDTH,
                initial_indent=" " * 6,
                subsequent_indent=" " * 6,
            )
    for why, names in left_out.items():
        shown = ", ".join(f"--{name.replace('_', '-')}" for name in names)
        lines += ["", *textwrap.wrap(f"{why}: {shown}", WIDTH, break_on_hyphens=False)]
    return "\n".join(lines)


def _choices(hint: Any) -> list[str]:
    """The values that a Literal within a type allows."""
    if get_origin(hint) is Literal:
        return [str(value) for value in get_args(hint)]
    return [choice for part in get_args(hint) for choice in _choices(part)]


def _typed(default: Any) -> str:
    """As it is typed."""
    if isinstance(default, tuple):
        return " ".join(map(_typed, default)) or "none"
    return str(default)
