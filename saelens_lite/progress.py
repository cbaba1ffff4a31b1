"""A progress bar on stderr, where that is a terminal; silent elsewhere."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TypeVar

T = TypeVar("T")


def bar(items: Iterable[T], what: str, unit: str, total: int | None = None) -> Iterable[T]:
    """The items, counted by a bar while they are taken. It vanishes at the end.

    what: stands before the bar; unit: of an item, in the singular; total: where len(items) does not tell
    """
    from tqdm import tqdm

    return tqdm(items, desc=what, unit=f" {unit}", total=total, disable=None, leave=False)
