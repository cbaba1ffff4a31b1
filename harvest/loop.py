"""The loop of a harvest: packed shards through the model into the store, up to max_tokens rows, then the manifest."""

from __future__ import annotations

import contextlib
import itertools
import json
import logging
import platform
import time
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import nn

from saelens_lite import hooks
from saelens_lite.errors import ShardError
from saelens_lite.files import Folder
from saelens_lite.shards import STORE_DTYPES, finished_shards, write_manifest, writing_shard

from .ahead import ahead
from .packing import PackedShard, packed_shards
from .plan import adopt_plan
from .source import Source

logger = logging.getLogger(__name__)

_SHARDS_AHEAD = 2


def make_shards(
    model: nn.Module, tokenizer: Any, source: Source, plan: dict[str, Any], store: Folder, progress: bool
) -> None:
    """Make the shards that the store lacks, in order, up to max_tokens rows or the dataset's end; then seal the store."""
    with _only_writer(store):
        adopt_plan(plan, store)  # again, now that nobody else can write: two may have begun at once
        finished = finished_shards(store, plan["hook_points"])
        _log_start(store, model, len(finished))
        try:
            n_shards, n_rows = _loop(model, tokenizer, source, plan, store, finished, progress)
        except KeyboardInterrupt:
            logger.warning("interrupted: %s keeps its finished shards, and the same command goes on", store)
            raise
        if n_rows == 0:
            raise ValueError("the dataset's documents hold no tokens: there is nothing to harvest")
        if n_rows < plan["max_tokens"]:
            logger.warning("the dataset ended after %d rows, %d were asked for", n_rows, plan["max_tokens"])
        ended_by = "dataset" if n_rows < plan["max_tokens"] else "max_tokens"
        write_manifest(store, plan, n_shards, ended_by)
        _log(store, event="end", rows=min(n_rows, plan["max_tokens"]), ended_by=ended_by)


def _loop(
    model: nn.Module,
    tokenizer: Any,
    source: Source,
    plan: dict[str, Any],
    store: Folder,
    finished: dict[int, int],
    progress: bool,
) -> tuple[int, int]:
    """Returns the numbers of shards and rows, surplus rows of the last shard included."""
    from tqdm.auto import tqdm

    n_rows, max_tokens = 0, plan["max_tokens"]
    claims = (i for i in itertools.count() if i not in finished)
    todo = packed_shards(source, tokenizer, plan, claims, model.get_input_embeddings().num_embeddings)
    done = min(sum(finished.values()), max_tokens)
    bar = tqdm(total=max_tokens, initial=done, unit=" tokens", unit_scale=True, disable=not progress, desc="harvest")

    def show(rows: int) -> None:
        bar.update(min(rows, max_tokens - bar.n))

    with bar, ahead(todo, _SHARDS_AHEAD) as shards:
        for index in itertools.count():
            if index in finished:
                n_rows += finished[index]
            else:
                began = time.perf_counter()
                shard = next(shards, None)
                if shard is None:
                    return index, n_rows
                assert shard.index == index, "packed shards come in order"
                _harvest_shard(model, shard, plan, store, show)
                seconds = round(time.perf_counter() - began, 3)
                _log(store, event="shard", shard=index, rows=shard.contexts.n_rows, seconds=seconds)
                n_rows += shard.contexts.n_rows
            if n_rows >= max_tokens:
                return index + 1, n_rows


def _harvest_shard(
    model: nn.Module, shard: PackedShard, plan: dict[str, Any], store: Folder, show: Callable[[int], None]
) -> None:
    """Run one shard through the model and commit it. Batches hold its contexts in order and end with it.

    No attention mask is needed: padding comes last, where causal attention does not let real tokens see it.
    """
    contexts, device = shard.contexts, hooks.model_device(model)
    d_models = {name: facts["d_model"] for name, facts in plan["hook_points"].items()}
    dtype = STORE_DTYPES[plan["dtype"]]
    with writing_shard(store, shard.index, contexts, shard.n_documents, d_models, dtype) as writers:
        for start in range(0, contexts.n_seqs, plan["batch_size_seqs"]):
            batch = slice(start, start + plan["batch_size_seqs"])
            input_ids = torch.from_numpy(contexts.input_ids[batch]).to(device, torch.int64)
            kept = torch.from_numpy(contexts.kept[batch]).bool()
            acts = hooks.run_to(model, list(writers), input_ids=input_ids)
            for name, writer in writers.items():
                writer.append(acts[name][kept.to(acts[name].device)])
            show(int(kept.sum()))


@contextlib.contextmanager
def _only_writer(store: Folder) -> Iterator[None]:
    """Hold the store's log locked, so that a second harvest of the same store is refused (where the system can)."""
    with store.locked("log.jsonl") as ours:
        if not ours:
            raise ShardError(f"another harvest is writing {store}: wait for it, or choose another folder")
        yield


def _log(store: Folder, **entry: Any) -> None:
    """Append a line to the store's log. Its loss is no loss of data, so what the file system refuses is only reported."""
    line = json.dumps({"time": time.strftime("%Y-%m-%dT%H:%M:%S%z"), **entry}) + "\n"
    try:
        store.append_line("log.jsonl", line.encode())
    except ShardError as error:
        logger.warning("the log could not be written: %s", error)


def _log_start(store: Folder, model: nn.Module, n_finished: int) -> None:
    """Record the circumstances that bytes can depend on; say so if they changed since the harvest began."""
    from transformers import __version__ as transformers_version

    now = {
        "device": hooks.model_device(model).type,
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "transformers": transformers_version,
        "machine": platform.machine(),
    }
    if n_finished:
        before = _last_environment(store)
        changed = [f"{key} {before[key]} then, {now[key]} now" for key in now if before.get(key, now[key]) != now[key]]
        logger.info("%s has %d finished shards: going on", store, n_finished)
        if changed:
            logger.warning("other circumstances than before, rows may differ in their last bits: %s", "; ".join(changed))
    _log(store, event="start", finished_shards=n_finished, environment=now)


def _last_environment(store: Folder) -> dict[str, Any]:
    environment = {}
    for line in store.read("log.jsonl").decode(errors="replace").splitlines():
        with contextlib.suppress(json.JSONDecodeError):  # a line that a kill cut short
            environment = json.loads(line).get("environment", environment)
    return environment
