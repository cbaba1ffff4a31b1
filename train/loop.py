"""train_sae: an activation store in, a saved SAE out. Reads from top to bottom."""

from __future__ import annotations

import signal
from collections.abc import Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

from torch import nn

from saelens_lite import distributed
from saelens_lite.config import from_mapping, to_mapping
from saelens_lite.sae import SparseAutoencoder
from saelens_lite.store import ActivationStore

from .config import TrainConfig
from .presets import with_preset
from .rows import StoreRows
from .run import Run, device_of, writes
from .stop import stop_signals

Store = ActivationStore | str | Path


def train_sae(
    store: Store | Sequence[Store],
    config: TrainConfig | None = None,
    *,
    model: nn.Module | None = None,
    **fields: Any,
) -> SparseAutoencoder:
    """Train a sparse autoencoder on the rows of an activation store and save it.

        sae = train_sae("store/", kind="topk", k=32, expansion=16, output="runs/topk")

    Stopped or killed, the same call goes on at the last checkpoint and ends with the same SAE, bit for bit on a CPU with as
    many threads. So does one that differs only in where it reads, writes its progress and computes; see state.py.
    Called in all processes of a torchrun, each computes the gradients of its share of every batch; the first writes.

    store: an open store or its folder; or several, of which each batch has the shares that `store_weights` say
    config: a TrainConfig; `fields` replace single fields of it (or of the defaults), see TrainConfig for each. Without it
        `preset` may name a recipe of presets.py; `fields` replace single fields of that
    model: the language model that was harvested; evaluations then tell what the reconstruction costs it in cross-entropy,
        as held_out_delta_ce
    returns: the SAE, in the units of the store's activations, on the training device, in every process; also saved to
        config.output
    raises: ValueError for a wrong field, stores that do not go together, too few rows, a batch that the processes cannot
        share equally, or an output that holds a finished run, another or one that is running; CheckpointError if all its
        checkpoints are damaged or one cannot be written; FloatingPointError for a row that is not finite, with its shard,
        or a loss that is not, with the step: what was saved is kept then;
        KeyboardInterrupt / SystemExit after Ctrl-C / SIGTERM, once a checkpoint and the SAE as it stands were saved
    """
    stores = [store] if isinstance(store, Store) else list(store)
    config = _configured(config, fields, stores)
    stores = [store if isinstance(store, ActivationStore) else ActivationStore(store) for store in stores]
    with distributed.joined(device_of(config)):
        return _train(_run(stores, config, model))


def _run(stores: Sequence[ActivationStore], config: TrainConfig, model: nn.Module | None) -> Run:
    if config.end_to_end is None:
        return Run(StoreRows(stores, config, device_of(config)), config, model)
    if model is None:
        raise ValueError("end_to_end expected model=, the language model that was harvested (--eval-model), got none")
    from .endtoend import EndToEndRun, StoreContexts

    return EndToEndRun(StoreContexts(stores, config), config, model)


def _train(run: Run) -> SparseAutoencoder:
    with closing(run.rows), run.open(), stop_signals() as stopped:
        for step in _steps(run):
            run.after_step(run.step(run.rows.batch(step)))
            if stopped.anywhere() is not None:
                break
        if run.steps_done == run.n_steps:
            sae = run.finish()
        else:
            run.stop()
    if (number := stopped.anywhere()) is not None:
        raise KeyboardInterrupt if number == signal.SIGINT else SystemExit(128 + number)
    return sae


def _configured(config: TrainConfig | None, fields: dict[str, Any], stores: list[Store]) -> TrainConfig:
    if config is not None and fields.get("preset", config.preset) != config.preset:
        raise ValueError(
            f"train_sae expected a preset or a TrainConfig, got {fields['preset']!r} and one whose fields would all win "
            "over the preset's: give single fields beside the preset"
        )
    base = to_mapping(config) if config else {}
    paths = tuple(str(store.path if isinstance(store, ActivationStore) else store) for store in stores)
    store = paths[0] if len(paths) == 1 else paths
    return from_mapping(TrainConfig, with_preset({**base, **fields, "store": store}), "train_sae")


def _steps(run: Run) -> Iterator[int]:
    """The steps still to be taken, counted from 0, behind a progress bar."""
    from tqdm import tqdm

    first, n_steps = run.steps_done, run.n_steps
    bar = {"desc": f"train {run.config.kind}", "unit": "step", "disable": not (run.config.progress and writes())}
    return iter(tqdm(range(first, n_steps), initial=first, total=n_steps, **bar))
