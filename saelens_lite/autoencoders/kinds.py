"""The class of each kind: KIND of the file that has the kind's name."""

from __future__ import annotations

from importlib import import_module
from typing import Any


def class_of(kind: str) -> type[Any]:
    """The subclass of Autoencoder of a `RelativeKind`."""
    return import_module(f".{kind}", __package__).KIND
