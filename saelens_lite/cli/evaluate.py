"""`saelens-lite evaluate`: an SAE's scores beside their controls."""

from __future__ import annotations

import dataclasses
import json
import shlex
from collections.abc import Sequence
from typing import Annotated

from saelens_lite.atomic import check_output, write_file
from saelens_lite.cli.flags import configured
from saelens_lite.cli.shared import device_named, model_for, model_of, print_next, with_short_names
from saelens_lite.config import AtLeast, Below


def run(argv: Sequence[str]) -> None:
    """fvu, l0, dead latents and the cost in cross-entropy, with their controls"""
    config = configured(EvaluateConfig, "evaluate", argv, leading=("store", "sae"))
    from saelens_lite.analyze.evaluation.evaluate import evaluate_sae
    from saelens_lite.sae.autoencoder import SparseAutoencoder
    from saelens_lite.store.reader import ActivationStore

    if config.output is not None:
        check_output(config.output)
    store, device = ActivationStore(config.store), device_named(config.device)
    sae, *seeds = (SparseAutoencoder.load(of, device=device) for of in (config.sae, *config.seeds))
    baseline = SparseAutoencoder.load(config.baseline, device=device) if config.baseline else None
    result = evaluate_sae(
        sae,
        store,
        model_for(config.model, device, store),
        baseline,
        seeds,
        held_out=config.held_out,
        held_out_fraction=config.held_out_fraction,
        max_tokens=config.max_tokens,
        windows_tokens=config.windows_tokens,
        hook_point=config.hook_point,
    )
    if config.output is not None:
        write_file(config.output, json.dumps(result.to_dict(), indent=1) + "\n")
    print(with_short_names(result.table(config.all)))
    if config.output is not None:
        print(f"numbers: {config.output}")
    model = config.model or model_of(config.store)
    if config.model is None and model.isprintable():
        print(f"for the cost in cross-entropy: --model {shlex.quote(model) if model else 'NAME'}")
    print_next("analyze", sae=config.sae, store=config.store, hook_point=config.hook_point, model=model)


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class EvaluateConfig:
    """Score an SAE on the held-out documents of a store, beside what gives the numbers their meaning. STORE
    SAE in front of the flags are --store and --sae."""

    sae: str
    """Folder of the SAE, ours or SAELens', or a hub repository."""

    store: str
    """Folder of the activation store."""

    baseline: str | None = None
    """Folder of an SAE to compare with: the one of the same run with --freeze-decoder."""

    seeds: tuple[str, ...] = ()
    """Folders of runs that differ from the SAE in their seed only. They show the seed noise of every number
    and whether the seeds found the same directions."""

    model: str | None = None
    """The model that was harvested, for what the reconstruction costs in cross-entropy; "demo" is the
    embedded one."""

    hook_point: str | None = None
    """Hook point of the store; None takes the one that the SAE was trained on."""

    held_out: bool = True
    """Score documents that training held out; otherwise rows that training has seen."""

    held_out_fraction: Annotated[float | None, AtLeast(0), Below(1)] = None
    """Share of documents that training held out; None takes what the SAE records."""

    max_tokens: Annotated[int | None, AtLeast(1)] = 100_000
    """Rows to score, and their tokens, of documents drawn by a hash; None for all."""

    windows_tokens: Annotated[tuple[int, ...], AtLeast(1)] = (10_000, 100_000, 1_000_000, 10_000_000)
    """A latent is dead if it was silent in the last tokens of the store: a column for each number of tokens,
    up to the first that is longer than the store."""

    all: bool = False
    """Print every number, including what other libraries call explained variance; the JSON always has
    them."""

    device: str | None = None
    """cuda, mps or cpu; None takes the best one here."""

    output: str | None = None
    """File that receives the numbers as JSON, with definitions; in the SAE's folder, `saelens-lite report`
    shows it."""
