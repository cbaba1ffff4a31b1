"""`saelens-lite refit`: what the L1 penalty shrank in a relu SAE, fitted again, while every firing stays."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

from saelens_lite.atomic import check_output
from saelens_lite.cli.flags import configured
from saelens_lite.cli.shared import device_named, model_for, model_of, print_next
from saelens_lite.config import AtLeast, Below


def run(argv: Sequence[str]) -> None:
    """A relu SAE's magnitudes and decoder, fitted again without the penalty that shrank them"""
    config = configured(RefitConfig, "refit", argv)
    from saelens_lite.sae.autoencoder import SparseAutoencoder
    from saelens_lite.sae.folder import CFG, load_log_sparsity
    from saelens_lite.store.reader import ActivationStore
    from saelens_lite.train.refit import check_kind, refit_sae

    check_output(config.output, folder=True)
    if (Path(config.output) / CFG).exists():
        raise ValueError(f"refit expected a new folder as --output, {config.output} holds {CFG}")
    store, device = ActivationStore(config.store), device_named(config.device)
    sae = SparseAutoencoder.load(config.sae, device=device)
    check_kind(sae)
    refitted = refit_sae(
        sae,
        store,
        decoder=config.decoder,
        model=model_for(config.model, device, store),
        n_steps=config.n_steps,
        batch_size_rows=config.batch_size_rows,
        hook_point=config.hook_point,
        held_out_fraction=config.held_out_fraction,
        seed=config.seed,
        progress=config.progress,
    )
    refitted.save(config.output, load_log_sparsity(config.sae))  # firings, and so their rates, are as before
    print_refit(config.output, refitted.config.metadata["saelens_lite"]["refit"])
    print_next(
        "evaluate", sae=config.output, store=config.store, model=config.model or model_of(config.store)
    )


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class RefitConfig:
    """Fit a relu SAE again, ours or SAELens' standard, on the rows of a store: its firings stay, and what the
    L1 penalty made too weak is corrected."""

    sae: str
    """Folder of the SAE, ours or SAELens', or a hub repository. It stays as it is."""

    store: str
    """Folder of a store with activations of the place that the SAE was trained on."""

    output: str
    """New folder that receives the SAE, which opens in SAELens too."""

    model: str | None = None
    """The model that was harvested, for what the reconstruction costs in cross-entropy before and after;
    "demo" is the embedded one."""

    decoder: bool = True
    """Fit decoder rows. Without it every latent keeps its direction, and only magnitudes and b_dec are
    fitted."""

    n_steps: Annotated[int, AtLeast(1)] = 400
    """Optimiser steps. More come nearer to least squares, and take longer."""

    batch_size_rows: Annotated[int, AtLeast(1)] = 4096
    """Rows (tokens) a step."""

    hook_point: str | None = None
    """Hook point of the store; None takes the one that the SAE was trained on."""

    held_out_fraction: Annotated[float | None, AtLeast(0), Below(1)] = None
    """Share of documents that are scored on and not fitted to; None takes what the SAE records, else 0.05."""

    seed: int = 0
    """Of the row order."""

    device: str | None = None
    """cuda, mps or cpu; None takes the best one here."""

    progress: bool = True
    """Show a progress bar."""


def print_refit(output: str, record: Mapping[str, Any]) -> None:
    """What a refit did, from its record."""
    before, after = record["before"], record["after"]
    print(f"{output}: {record['steps']:,} steps, {record['rows']:,} rows")
    if after["held_out_fvu"] is not None:
        scores = [f"fvu {before['held_out_fvu']:.4f} → {after['held_out_fvu']:.4f}"]
        if "held_out_delta_ce" in after:
            ce = f"{before['held_out_delta_ce']:.4f} → {after['held_out_delta_ce']:.4f}"
            scores.append(f"ΔCE {ce} nats")
        print(f"  held-out documents: {', '.join(scores)}; l0 {after['held_out_l0']:.1f}")
        print(f"  firings there: {record['firings']:,}, of which {record['changed_firings']} changed")
    if "cosine_mean" in record:
        print(
            f"  {record['latents']:,} latents fired: magnitudes times {record['magnitude_median']:.2f} in "
            f"the middle, decoder rows at cosine {record['cosine_mean']:.3f} on average to what they were, "
            f"{record['cosine_least']:.3f} at least"
        )
