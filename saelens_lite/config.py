"""Configuration dataclasses from and to plain mappings; unknown keys are errors with the nearest name."""

from __future__ import annotations

import dataclasses
import json
import numbers
import os
import types
import typing
from collections.abc import Mapping
from typing import Any, TypeVar

from saelens_lite.errors import nearest

T = TypeVar("T")


def from_mapping(cls: type[T], mapping: Mapping[str, Any], where: str = "configuration") -> T:
    """Build the dataclass `cls` from `mapping`.

    where: names the source in errors, e.g. a file's path
    raises: ValueError for a key that `cls` lacks (suggests the nearest), a required one that is missing, or a
        value of another type than the field's; paths become strings
    """
    fields = {f.name: f for f in dataclasses.fields(cls) if f.init}  # type: ignore[arg-type]
    for key in mapping:
        if key not in fields:
            raise ValueError(
                f"{where}: unknown key {key!r}{nearest(key, fields)}; {cls.__name__} has "
                f"{', '.join(sorted(fields))}"
            )
    missing = [
        name
        for name, f in fields.items()
        if name not in mapping
        and f.default is dataclasses.MISSING
        and f.default_factory is dataclasses.MISSING
    ]
    if missing:
        raise ValueError(
            f"{where}: {cls.__name__} needs {', '.join(missing)}, got only {', '.join(mapping) or 'nothing'}"
        )
    values = {key: _plain(value) for key, value in mapping.items()}
    for name, hint in typing.get_type_hints(cls).items():
        if name in values and not _fits(values[name], hint):
            expected = getattr(fields[name].type, "__name__", fields[name].type)
            raise ValueError(
                f"{where}: {name} expected {expected}, got {type(values[name]).__name__} {values[name]!r}"
            )
    return cls(**values)


def _plain(value: Any) -> Any:
    """Paths as strings and numpy's scalars as Python's, so that a configuration can be written as JSON."""
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    return value.item() if getattr(value, "ndim", None) == 0 else value


def _fits(value: Any, hint: Any) -> bool:
    """Is the value of the hinted type, as far as configurations use types? Literals are left to the class's
    own check."""
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        return any(_fits(value, part) for part in typing.get_args(hint))
    if hint in (int, float):
        return isinstance(value, numbers.Integral if hint is int else numbers.Real) and not isinstance(
            value, bool
        )
    return not isinstance(hint, type) or isinstance(value, hint)


def to_mapping(config: Any) -> dict[str, Any]:
    """The fields of a configuration dataclass as a plain dictionary, in field order."""
    return {f.name: getattr(config, f.name) for f in dataclasses.fields(config)}


def differing_fields(
    run: Mapping[str, Any], earlier: Mapping[str, Any], defaults: Mapping[str, Any]
) -> list[str]:
    """Where a run is another than an earlier one: "k expected 32, got 16" for each field, expected being the
    earlier's.

    defaults: what stands for a field that the earlier run, of an older release, did not have
    """
    run = json.loads(json.dumps(run))
    differing = []
    for name in sorted(run.keys() | earlier.keys()):
        expected, got = earlier.get(name, defaults.get(name)), run.get(name)
        if expected != got:
            differing.append(f"{name} expected {expected!r}, got {got!r}")
    return differing
