"""The errors of saelens_lite: each says what was expected, what came, and the way out."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import TypeVar

E = TypeVar("E", bound=Exception)


class SaelensLiteError(Exception):
    """Base of every error that means something outside the caller's arguments is broken."""


class ShardError(SaelensLiteError):
    """An activation store cannot be read or written: a file is missing, short, altered or from another
    plan."""


class HookError(SaelensLiteError):
    """A model has no such hook point, or its structure is not one that hooks understand."""


class CheckpointError(SaelensLiteError):
    """An SAE folder or trainer state cannot be read or written."""


class FeatureIndexError(SaelensLiteError):
    """A feature index cannot be read: it is missing, unfinished, altered or of another version."""


def with_option(error: E, option: str) -> E:
    """The error, with the name of the argument that its text offers as the way out.

    option: such as "overwrite", where the text says overwrite=True; the command line says --overwrite instead
    """
    error.option = option  # type: ignore[attr-defined]
    return error


def nearest(name: str, options: Iterable[str]) -> str:
    """A hint such as " (did you mean 'k_aux'?)", or "" when nothing is close."""
    found = difflib.get_close_matches(name, list(options), n=1, cutoff=0.5)
    return f" (did you mean {found[0]!r}?)" if found else ""
