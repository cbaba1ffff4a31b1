"""Configuration dataclasses: bounds that stand at their fields, plain mappings, and where two of them differ.

k: Annotated[int, AtLeast(1)] = 32                 `check_fields` holds it to that, --help shows it
device: Annotated[str | None, MAY_CHANGE] = None   `marked` lists the fields with a mark of their own
trust_remote_code: Annotated[bool, PERMISSION]     is said by the user, never by a file
"""

from __future__ import annotations

import dataclasses
import functools
import inspect
import json
import math
import numbers
import operator
import os
import re
import types
from collections.abc import Callable, Collection, Iterator, Mapping
from pathlib import Path
from typing import (
    Annotated,
    Any,
    ClassVar,
    Literal,
    TypeVar,
    Union,
    get_args,
    get_origin,
    get_type_hints,
)

from saelens_lite.errors import nearest
from saelens_lite.formats.peer_names import field_hint

PERMISSION = "permission"
"""Mark of a field that only the user gives: settings that a file, store or run names leave it as it is."""

T = TypeVar("T")
F = TypeVar("F", bound=Callable[..., Any])


@dataclasses.dataclass(frozen=True)
class Bound:
    """A limit of a number, or of every number in a tuple."""

    limit: float
    words: ClassVar[str]
    holds: ClassVar[Callable[[float, float], bool]]

    def __str__(self) -> str:
        return f"{self.words} {self.limit}"


class AtLeast(Bound):
    words, holds = "at least", operator.ge


class Above(Bound):
    words, holds = "above", operator.gt


class AtMost(Bound):
    words, holds = "at most", operator.le


class Below(Bound):
    words, holds = "below", operator.lt


def check_fields(config: Any) -> None:
    """Hold the fields of a configuration to their bounds and choices.

    raises: ValueError with the field, what it expects and what it got
    """
    for name, hint in _hints(type(config)).items():
        if complaint := _complaint(getattr(config, name), hint):
            raise ValueError(f"{type(config).__name__}.{name} expected {complaint}")


def bounds_in_words(hint: Any) -> str:
    """The bounds of an annotation, such as "at least 0 and below 1"; "" where there are none."""
    return " and ".join(map(str, _bounds(hint)))


def marked(cls: type, mark: str) -> set[str]:
    """The fields of a configuration whose annotations carry the mark."""
    return {name for name, hint in _hints(cls).items() if mark in getattr(hint, "__metadata__", ())}


def _complaint(value: Any, hint: Any) -> str | None:
    """What the field expects and what it got, where the two differ."""
    types_ = _alternatives(hint)
    or_none = " or None" if types.NoneType in types_ else ""
    if value is None and or_none:
        return None
    choices = [choice for type_ in types_ if get_origin(type_) is Literal for choice in get_args(type_)]
    if choices and not (isinstance(value, str) and value in choices):
        return f"one of {', '.join(choices)}{or_none}, got {value!r}{nearest(str(value), choices)}"
    value = value if Path in types_ else _plain(value)
    if not _fits(value, hint):
        return f"{_type_name(hint)}, got {type(value).__name__} {value!r}"
    values = value if isinstance(value, tuple | list) else [value]
    if any(isinstance(number, int) and not -(2**63) <= number < 2**63 for number in values):
        return f"a number of at most 64 bits{or_none}, got {value!r}"
    bounds = _bounds(hint)
    if all(bound.holds(number, bound.limit) for bound in bounds for number in values):
        if not bounds or all(map(math.isfinite, values)):
            return None
        return f"a finite number{or_none}, got {value!r}"
    return f"{bounds_in_words(hint)}{or_none}, got {value!r}"


@functools.cache
def _hints(cls: type) -> dict[str, Any]:
    """The annotation of each field, evaluated."""
    hints = get_type_hints(cls, include_extras=True)
    return {field.name: hints[field.name] for field in dataclasses.fields(cls)}


def _bounds(hint: Any) -> list[Bound]:
    return [fact for fact in getattr(hint, "__metadata__", ()) if isinstance(fact, Bound)]


def _alternatives(hint: Any) -> tuple[Any, ...]:
    """The types of a union, or the one type."""
    if get_origin(hint) is Annotated:
        hint = hint.__origin__
    return get_args(hint) if get_origin(hint) in (Union, types.UnionType) else (hint,)


def _type_name(hint: Any) -> str:
    return " | ".join(
        "None" if type_ is types.NoneType else type_.__name__ if isinstance(type_, type) else str(type_)
        for type_ in _alternatives(hint)
    )


def from_mapping(cls: type[T], mapping: Mapping[str, Any], where: str = "configuration") -> T:
    """Build the dataclass `cls` from `mapping`.

    where: names the source in errors, e.g. a file's path
    raises: ValueError for a key that `cls` lacks (suggests the nearest), a required one that is missing, or a
        value of another type than the field's; paths become strings
    """
    fields = {field.name: field for field in dataclasses.fields(cls) if field.init}  # type: ignore[arg-type]
    for key in mapping:
        if key not in fields:
            raise ValueError(
                f"{where}: unknown key {key!r}{field_hint(key, fields)}; {cls.__name__} has "
                f"{', '.join(sorted(fields))}"
            )
    no_default = dataclasses.MISSING
    missing = [
        name
        for name, field in fields.items()
        if name not in mapping and field.default is no_default and field.default_factory is no_default
    ]
    if missing:
        raise ValueError(
            f"{where}: {cls.__name__} needs {', '.join(missing)}, got only {', '.join(mapping) or 'nothing'}"
        )
    values = {key: _plain(value) for key, value in mapping.items()}
    for name, hint in _hints(cls).items():
        if name in values and not _fits(values[name], hint):
            raise ValueError(
                f"{where}: {name} expected {_type_name(hint)}, got {type(values[name]).__name__} "
                f"{values[name]!r}"
            )
    return cls(**values)


def to_mapping(config: Any) -> dict[str, Any]:
    """The fields of a configuration dataclass as a plain dictionary, in field order."""
    return {field.name: getattr(config, field.name) for field in dataclasses.fields(config)}


_CREDENTIALS = re.compile(r"([A-Za-z][\w+.-]*://)[^/\s]*@")
"""The part of a URL before its host."""


def to_record(config: Any, *, published: bool = False) -> dict[str, Any]:
    """As `to_mapping`, for a file: URLs without credentials, and if `published` the last name of each
    path."""
    return {name: as_recorded(value, published) for name, value in to_mapping(config).items()}


def as_recorded(value: Any, published: bool = False) -> Any:
    """A value as `to_record` has it: strings and those in tuples and lists without credentials or, if
    `published`, folders."""
    if isinstance(value, tuple | list):
        return type(value)(as_recorded(one, published) for one in value)
    if not isinstance(value, str):
        return value
    url = _CREDENTIALS.sub(r"\1", value)
    url = re.sub(r"(://[^?#\s]*)[?#].*", r"\1", url) if "://" in url else url
    return os.path.basename(url.rstrip("/")) if published and os.path.isabs(url) else url


def without_credentials(text: str) -> str:
    """A text to be shown, with *** for the user and password of each URL in it."""
    return _CREDENTIALS.sub(r"\1***@", text)


def takes_fields(*configs: type, but: Collection[str] = ()) -> Callable[[F], F]:
    """Show the fields of configurations in the signature of a function that takes them as `**fields`, so that
    completion in a notebook and help() list them with defaults and bounds.

    but: fields that the function refuses
    """

    def shown(function: F) -> F:
        signature = inspect.signature(function)
        named = {
            name: parameter
            for name, parameter in signature.parameters.items()
            if parameter.kind is not parameter.VAR_KEYWORD
        }
        for field in (field for config in configs for field in dataclasses.fields(config)):
            if field.name not in named and field.name not in but:
                default = inspect.Parameter.empty if field.default is dataclasses.MISSING else field.default
                named[field.name] = inspect.Parameter(
                    field.name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=field.type
                )
        function.__signature__ = signature.replace(parameters=[*named.values()])  # type: ignore[attr-defined]
        return function

    return shown


def differing_fields(
    expected: Mapping[str, Any],
    got: Mapping[str, Any],
    defaults: Mapping[str, Any] | None = None,
    may_differ: Collection[str] = (),
) -> list[str]:
    """Where two runs, plans or records differ: "k expected 32, got 16" for each field.

    expected: the earlier one. Fields of mappings within have dotted names, "model.revision"
    defaults: what stands for a field that the earlier one, of an older release, does not have
    may_differ: fields that are not compared
    """
    known = {field: value for field, value in (defaults or {}).items() if field in got}
    earlier, now = (json.loads(json.dumps(fields)) for fields in (known | dict(expected), dict(got)))
    return [
        f"{field} expected {before!r}, got {value!r}"
        for field, before, value in _differences(earlier, now)
        if field not in may_differ
    ]


def _differences(
    expected: Mapping[str, Any], got: Mapping[str, Any], prefix: str = ""
) -> Iterator[tuple[str, Any, Any]]:
    """(dotted field, expected value, value) wherever two nested mappings differ."""
    for key in sorted(expected.keys() | got.keys()):
        before, value = expected.get(key), got.get(key)
        if isinstance(before, Mapping) and isinstance(value, Mapping):
            yield from _differences(before, value, f"{prefix}{key}.")
        elif before != value:
            yield prefix + key, before, value


def _plain(value: Any) -> Any:
    """Paths as strings and numpy's scalars as Python's, so that a configuration can be written as JSON."""
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    return value.item() if getattr(value, "ndim", None) == 0 else value


def _fits(value: Any, hint: Any) -> bool:
    """Whether the value is of the annotated type, as far as configurations use types; Literals are left to
    `check_fields`."""
    for type_ in _alternatives(hint):
        if type_ in (int, float):
            number = numbers.Integral if type_ is int else numbers.Real
            if isinstance(value, number) and not isinstance(value, bool):
                return True
        elif get_origin(type_) is tuple:
            if isinstance(value, tuple | list) and all(_fits(part, get_args(type_)[0]) for part in value):
                return True
        elif not isinstance(type_, type) or isinstance(value, type_):
            return True
    return False
