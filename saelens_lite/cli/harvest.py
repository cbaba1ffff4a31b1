"""TODO clause of saelens_lite/cli/harvest.py."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from saelens_lite.cli.flags import configured
from saelens_lite.cli.shared import carry_out, is_first_process, print_next
from saelens_lite.config import to_mapping


def run(argv: Sequence[str]) -> int:
    """Text through a language model: its activations into a store"""
    from saelens_lite.harvest.config import HarvestConfig

    @dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
    class Harvest(HarvestConfig):
        """Run text through a model and keep the activations of some hook points in a store."""

        dry_run: bool = False
        """Look at everything that can be wrong, time the forward pass, and print rows, bytes, free space and
        duration; nothing is written."""

    given = to_mapping(configured(Harvest, "harvest", argv))
    dry_run = given.pop("dry_run")
    config = HarvestConfig(**given)
    result = carry_out(config, dry_run)
    if not is_first_process():
        return 0
    if dry_run:
        print(f"{config.store}: would take {result}")
        if not result.fits:
            print("that is more than there is room for: a harvest of this size is refused")
            return 1
        print_next("the same command without --dry-run")
        return 0
    store = result
    widths = ", ".join(f"{name} (width {store.d_model(name)})" for name in store.hook_points)
    print(f"{config.store}: {store.n_rows:,} rows of {widths} in {store.n_shards} shards")
    choice = f" --hook-point {store.hook_points[0]}" if len(store.hook_points) > 1 else ""
    print_next(f"saelens-lite train --store {config.store}{choice} --output runs/topk")
    return 0
