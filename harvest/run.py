"""The harvest itself: text through the model, rows into shards, going on where an earlier run stopped."""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import json
import logging
import os
import platform
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from saelens_lite import hooks
from saelens_lite.config import from_mapping
from saelens_lite.errors import ShardError
from saelens_lite.shards import (
    STORE_DTYPES,
    RowWriter,
    appearing,
    commit_path,
    data_path,
    encode_json,
    encode_tokens,
    tokens_path,
    write_file,
    write_manifest,
)
from saelens_lite.store import ActivationStore, check_size, read_json

from .ahead import ahead
from .config import HarvestConfig
from .model import (
    drop_unused,
    evaluating,
    load_model,
    load_tokenizer,
    model_facts,
    positions_limit,
    tokenizer_facts,
)
from .packing import PackedShard, packed_shards, special_ids, token_ids
from .plan import adopt_plan, documents_per_shard, make_plan
from .source import Source, open_source

try:
    import fcntl
except ImportError:  # Windows has no flock; there, nothing keeps two harvests apart
    fcntl = None  # type: ignore[assignment]

logger = logging.getLogger(__name__)

_SHARDS_AHEAD = 2


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
        for field in ("model_revision", "compute_dtype", "device", "trust_remote_code"):
            if options.get(field):
                raise ValueError(
                    f"{field} says how to load a model; this one is given as an object: leave {field} out"
                )
    settings = options | {
        "model": str(model) if named else type(model).__name__,
        "dataset": (dataset,) if isinstance(dataset, str) else (type(dataset).__name__,),
        "hook_points": (hook_points,) if isinstance(hook_points, str) else tuple(hook_points),
        "store": os.fspath(store),
        "max_tokens": max_tokens,
        "tokenizer": tokenizer if isinstance(tokenizer, str) else None,
    }
    config = from_mapping(HarvestConfig, settings, where="harvest_activations")
    given_tokenizer = None if isinstance(tokenizer, str) else tokenizer
    return _harvest(config, dataset, None if named else model, given_tokenizer)


def run_harvest(config: HarvestConfig) -> ActivationStore:
    """Carry out a harvest that is described by names alone, as on the command line; see `harvest_activations`."""
    return _harvest(config, list(config.dataset), None, None)


def _harvest(config: HarvestConfig, dataset: Any, model: nn.Module | None, tokenizer: Any) -> ActivationStore:
    """Look at everything that can be wrong, agree with the store on the plan, then run."""
    source = open_source(
        dataset,
        split=config.split,
        text_column=config.text_column,
        text_unit=config.text_unit,
        config=config.dataset_config,
        revision=config.dataset_revision,
    )
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
        tokenizer = load_tokenizer(
            name, revision=config.model_revision, trust_remote_code=config.trust_remote_code
        )
    limit = positions_limit(model)
    if limit is not None and config.context_length > limit:
        raise ValueError(
            f"context_length {config.context_length} is beyond the model's {limit} positions: choose at most {limit}"
        )
    points = [hooks.resolve(model, name) for name in config.hook_points]

    with evaluating(model), torch.inference_mode():
        plan = _plan(config, model, tokenizer, source, points)
        store = Path(config.store)
        plan = adopt_plan(plan, store)
        if (store / "manifest.json").exists():
            finished = ActivationStore(store)
            logger.info("%s is finished (%s rows): nothing to do", store, f"{finished.n_rows:,}")
            return finished
        if ours:
            drop_unused(model, points)
        with _only_writer(store):
            _run(model, tokenizer, source, plan, store, config.progress)
    return ActivationStore(store)


def _plan(
    config: HarvestConfig, model: nn.Module, tokenizer: Any, source: Source, points: Sequence[hooks.HookPoint]
) -> dict[str, Any]:
    """Everything that determines the rows, found out from the objects at hand."""
    bos_id, eos_id = tokenizer.bos_token_id, tokenizer.eos_token_id
    separator_id = {"bos": eos_id if bos_id is None else bos_id, "eos": eos_id, "none": None}[
        config.separator
    ]
    widths = _widths(model, config.hook_points)
    n_documents = config.documents_per_shard
    if n_documents is None:
        lengths = [len(ids) for ids in token_ids(tokenizer, source.first)]
        n_documents = documents_per_shard(sum(lengths) / len(lengths), config.max_tokens)
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
    acts = hooks.run_to(
        model, names, input_ids=torch.zeros(1, 1, dtype=torch.int64, device=hooks.model_device(model))
    )
    return {name: acts[name].shape[-1] for name in names}


def _run(
    model: nn.Module, tokenizer: Any, source: Source, plan: dict[str, Any], store: Path, progress: bool
) -> None:
    """Make the shards that the store lacks, in order, up to max_tokens rows or the dataset's end; then seal it."""
    from tqdm.auto import tqdm

    finished = _finished_shards(store, plan)
    max_tokens = plan["max_tokens"]
    n_rows, ended_by = 0, "dataset"
    _log_start(store, model, len(finished))
    todo = packed_shards(source, tokenizer, plan, finished, model.get_input_embeddings().num_embeddings)
    bar = tqdm(total=max_tokens, unit=" tokens", unit_scale=True, disable=not progress, desc="harvest")
    with bar, ahead(todo, _SHARDS_AHEAD) as shards:
        for index in itertools.count():
            began = time.perf_counter()
            if index in finished:
                record = finished[index]
                bar.initial += record["rows"]
                bar.update(min(record["rows"], max_tokens - bar.n))
            else:
                shard = next(shards, None)
                if shard is None:
                    break
                assert shard.index == index
                record = _write_shard(
                    model, shard, plan, store, lambda n: bar.update(min(n, max_tokens - bar.n))
                )
                _log(
                    store,
                    event="shard",
                    shard=index,
                    rows=record["rows"],
                    seconds=round(time.perf_counter() - began, 3),
                )
            n_rows += record["rows"]
            if n_rows >= max_tokens:
                ended_by = "max_tokens"
                break
    if n_rows == 0:
        raise ValueError(
            f"the {index} shards of documents in this dataset hold no tokens: there is nothing to harvest"
        )
    if ended_by == "dataset":
        logger.warning("the dataset ended after %s rows, %s were asked for", f"{n_rows:,}", f"{max_tokens:,}")
        index -= 1
    write_manifest(store, plan, index + 1, ended_by)
    _log(store, event="end", rows=min(n_rows, max_tokens), ended_by=ended_by)


def _finished_shards(store: Path, plan: dict[str, Any]) -> dict[int, dict[str, Any]]:
    """A commit record of each shard that is whole for every hook point, by index.

    raises: ShardError if a committed file is missing or has another size
    """
    finished = {}
    for folder in sorted((store / "shards").glob("*")):
        index = int(folder.name)
        commits = [commit_path(store, index, hook_point) for hook_point in plan["hook_points"]]
        if all(commit.exists() for commit in commits):
            for record in map(read_json, commits):
                for name, file in record["files"].items():
                    check_size(folder / name, file["bytes"])
            finished[index] = record
    return finished


def _write_shard(
    model: nn.Module, shard: PackedShard, plan: dict[str, Any], store: Path, count_rows: Callable[[int], Any]
) -> dict[str, Any]:
    """Run one shard through the model, write and commit it. Returns the last hook point's commit record.

    Batches hold the shard's contexts in order and end with it. No attention mask is needed: padding comes last, where
    causal attention does not let real tokens see it.
    """
    contexts, n_rows = shard.contexts, shard.contexts.n_rows
    device, dtype = hooks.model_device(model), STORE_DTYPES[plan["dtype"]]
    tokens = encode_tokens(contexts)
    write_file(tokens_path(store, shard.index), tokens)
    with contextlib.ExitStack() as files:
        writers = {
            name: RowWriter(
                files.enter_context(appearing(data_path(store, shard.index, name))),
                name,
                n_rows,
                facts["d_model"],
                dtype,
            )
            for name, facts in plan["hook_points"].items()
        }
        for start in range(0, contexts.n_seqs, plan["batch_size_seqs"]):
            batch = slice(start, start + plan["batch_size_seqs"])
            input_ids = torch.from_numpy(contexts.input_ids[batch]).to(device, torch.int64)
            kept = torch.from_numpy(contexts.kept[batch]).bool()
            acts = hooks.run_to(model, list(writers), input_ids=input_ids)
            for name, writer in writers.items():
                writer.append(acts[name][kept.to(acts[name].device)])
            count_rows(int(kept.sum()))
        written = {name: writer.finish() for name, writer in writers.items()}
    for name, facts in written.items():
        record = {
            "shard": shard.index,
            "hook_point": name,
            "rows": n_rows,
            "sequences": contexts.n_seqs,
            "first_document": contexts.first_doc,
            "documents": shard.n_documents,
            "files": {
                "tokens.safetensors": {"bytes": len(tokens), "sha256": hashlib.sha256(tokens).hexdigest()},
                f"{name}.safetensors": {"bytes": facts["bytes"], "sha256": facts["sha256"]},
            },
            "sum": facts["sum"],
            "sum_sq_norm": facts["sum_sq_norm"],
        }
        write_file(commit_path(store, shard.index, name), encode_json(record))
    return record


@contextlib.contextmanager
def _only_writer(store: Path) -> Iterator[None]:
    """Hold the store's log locked, so that a second harvest of the same store is refused (where the system can)."""
    with open(store / "log.jsonl", "a", encoding="utf-8") as log:
        if fcntl is not None:
            try:
                fcntl.flock(log, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise ShardError(
                    f"another harvest is writing {store}: wait for it, or choose another folder"
                ) from error
        yield


def _log(store: Path, **entry: Any) -> None:
    with open(store / "log.jsonl", "a", encoding="utf-8") as log:
        log.write(json.dumps({"time": time.strftime("%Y-%m-%dT%H:%M:%S%z"), **entry}) + "\n")


def _log_start(store: Path, model: nn.Module, n_finished: int) -> None:
    """Record the circumstances that bytes can depend on; say so if they changed since the harvest began."""
    from transformers import __version__ as transformers_version

    now = {
        "device": hooks.model_device(model).type,
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "transformers": transformers_version,
        "machine": platform.machine(),
    }
    lines = (store / "log.jsonl").read_text(encoding="utf-8").splitlines()
    earlier = [entry["environment"] for entry in map(json.loads, lines) if entry["event"] == "start"]
    changed = [
        f"{key} {earlier[-1].get(key)} then, {now[key]} now"
        for key in now
        if earlier and earlier[-1].get(key) != now[key]
    ]
    if n_finished and changed:
        logger.warning(
            "going on under other circumstances, last bits of the rows may differ: %s", "; ".join(changed)
        )
    if n_finished:
        logger.info("%s has %d finished shards: going on", store, n_finished)
    _log(store, event="start", finished_shards=n_finished, environment=now)
