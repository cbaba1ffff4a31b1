"""`saelens-lite train --kind pca` and its like: a relative of the SAE from the rows of stores."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import get_args

from saelens_lite.autoencoders.fields import RelativeKind, fields_of_kinds
from saelens_lite.cli.flags import configured
from saelens_lite.cli.grouped_help import grouped_help
from saelens_lite.cli.shared import is_first_process
from saelens_lite.json_data import loads
from saelens_lite.train.autoencoders.config import AutoencoderConfig
from saelens_lite.train.autoencoders.single import train_autoencoder

GROUPS = {
    "data": ("store", "store_weights", "hook_point", "held_out_fraction", "max_norm_ratio", "scale_input"),
    "optimisation": (
        "lr", "warm_up_steps", "decay_fraction", "batch_size_rows", "n_steps", "n_epochs", "seed",
        "order_seed",
    ),
    "output and scores": (
        "output", "overwrite", "eval_every_steps", "eval_rows", "log_every_steps", "checkpoint_every_steps",
        "keep_checkpoints", "wandb_project", "progress",
    ),
    "machine": ("device", "matmul_precision", "buffer_rows", "prefetch"),
}  # fmt: skip


def named(argv: Sequence[str]) -> str | None:
    """The relative that --kind names, or a file of --config; None for an SAE's kind, or none."""
    given = [word for arg in argv for word in arg.split("=", 1)]
    after = dict(pairwise(given))
    kind = after.get("--kind")
    if kind is None and "--config" in after:
        with contextlib.suppress(OSError, ValueError, AttributeError):  # which `configured` says
            kind = loads(Path(after["--config"]).read_bytes()).get("kind")
    return kind if kind in get_args(RelativeKind) else None


def run(argv: Sequence[str], kind: str) -> None:
    """One relative of the kind."""
    if {"-h", "--help"} & {*argv} and "--config" not in argv:
        print(help_text(kind))
        raise SystemExit(0)  # as the other commands leave their help
    config = configured(AutoencoderConfig, "train", argv)
    if not config.store:
        raise ValueError(f"train --kind {kind} needs --store, the folder of an activation store")
    stores = [config.store] if isinstance(config.store, str) else list(config.store)
    trained = train_autoencoder(stores, config)
    if is_first_process():
        facts = trained.metadata
        print(f"{config.output}: {kind} autoencoder, code of {trained.code_size:,} on {trained.hook_point}")
        print(f"  {facts['steps']:,} steps, {facts['tokens']:,} rows")
        if facts["held_out_fvu"] is not None:
            dead = facts["held_out_dead_units"]
            print(f"  held-out documents: fvu {facts['held_out_fvu']:.4f}, dead units {dead:.1%}")
        print(f"  opens with saelens_lite.autoencoders.Autoencoder.load({config.output!r})")


def help_text(kind: str) -> str:
    """The help of a kind: its own fields first, those of others named at the end."""
    of_kinds = fields_of_kinds()
    every = [field.name for field in dataclasses.fields(AutoencoderConfig)]
    others = [name for name in every if name in of_kinds and kind not in of_kinds[name]]
    placed = {name for names in GROUPS.values() for name in names}
    own = [name for name in every if name not in placed and name not in others]
    left_out = {"Left out, since they are of other kinds": others}
    return grouped_help(AutoencoderConfig, "train", {f"of {kind}": own, **GROUPS}, left_out)
