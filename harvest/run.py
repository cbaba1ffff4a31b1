"""The harvest itself: text through the model, rows into shards, going on where an earlier run stopped."""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from saelens_lite import hooks
from saelens_lite.config import from_mapping
from saelens_lite.decoder import evaluation_mode
from saelens_lite.files import open_folder
from saelens_lite.store import ActivationStore

from .config import HarvestConfig
from .loop import make_shards
from .model import (
    drop_unused,
    load_model,
    load_tokenizer,
    model_facts,
    positions_limit,
    tokenizer_facts,
)
from .packing import special_ids, token_ids
from .plan import adopt_plan, documents_per_shard, make_plan
from .source import Source, as_names, open_given, open_named

logger = logging.getLogger(__name__)


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

    Interrupted at any moment, the same call goes on after the last finished shard and ends with the same bytes. On a
    finished store it does nothing.

    model: hub id, local folder, or a Hugging Face causal language model, which is not altered
    dataset: hub id (streamed); local txt, jsonl, json, csv or parquet file, compressed too; folder; a list of these; a
        `datasets` object; an iterable of strings, or of mappings with a text column
    hook_points: such as "blocks.3.hook_resid_post", or a module path; all share one forward pass
    store: folder of the store
    max_tokens: rows to harvest, met exactly unless the dataset ends before
    tokenizer: object, hub id or folder; None takes the model's own
    options: fields of HarvestConfig, such as context_length, batch_size_seqs, dtype, text_column, split

    raises: HookError if the model lacks a hook point (names those it has); ShardError if the folder holds another plan,
        is damaged, or cannot be written; ValueError for a dataset without documents, split or text column, a context
        longer than the model's positions, or a wrong option
    """
    named = isinstance(model, str | os.PathLike)
    if not named:
        for field in ("model_revision", "compute_dtype", "device"):
            if options.get(field):
                raise ValueError(f"{field} says how to load a model; this one is given as an object: leave {field} out")
    if isinstance(tokenizer, os.PathLike):
        tokenizer = os.fspath(tokenizer)
    dataset_names = as_names(dataset)
    settings = options | {
        "model": os.fspath(model) if named else type(model).__name__,
        "dataset": tuple(dataset_names or (type(dataset).__name__,)),
        "hook_points": (hook_points,) if isinstance(hook_points, str) else tuple(hook_points),
        "store": os.fspath(store),
        "max_tokens": max_tokens,
        "tokenizer": tokenizer if isinstance(tokenizer, str) else None,
    }
    config = from_mapping(HarvestConfig, settings, where="harvest_activations")
    if dataset_names is not None:
        source = _open_named(config, dataset_names)
    else:
        source = open_given(dataset, split=config.split, text_column=config.text_column)
    return _harvest(config, source, None if named else model, None if isinstance(tokenizer, str) else tokenizer)


def run_harvest(config: HarvestConfig) -> ActivationStore:
    """Carry out a harvest that is described by names alone, as on the command line; see `harvest_activations`."""
    return _harvest(config, _open_named(config, config.dataset), None, None)


def _open_named(config: HarvestConfig, names: Sequence[str]) -> Source:
    return open_named(
        names,
        split=config.split,
        text_column=config.text_column,
        text_unit=config.text_unit,
        config=config.dataset_config,
        revision=config.dataset_revision,
    )


def _harvest(config: HarvestConfig, source: Source, model: nn.Module | None, tokenizer: Any) -> ActivationStore:
    """Look at everything that can be wrong, agree with the store on the plan, then run."""
    ours = model is None
    if model is None:
        model = load_model(
            config.model,
            compute_dtype=config.compute_dtype,
            device=config.device,
            revision=config.model_revision,
            trust_remote_code=config.trust_remote_code,
        )
    if tokenizer is None:
        name = config.tokenizer or (config.model if ours else model.config.name_or_path)
        revision = config.model_revision if config.tokenizer is None else None
        tokenizer = load_tokenizer(name, revision=revision, trust_remote_code=config.trust_remote_code)
    limit = positions_limit(model)
    if limit is not None and config.context_length > limit:
        raise ValueError(
            f"context_length {config.context_length} is beyond the model's {limit} positions: choose at most {limit}"
        )
    points = [hooks.resolve(model, name) for name in config.hook_points]

    with evaluation_mode(model), torch.inference_mode():
        store = open_folder(config.store)
        plan = adopt_plan(_plan(config, model, tokenizer, source, points), store)
        if store.size("manifest.json") is not None:
            finished = ActivationStore(store)
            logger.info("%s is finished (%s rows): nothing to do", store, f"{finished.n_rows:,}")
            return finished
        if ours:
            drop_unused(model, points)
        make_shards(model, tokenizer, source, plan, store, config.progress)
    return ActivationStore(store)


def _plan(
    config: HarvestConfig, model: nn.Module, tokenizer: Any, source: Source, points: Sequence[hooks.HookPoint]
) -> dict[str, Any]:
    """Everything that determines the rows, found out from the objects at hand."""
    bos_id, eos_id = tokenizer.bos_token_id, tokenizer.eos_token_id
    separator_id = {"bos": eos_id if bos_id is None else bos_id, "eos": eos_id, "none": None}[config.separator]
    widths = _widths(model, config.hook_points)
    n_documents = config.documents_per_shard
    if n_documents is None:
        lengths = [len(ids) for ids in token_ids(tokenizer, source.first)]
        mean_tokens = sum(lengths) / len(lengths)
        batch_tokens = config.batch_size_seqs * config.context_length
        n_documents = documents_per_shard(mean_tokens, config.max_tokens, batch_tokens)
    return make_plan(
        {
            "model": model_facts(model),
            "tokenizer": tokenizer_facts(tokenizer),
            "hook_points": {
                name: {"module_path": point.module_path, "side": point.side, "d_model": widths[name]}
                for name, point in zip(config.hook_points, points, strict=True)
            },
            "dataset": source.facts,
            "context_length": config.context_length,
            "bos_id": bos_id,
            "separator_id": separator_id,
            "special_ids": [] if config.keep_special_tokens else special_ids(tokenizer),
            "batch_size_seqs": config.batch_size_seqs,
            "documents_per_shard": n_documents,
            "max_tokens": config.max_tokens,
            "dtype": config.dtype,
        }
    )


def _widths(model: nn.Module, names: Sequence[str]) -> dict[str, int]:
    """The width at each hook point, seen by running one token."""
    acts = hooks.run_to(model, names, input_ids=torch.zeros(1, 1, dtype=torch.int64, device=hooks.model_device(model)))
    return {name: acts[name].shape[-1] for name in names}
