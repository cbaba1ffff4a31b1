"""`saelens-lite train --target-hook-point …`: a transcoder from the rows of a store."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Sequence
from pathlib import Path

from saelens_lite.cli.flags import configured
from saelens_lite.cli.grouped_help import grouped_help
from saelens_lite.cli.shared import common_mean, is_first_process
from saelens_lite.cli.train_relative import GROUPS
from saelens_lite.config import to_mapping
from saelens_lite.json_data import loads
from saelens_lite.sae.transcoder import Transcoder
from saelens_lite.train.transcoders import LEFT_OUT, TranscoderConfig, train_transcoder

_OWN = ("--target-hook-point", "--target_hook_point")


def wanted(argv: Sequence[str]) -> bool:
    """Whether the target of a transcoder is named, or stands in a file of --config."""
    words = [word for arg in argv for word in arg.split("=", 1)]
    if any(flag in words for flag in _OWN):
        return True
    if "--config" in words[:-1]:
        with contextlib.suppress(OSError, ValueError, AttributeError):  # which `configured` says
            file = Path(words[words.index("--config") + 1])
            return loads(file.read_bytes()).get("target_hook_point") is not None
    return False


def run(argv: Sequence[str]) -> None:
    """One transcoder."""
    if {"-h", "--help"} & {*argv} and "--config" not in argv:
        print(help_text())
        raise SystemExit(0)  # as the other commands leave their help
    config = configured(TranscoderConfig, "train", argv)
    if not isinstance(config.store, str) or not config.store or config.hook_point is None:
        raise ValueError(
            "train --target-hook-point needs --store, the folder of one store that holds both places, and "
            "--hook-point, the place that is read, such as blocks.3.mlp.hook_in"
        )
    fields = to_mapping(dataclasses.replace(config, kind=config.kind or "batchtopk"))
    for name in (*LEFT_OUT, "latent_shards"):  # which stand at what they must be
        del fields[name]
    print_trained(train_transcoder(fields.pop("store"), **fields), config.output)


def help_text() -> str:
    """The help of a transcoder: its own flags first, those that it does not take at the end."""
    own = ["hook_point", "target_hook_point", "skip"]
    others = [*LEFT_OUT, "latent_shards"]
    shared = {
        title: [name for name in names if name not in (*own, *others)] for title, names in GROUPS.items()
    }
    placed = {*own, *others, *(name for names in shared.values() for name in names)}
    latents = [field.name for field in dataclasses.fields(TranscoderConfig) if field.name not in placed]
    groups = {"of a transcoder": own, "latents, loss and optimiser": latents, **shared}
    left_out = {"Left out, since transcoders do not take them": others}
    return grouped_help(TranscoderConfig, "train", groups, left_out)


def print_trained(transcoder: Transcoder, output: str) -> None:
    """What a training made."""
    if not is_first_process():
        return
    config, target, facts = transcoder.config, transcoder.target, transcoder.config.metadata["saelens_lite"]
    what = "skip-transcoder" if target.skip else "transcoder"
    places = f"{config.hook_point} → {target.hook_point}"
    print(f"{output}: {config.kind} {what} of {config.d_sae:,} latents, {places}")
    print(f"  {facts['steps']:,} steps, {facts['tokens']:,} rows, peak lr {facts['lr']:.2g}")
    print(f"  input: {common_mean(facts['mean_to_spread'])}")
    print(f"  target: {common_mean(facts['target_mean_to_spread'])}")
    if facts["held_out_fvu"] is not None:
        print(
            f"  held-out documents: fvu of the target {facts['held_out_fvu']:.4f}, "
            f"l0 {facts['held_out_l0']:.1f}"
        )
    print(f"  opens with saelens_lite.sae.Transcoder.load({output!r})")
