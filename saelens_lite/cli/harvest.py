"""`saelens-lite harvest`: text through a language model, its activations into a store."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from saelens_lite.cli.flags import configured
from saelens_lite.cli.shared import carry_out, common_mean, is_first_process, print_next
from saelens_lite.harvest.config import HarvestConfig


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class HarvestCommand(HarvestConfig):
    """Run text through a model and keep the activations of some hook points in a store."""

    dry_run: bool = False
    """Check everything that can be wrong, time the forward pass, and print rows, bytes, free space and
    duration. Nothing is written."""


def run(argv: Sequence[str]) -> int:
    """Text through a language model: its activations into a store"""
    command = configured(HarvestCommand, "harvest", argv)
    fields = {field.name: getattr(command, field.name) for field in dataclasses.fields(HarvestConfig)}
    result = carry_out(HarvestConfig(**fields), command.dry_run)
    if not is_first_process():
        return 0
    if command.dry_run:
        print(f"{command.store}: would take {result}")
        if not result.fits:
            print("that is more than there is room for: a harvest of this size is refused")
            return 1
        print("to harvest, give the same command without --dry-run")
        return 0
    widths = ", ".join(f"{name} (width {result.d_model(name)})" for name in result.hook_points)
    print(f"{command.store}: {result.n_rows:,} rows of {widths} in {result.n_shards} shards")
    for name in result.hook_points:
        print(f"{name}: {common_mean(result.mean_to_spread(name))}")
    choice = result.hook_points[0] if len(result.hook_points) > 1 else None
    print_next("train", store=command.store, hook_point=choice, output="runs/topk")
    return 0
