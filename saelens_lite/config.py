"""Configuration dataclasses from and to plain mappings; unknown keys are errors with the nearest name."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, TypeVar

from saelens_lite.errors import nearest

T = TypeVar("T")


def from_mapping(cls: type[T], mapping: Mapping[str, Any], where: str = "configuration") -> T:
    """Build the dataclass `cls` from `mapping`.

    where: names the source in errors, e.g. a file's path
    raises: ValueError for a key that `cls` lacks (suggests the nearest) or a required one that is missing
    """
    fields = {f.name: f for f in dataclasses.fields(cls) if f.init}  # type: ignore[arg-type]
    for key in mapping:
        if key not in fields:
            raise ValueError(
                f"{where}: unknown key {key!r}{nearest(key, fields)}; {cls.__name__} has {', '.join(sorted(fields))}"
            )
    missing = [
        name
        for name, f in fields.items()
        if name not in mapping and f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING
    ]
    if missing:
        raise ValueError(f"{where}: {cls.__name__} needs {', '.join(missing)}, got only {', '.join(mapping) or 'nothing'}")
    return cls(**mapping)


def to_mapping(config: Any) -> dict[str, Any]:
    """The fields of a configuration dataclass as a plain dictionary, in field order."""
    return {f.name: getattr(config, f.name) for f in dataclasses.fields(config)}
