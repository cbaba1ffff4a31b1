"""train_sae: an activation store in, a saved SAE out. Reads from top to bottom."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

from torch import nn

from saelens_lite import distributed
from saelens_lite.config import from_mapping, takes_fields, to_mapping
from saelens_lite.misfits import names_misfits
from saelens_lite.sae.autoencoder import SparseAutoencoder
from saelens_lite.store.reader import ActivationStore

from .config import TrainConfig
from .kinds.choice import settled
from .presets import check_preset, with_preset
from .rows.protocol import Rows
from .runs.baseline import baseline_of
from .runs.identity import finished
from .runs.process import device_of, writes
from .runs.run import Run
from .runs.side_by_side import rows_for, train_runs

log = logging.getLogger(__name__)

Store = ActivationStore | str | Path


@takes_fields(TrainConfig)
@names_misfits
def train_sae(
    store: Store | Sequence[Store],
    config: TrainConfig | None = None,
    *,
    model: nn.Module | None = None,
    **fields: Any,
) -> SparseAutoencoder:
    """Train a sparse autoencoder on the rows of an activation store and save it.

        sae = train_sae("store/", kind="topk", k=32, expansion=16, output="runs/topk")

    After a stop or a kill, make the same call again: it resumes at the last checkpoint and ends with the same
    SAE, bit for bit on a CPU with as many threads. After the end, it returns that SAE. Where it reads,
    reports and computes may change. Under torchrun all processes make the call: each computes the gradients
    of its share of every batch, and of its shard of the latents where `latent_shards` divides them; the first
    writes.

    store: an open store or its folder; or several, of which each batch has the shares that `store_weights`
        say
    config: a TrainConfig; `fields` replace single fields of it (or of the defaults), see TrainConfig for
        each. Without it `preset` may name a recipe of presets.py; `fields` replace single fields of that
    model: the language model that was harvested; evaluations then tell what the reconstruction costs it in
        cross-entropy, as held_out_delta_ce
    returns: the SAE, in the units of the store's activations, on the training device, in every process; also
        saved to config.output. Where latents are divided, it is on the CPU of the first process and has no
        weights ("meta") in the others
    raises: ValueError for a wrong field, stores that do not go together, too few rows, a batch that the
        processes cannot share equally, or an output that holds another run or one that is
        running; CheckpointError if all its checkpoints are damaged or one cannot be written;
        FloatingPointError for a row that is not finite, with its shard,
        or a loss that is not, with the step: what was saved is kept then;
        KeyboardInterrupt / SystemExit after Ctrl-C / SIGTERM, once a checkpoint and the SAE as it stands were
        saved
    """
    stores = [store] if isinstance(store, Store) else list(store)
    config = settled(configured(config, fields, stores))
    stores = opened(stores)
    with distributed.joined(device_of(config), config.latent_shards):
        rows = rows_for(stores, config)
        sae = _finished(rows, config)
        runs = [] if sae is not None else [Run(rows, config, model)]
        if config.baseline and finished(rows, baseline_of(config)) is None:
            runs.insert(0, Run(rows, baseline_of(config), model))
        outcomes = train_runs(runs) if runs else []
    for run, outcome in zip(reversed(runs), reversed(outcomes), strict=True):
        if isinstance(outcome, FloatingPointError):
            raise (
                outcome
                if run.config is config
                else FloatingPointError(f"the baseline {run.output}: {outcome}")
            ) from outcome
    return outcomes[-1] if sae is None else sae


def train_on(rows: Rows, config: TrainConfig) -> SparseAutoencoder:
    """`train_sae` on rows that need not be a store's, in one process; they are closed at the end."""
    config = settled(config)
    with closing(rows), distributed.joined(device_of(config), config.latent_shards):
        if (sae := _finished(rows, config)) is not None:
            return sae
        [outcome] = train_runs([Run(rows, config)])
    if isinstance(outcome, FloatingPointError):
        raise outcome
    return outcome


def _finished(rows: Rows, config: TrainConfig) -> SparseAutoencoder | None:
    """As `finished`, with a line that says so."""
    sae = finished(rows, config)
    if sae is not None and writes():
        log.info("finished already: %s", config.output)
    return sae


def configured(config: TrainConfig | None, fields: Mapping[str, Any], stores: Sequence[Store]) -> TrainConfig:
    """The configuration with single fields replaced, over those of its preset, and the stores' folders.

    raises: ValueError for a field that there is not or of another type, or a preset beside a configuration
        that is whole
    """
    if fields.get("preset") is not None:
        check_preset(fields["preset"])
    if config is not None and fields.get("preset", config.preset) != config.preset:
        raise ValueError(
            f"train_sae expected a preset or a TrainConfig, got {fields['preset']!r} and one whose fields "
            "would all win over the preset's: give single fields beside the preset"
        )
    base = to_mapping(config) if config else {}
    paths = tuple(str(store.path if isinstance(store, ActivationStore) else store) for store in stores)
    store = paths[0] if len(paths) == 1 else paths
    return from_mapping(TrainConfig, with_preset({**base, **fields, "store": store}), "train_sae")


def opened(stores: Sequence[Store]) -> list[ActivationStore]:
    """Those given as folders too."""
    return [store if isinstance(store, ActivationStore) else ActivationStore(store) for store in stores]
