"""Names of places in a model, and which two names mean one place.

`blocks.3.hook_resid_post` is what the module `model.layers.3` gives. Stores, and SAEs that were trained here,
record the module path beside the name. SAELens records the one name only: then a path of a block, whose last
part is the only number in it, stands for the stream after that block.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

CANONICAL = {
    "hook_resid_pre": "resid_pre",
    "attn.hook_z": "z",
    "hook_attn_out": "attn_out",
    "mlp.hook_in": "mlp_in",
    "hook_mlp_out": "mlp_out",
    "hook_resid_post": "resid_post",
}
"""What follows "blocks.{i}." in the name of a hook point, by depth → its kind."""

OF_INPUTS = ("resid_pre", "z", "mlp_in")
"""Kinds that are what a module takes; the others are what one gives."""

_TOWERS = re.compile(r"vision|visual|image|audio|speech|encoder")


@dataclass(frozen=True, slots=True)
class Place:
    """A place as it was recorded.

    module_path: of the module whose input or output it is; "" where it is not recorded
    """

    name: str
    module_path: str = ""


def canonical(name: str) -> tuple[int, str] | None:
    """The block and the kind of a canonical name; None for a module path."""
    found = re.fullmatch(r"blocks\.(\d+)\.(.+)", name)
    return (int(found[1]), CANONICAL[found[2]]) if found and found[2] in CANONICAL else None


def same_place(one: Place, other: Place) -> bool:
    """Whether two names mean the same activations of one model, as far as what is recorded tells."""
    if one.name == other.name:
        return True
    for point, module in ((one, other), (other, one)):
        if (at := canonical(point.name)) is None or canonical(module.name) is not None:
            continue
        if point.module_path:
            return point.module_path == module.name and at[1] not in OF_INPUTS
        return at[1] == "resid_post" and _block_of(module.name) == at[0]
    return False


def place_among(place: Place, hook_points: Mapping[str, Mapping[str, Any]]) -> str | None:
    """The name under which a plan's hook points hold a place; None where they do not."""
    if place.name in hook_points:
        return place.name
    recorded = (Place(name, facts.get("module_path", "")) for name, facts in hook_points.items())
    return next((other.name for other in recorded if same_place(place, other)), None)


def _block_of(module_path: str) -> int | None:
    """The block that a module path names, where its last part is its only number."""
    *around, last = module_path.split(".")
    numbered = any(part.isdigit() for part in around)
    return int(last) if last.isdigit() and not numbered and not _TOWERS.search(module_path) else None
