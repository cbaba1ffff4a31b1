"""Arguments that are not what a function's annotations say, named when something fails because of them."""

from __future__ import annotations

import builtins
import collections.abc
import dis
import functools
import inspect
import numbers
import os
import types
import typing
from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeVar, cast

from saelens_lite.errors import SaelensLiteError

_NOTHING = type("_NOTHING", (), {})
F = TypeVar("F", bound=Callable[..., Any])


def names_misfits(function: F) -> F:
    """The function, whose errors from further inside say which argument did not fit its annotation.

    It costs nothing while nothing fails, and refuses nothing that works. Errors that already say what was
    expected stay, and so do those of arguments that fit: these are faults of ours.
    raises: TypeError from the error, with the argument, its annotation and what was given
    """
    if inspect.isgeneratorfunction(function):

        @functools.wraps(function)
        def called(*args: Any, **kwargs: Any) -> Iterator[Any]:
            try:
                return (yield from function(*args, **kwargs))
            except Exception as error:
                _explain(function, args, kwargs, error)
                raise
    else:

        @functools.wraps(function)
        def called(*args: Any, **kwargs: Any) -> Any:
            try:
                return function(*args, **kwargs)
            except Exception as error:
                _explain(function, args, kwargs, error)
                raise

    return cast(F, called)


def methods_name_misfits(cls: type) -> None:
    """Give the public methods that a class defines what `names_misfits` gives a function."""
    for name, value in list(vars(cls).items()):
        if inspect.isfunction(value) and (name == "__init__" or not name.startswith("_")):
            setattr(cls, name, names_misfits(value))


def _explain(
    function: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any], error: Exception
) -> None:
    if isinstance(error, SaelensLiteError | OSError | ImportError) or _says_what(error):
        return
    try:
        signature = inspect.signature(function)
        given = signature.bind(*args, **kwargs).arguments
    except TypeError:  # Python says which argument is missing or too many
        return
    for name, value in given.items():
        hint = function.__annotations__.get(name)
        if isinstance(hint, str):
            hint = _named(hint, inspect.unwrap(function).__globals__)
        told = function.__annotations__.get(name)
        if value is not None or signature.parameters[name].default is not None:
            if name == "tokenizer" and not (hasattr(value, "decode") and callable(value)):
                hint, told = _NOTHING, "a tokenizer"
            if name == "model" and not (
                isinstance(value, str | os.PathLike) or hasattr(value, "config") or hasattr(value, "layers")
            ):
                hint, told = _NOTHING, "a language model"
            if kind := _unusual(value):
                hint, told = _NOTHING, f"numbers in a dense array, no {kind}"
        if hint is not None and not fits(value, hint):
            told = told if isinstance(told, str) else getattr(told, "__name__", str(told))
            got = described(value)
            raise TypeError(f"{function.__name__} expected {name} as {told}, got {got}") from error


def _unusual(value: Any) -> str | None:
    """What no function here takes, whatever its annotation."""
    if getattr(getattr(value, "dtype", None), "kind", "f") in "OUSV":
        return f"array of {value.dtype}"
    kinds = ("is_sparse", "is_meta", "is_complex")
    found = (kind for kind in kinds if (is_so := getattr(value, kind, False)) is True or (is_so and is_so()))
    return next((f"{kind.removeprefix('is_')} tensor" for kind in found), None)


def _says_what(error: Exception) -> bool:
    """Whether a line of the package raised the error on purpose: its own words are better than ours.

    An AttributeError is about a name that our own code asked for, never about an argument.
    """
    traceback = None if isinstance(error, AttributeError) else error.__traceback__
    while traceback is not None and traceback.tb_next is not None:
        traceback = traceback.tb_next
    if traceback is None or not traceback.tb_frame.f_globals.get("__name__", "").startswith("saelens_lite"):
        return False
    return traceback.tb_frame.f_code.co_code[traceback.tb_lasti] == dis.opmap["RAISE_VARARGS"]


def _named(annotation: str, names: dict[str, Any]) -> Any:
    """What an annotation means; None where its names exist for type checkers only."""
    try:
        return eval(annotation, names, vars(builtins))  # the text of our own source
    except (NameError, TypeError, AttributeError):
        return None


def fits(value: Any, hint: Any) -> bool:
    """Whether a value is of an annotation, as far as that can be told without using the value up."""
    origin, of = typing.get_origin(hint), typing.get_args(hint)
    if hint is Any:
        return True
    if origin in (typing.Union, types.UnionType):
        return any(fits(value, one) for one in of)
    if origin is typing.Annotated:
        return fits(value, of[0])
    if origin is typing.Literal:
        return isinstance(value, str | int | bool | None) and value in of
    if hint is None or hint is type(None):
        return value is None
    if hint is float:
        return isinstance(value, numbers.Real) and not isinstance(value, bool)
    if hint is int:
        whole = isinstance(value, numbers.Integral) and not isinstance(value, bool)
        return whole and -(2**63) <= value < 2**63
    kind = origin or hint
    if kind is collections.abc.Callable:
        return callable(value)
    if not isinstance(kind, type):
        return True
    if getattr(kind, "_is_protocol", False):
        return all(hasattr(value, name) for name in _members(kind))
    if not isinstance(value, kind):
        return kind is os.PathLike and hasattr(value, "__fspath__")
    if isinstance(value, str) and of:
        return fits("", of[0])
    if hasattr(value, "dtype") and of:  # holds numbers and arrays
        return any(fits(member, of[0]) for member in (0, 0.5, value))
    if isinstance(value, list | tuple | bytes) and of and of[-1] is not ...:
        return len(of) > 1 or all(fits(one, of[0]) for one in value)
    if isinstance(value, tuple) and len(of) == 2:
        return all(fits(one, of[0]) for one in value)
    return True


def _members(protocol: type) -> set[str]:
    """The public attributes and methods that a protocol asks for."""
    own = [base for base in protocol.__mro__ if getattr(base, "_is_protocol", False)]
    named = (name for base in own for name in (*vars(base), *inspect.get_annotations(base)))
    return {name for name in named if not name.startswith("_")}


def described(value: Any) -> str:
    """A value in an error: its type, and its shape or itself where that is short."""
    if hasattr(value, "shape") and hasattr(value, "dtype"):
        return f"{type(value).__name__} {value.dtype} {list(value.shape)}"
    plain = isinstance(value, str | bytes | int | float | complex | list | tuple | dict | None)
    return f"{type(value).__name__} {value!r}"[:80] if plain else type(value).__name__
