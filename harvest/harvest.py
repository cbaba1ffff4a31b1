"""The harvest: checks what can be wrong, agrees with the store on the plan, runs text through the model."""

from __future__ import annotations

import dataclasses
import logging
import os
from collections.abc import Sequence
from typing import Any

from torch import nn

from saelens_lite.config import takes_fields, to_record
from saelens_lite.distributed import rank
from saelens_lite.misfits import names_misfits
from saelens_lite.store.folder import open_folder
from saelens_lite.store.layout import is_finished
from saelens_lite.store.reader import ActivationStore

from .config import HarvestConfig
from .estimate import Estimate, check_fits, forward_seconds
from .prepare import Request, prepare, requested, source_of_names
from .shards.model import compile_blocks, drop_unused
from .shards.plan import adopt_plan, check_plan
from .shards.write import make_shards

logger = logging.getLogger(__name__)


@takes_fields(HarvestConfig)
@names_misfits
def harvest_activations(
    model: str | nn.Module,
    dataset: Any,
    hook_points: str | Sequence[str],
    store: str | os.PathLike[str],
    *,
    max_tokens: int,
    tokenizer: Any = None,
    **options: Any,
) -> ActivationStore:
    """Run text through a model and keep the activations of some hook points in a store on disk.

    If it is interrupted, make the same call again: it resumes after the last finished shard and ends with the
    same bytes. On a finished store it does nothing.

    model: hub id, local folder, or a Hugging Face causal language model, which is not altered
    dataset: hub id (streamed); local txt, jsonl, json, csv or parquet file, compressed too; folder; a list of
        these; a `datasets` object; an iterable of documents, or of mappings with a column of them. A document
        is a text, a chat (messages with role and content) or a list of token ids. With `dataset_weights`, a
        list of any of these
    hook_points: such as "blocks.3.hook_resid_post", or a module path; all share one forward pass
    store: folder of the store, or any URL that fsspec opens
    max_tokens: rows to harvest, met exactly unless the dataset is shorter
    tokenizer: object, hub id or folder; None takes the model's own
    options: fields of HarvestConfig, such as context_length, batch_size_seqs, dtype, text_column, split

    raises: HookError if the model lacks a hook point (names those it has); ShardError if the folder holds
        another plan, is damaged, or cannot be written; ValueError for a dataset without documents, split or
        text column, a context longer than the model's positions, or a wrong option
    """
    return _harvest(requested(model, dataset, hook_points, store, max_tokens, tokenizer, options))


def run_harvest(config: HarvestConfig) -> ActivationStore:
    """Harvest what is described by names alone, as on the command line; see `harvest_activations`."""
    return _harvest(Request(config, source_of_names(config, config.dataset)))


@takes_fields(HarvestConfig)
@names_misfits
def estimate_harvest(
    model: str | nn.Module,
    dataset: Any,
    hook_points: str | Sequence[str],
    store: str | os.PathLike[str],
    *,
    max_tokens: int,
    tokenizer: Any = None,
    **options: Any,
) -> Estimate:
    """What the same call of `harvest_activations` would still take; nothing is written.

    It checks all that can be wrong and times the forward pass on one batch.
    """
    return _estimate(requested(model, dataset, hook_points, store, max_tokens, tokenizer, options))


def estimate_run(config: HarvestConfig) -> Estimate:
    """What `run_harvest` would still take; see `estimate_harvest`."""
    return _estimate(Request(config, source_of_names(config, config.dataset)))


def _estimate(request: Request) -> Estimate:
    with prepare(request) as prepared:
        check_plan(prepared.plan, open_folder(request.config.store))
        found = prepared.estimate()
        if prepared.ours:
            drop_unused(prepared.model, prepared.points)
        seconds = forward_seconds(
            prepared.model, list(prepared.plan["hook_points"]), prepared.plan, found.rows
        )
        return dataclasses.replace(found, seconds=seconds)


def _harvest(request: Request) -> ActivationStore:
    store = open_folder(request.config.store)
    with prepare(request) as prepared:
        if rank() == 0:
            adopt_plan(prepared.plan, store)
        if is_finished(store):
            finished = ActivationStore(store)
            logger.info("%s is finished (%s rows): nothing to do", store, f"{finished.n_rows:,}")
            return finished
        if prepared.config.check_space:
            check_fits(prepared.estimate(), store)
        if prepared.ours:
            drop_unused(prepared.model, prepared.points)
            if prepared.config.compile:
                compile_blocks(prepared.model, prepared.points)
        settings = to_record(request.config) if request.by_names else None
        progress = prepared.config.progress and rank() == 0
        make_shards(
            prepared.model,
            prepared.tokenizer,
            prepared.source,
            prepared.plan,
            store,
            progress=progress,
            settings=settings,
        )
    return ActivationStore(store)
