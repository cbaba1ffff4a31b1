"""`saelens-lite add-hook-points`: further hook points for a store, from its stored tokens."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Annotated

from saelens_lite.cli.flags import configured
from saelens_lite.cli.shared import device_named, is_first_process, model_for, print_next
from saelens_lite.config import PERMISSION


def run(argv: Sequence[str]) -> None:
    """Further hook points for a store, from its stored tokens"""
    from saelens_lite.harvest.more_hook_points import add_hook_points
    from saelens_lite.store.reader import ActivationStore

    config = configured(AddHookPointsConfig, "add-hook-points", argv)
    store = ActivationStore(config.store)
    model = None
    if config.model is not None:
        compute_dtype = store.plan.get("model", {}).get("compute_dtype")
        model = model_for(
            config.model, device_named(config.device), store, compute_dtype, config.trust_remote_code
        )
    store = add_hook_points(
        store,
        config.hook_points,
        model=model,
        device=config.device,
        trust_remote_code=config.trust_remote_code,
        progress=config.progress,
    )
    if is_first_process():
        print(f"{config.store}: {store.n_rows:,} rows each of {', '.join(store.hook_points)}")
        point = config.hook_points[0]
        print_next("train", store=config.store, hook_point=point, output=f"runs/{point}")


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class AddHookPointsConfig:
    """Harvest further hook points for a finished store, from the tokens that it holds."""

    store: str
    """Folder or URL of the activation store."""

    hook_points: tuple[str, ...]
    """Such as blocks.3.hook_mlp_out; those that are there already cost nothing."""

    model: str | None = None
    """The model that was harvested, where it is no longer found under the name that the store records; "demo"
    is the embedded one."""

    device: str | None = None
    """cuda, mps or cpu; None takes the best one here."""

    trust_remote_code: Annotated[bool, PERMISSION] = False
    """Allow the model's repository to run its own Python code on this machine."""

    progress: bool = True
    """Show a progress bar with tokens per second."""
