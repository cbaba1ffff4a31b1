"""JSON that others wrote: parsed whatever its depth, and held to a form before anything relies on it.

A form is str, bool, int (0 to 2⁶³), float (any finite number), [form] of every member of a list, or an object
{"key": form}; "key?" may be missing or null, and "*" stands for every key.
"""

from __future__ import annotations

import json
import reprlib
import sys
from typing import Any

Form = type | list[Any] | dict[str, Any]


def loads(text: str | bytes) -> Any:
    """As json.loads. raises: JSONDecodeError also for what is nested too deep, or has too long a number"""
    try:
        return json.loads(text)
    except (json.JSONDecodeError, UnicodeDecodeError):
        raise
    except (RecursionError, ValueError) as error:
        raise json.JSONDecodeError(f"no data of ordinary depth and numbers: {error}", "", 0) from error


def misfit(value: Any, form: Form, at: str = "") -> str | None:
    """Where and how a value is not of the form, such as "shards[3].rows expected int, got 'many'"."""
    said = f"{at} expected" if at else "expected"
    if isinstance(form, dict):
        if not isinstance(value, dict):
            return f"{said} a JSON object, got {reprlib.repr(value)}"
        for key, of in form.items():
            name = key.removesuffix("?")
            if name == key != "*" and name not in value:
                return f"{at}{'.' * bool(at)}{name} is missing"
            for each in value if key == "*" else [name] if value.get(name) is not None or name == key else []:
                if found := misfit(value[each], of, f"{at}{'.' * bool(at)}{each}"):
                    return found
        return None
    if isinstance(form, list):
        if not isinstance(value, list):
            return f"{said} a list, got {reprlib.repr(value)}"
        return next(filter(None, (misfit(v, form[0], f"{at}[{i}]") for i, v in enumerate(value))), None)
    if form is float:
        fits = is_number(value)
    elif form is int:
        fits = isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**63
    else:
        fits = isinstance(value, form)
    return None if fits else f"{said} {form.__name__}, got {reprlib.repr(value)}"


def is_number(value: Any) -> bool:
    """Whether a value is a number to compute with: NaN, infinity, true and false are none."""
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= sys.float_info.max
