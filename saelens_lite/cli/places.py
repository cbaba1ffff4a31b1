"""What each command takes by place: the words that stand behind no flag, in this order."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Collection, Sequence
from typing import Any, get_args, get_origin, get_type_hints

PLACES: dict[str, tuple[str, ...]] = {
    "harvest": ("model", "dataset"),
    "add-hook-points": ("store", "hook_points"),
    "verify": ("store",),
    "train": ("store",),
    "refit": ("store", "sae"),
    "evaluate": ("store", "sae"),
    "analyze": ("store", "sae"),
    "search": ("index",),
    "export": ("index",),
    "labels": ("index",),
    "browse": ("index",),
    "import": ("source", "index"),
    "probe": ("sae",),
    "diff": ("sae",),
    "steer": ("sae",),
    "study": ("sae",),
    "diff-models": ("base_store", "tuned_store"),
    "report": ("runs",),
    "convert": ("source", "output"),
    "saes": ("release",),
    "push": ("run", "repo"),
    "pull": ("repo", "folder"),
}
"""Fields by command; each has a flag of its name as well."""


def with_places(cls: Any, command: str) -> str:
    """The command with its places, as in `saelens-lite analyze [STORE] SAE`; [] may be left out."""
    optional = {field.name for field in dataclasses.fields(cls) if field.default is not dataclasses.MISSING}
    shown = [f"[{place}]" if place in optional else place for place in PLACES.get(command, ())]
    return " ".join(["saelens-lite", command, *(place.upper() for place in shown)])


def flags_for_places(cls: Any, command: str, args: Sequence[str], settled: Collection[str]) -> list[str]:
    """STORE SAE --n 3 as --store STORE --sae SAE --n 3.

    A word behind a flag belongs to it as far as the flag takes words. The others are of the places that no
    flag names, in their order; where they are fewer, settled places are left out first, and a last place that
    takes several takes the rest.

    settled: fields with a value anyway, by default or from a file
    raises: ValueError for more words than places
    """
    places = PLACES.get(command)
    if places is None:
        return list(args)
    hints = get_type_hints(cls)
    flags: list[str] = []
    words: list[str] = []
    named: set[str] = set()
    to_take: float = 0
    for arg in args:
        if arg.startswith("--") or arg == "-h":
            name = arg.removeprefix("--").partition("=")[0].replace("-", "_")
            known = name in hints or name.removeprefix("no_") in hints or arg in ("-h", "--help")
            flags.append(arg)
            named.add(name)
            # what follows a flag that there is not is left to it, since the flag is the mistake
            to_take = 0 if "=" in arg else n_words(hints.get(name, bool)) if known else math.inf
        elif to_take:
            flags.append(arg)
            to_take -= 1
        else:
            words.append(arg)
    free = [place for place in places if place not in named]
    for place in [place for place in free if place in settled][: max(len(free) - len(words), 0)]:
        free.remove(place)
    by_place = dict(zip(free, ([word] for word in words), strict=False))
    if len(words) > len(free):
        if not free or n_words(hints[free[-1]]) < math.inf:
            given = " and ".join(f"--{place.replace('_', '-')}" for place in places if place in named)
            expected = f"expected {' '.join(free).upper() or 'no word'} before the flags"
            expected += f" beside {given}" if given else ""
            raise ValueError(f"{expected}, got {' '.join(words)}")
        by_place[free[-1]] = words[len(free) - 1 :]
    found = [part for place, given in by_place.items() for part in (f"--{place.replace('_', '-')}", *given)]
    return [*found, *flags]


def n_words(hint: Any) -> float:
    """How many words a flag of this type takes; inf for all before the next flag."""
    if hint is bool:
        return 0
    if get_origin(hint) is tuple:
        return math.inf if Ellipsis in get_args(hint) else len(get_args(hint))
    return max((n_words(arg) for arg in get_args(hint) if get_origin(arg) is tuple), default=1)
