"""The loop of a harvest: packed shards run through the model into the store; then the manifest.

Three stages overlap: packing in one thread, the forward passes in another, copying to the host and writing in
the caller's. Queues of a few shards and batches lie between them, so memory does not grow with the harvest. A
model on the CPU keeps all cores busy, and a thread beside it costs more than it gains: there, the stages
follow each other.
"""

from __future__ import annotations

import contextlib
import itertools
import logging
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from torch import nn

from saelens_lite.distributed import rank, several_processes
from saelens_lite.errors import SaelensLiteError, ShardError
from saelens_lite.lm.decoder import Decoder
from saelens_lite.prefetch import ahead
from saelens_lite.store.codecs import STORE_DTYPES
from saelens_lite.store.event_log import events, write_event
from saelens_lite.store.folder import Folder
from saelens_lite.store.layout import finished_shards
from saelens_lite.store.writer import write_manifest, writing_shard

from ..text.documents import Source
from ..text.tokenized import PackedShard, packed_shards
from .forward import Batch, forward_batches
from .plan import adopt_plan, plan_sha256
from .progress import Progress
from .resuming import changed_circumstances, check_same_rows, circumstances
from .shard_claims import Claims, SharedClaims

logger = logging.getLogger(__name__)

_SHARDS_AHEAD = 2
_BATCHES_AHEAD = 2


def make_shards(
    model: nn.Module,
    tokenizer: Any,
    source: Source,
    plan: dict[str, Any],
    store: Folder,
    *,
    progress: bool = True,
    settings: dict[str, Any] | None = None,
) -> None:
    """Make the shards that the store lacks, then seal it. settings: what the user asked for, for the log"""
    with only_writer(store):
        if rank() == 0:
            plan = adopt_plan(plan, store)  # again, under the lock: two may have begun at once
        claims = claims_of(store, plan, list(plan["hook_points"]))
        check_same_rows(model, tokenizer, source, plan, store, claims.finished)
        log_start(store, model, claims, plan, settings=settings)
        start, cursor = _last_cursor(store, claims)
        n_embeddings = Decoder(model).embedding.num_embeddings
        packed = _readable(packed_shards(source, tokenizer, plan, iter(claims), n_embeddings, start, cursor))
        write_shards(model, packed, plan, list(plan["hook_points"]), store, claims, progress)
        claims.wait_for_all()
        if claims.rank == 0:
            seal(store, plan, claims)
        claims.seal()


def write_shards(
    model: nn.Module,
    packed: Iterable[PackedShard],
    plan: dict[str, Any],
    hook_points: list[str],
    store: Folder,
    claims: Claims,
    progress: bool,
    *,
    also: tuple[str, ...] = (),
    check: Callable[[Batch], None] = lambda batch: None,
) -> None:
    """Write the rows of these hook points for every shard, until max_tokens is met.

    also: hook points whose rows only `check` sees, which gets every batch before it is written
    """
    share = plan["max_tokens"] // claims.world_size
    here = f" (process {claims.rank} of {claims.world_size})" if claims.world_size > 1 else ""
    n_before = sum(claims.finished.values()) // claims.world_size
    try:
        with contextlib.ExitStack() as stack:
            bar = stack.enter_context(Progress(share, n_before, f"harvest{here}", progress))
            needed = claims.needed(bar.timed_items("pack", packed))
            beside = overlaps(model)
            shards = stack.enter_context(ahead(needed, _SHARDS_AHEAD)) if beside else needed
            forward = forward_batches(model, shards, [*hook_points, *also], plan)
            batches = stack.enter_context(ahead(forward, _BATCHES_AHEAD)) if beside else forward
            stack.callback(claims.stop)
            for _, of_shard in itertools.groupby(batches, key=lambda batch: batch.shard.index):
                shard = _write_shard(of_shard, plan, hook_points, store, bar, check)
                write_event(store, claims.rank, event="shard", **bar.shard_done(shard))
    except KeyboardInterrupt:
        logger.warning(
            "interrupted: %s keeps its finished shards; run the same command again to resume", store
        )
        raise


def _readable(packed: Iterable[PackedShard]) -> Iterator[PackedShard]:
    """The shards, with errors of the dataset told apart from those of the store."""
    try:
        yield from packed
    except OSError as error:
        raise SaelensLiteError(
            f"the dataset could not be read further ({error}); finished shards are kept: run the same "
            "command again"
        ) from error


def overlaps(model: nn.Module) -> bool:
    return Decoder(model).device.type != "cpu"


def _write_shard(
    batches: Iterator[Batch],
    plan: dict[str, Any],
    hook_points: list[str],
    store: Folder,
    bar: Progress,
    check: Callable[[Batch], None],
) -> PackedShard:
    first = next(batches)
    shard, d_models = first.shard, {name: plan["hook_points"][name]["d_model"] for name in hook_points}
    writing = writing_shard(
        store, shard.index, shard.contexts, shard.n_documents, d_models, STORE_DTYPES[plan["dtype"]]
    )
    with bar.timed_exit("write", writing) as writers:
        for batch in itertools.chain([first], batches):
            check(batch)
            for name in batch.rows.keys() & writers.keys():
                rows = bar.timed("copy", batch.rows[name].wait)
                bar.timed("write", lambda name=name, rows=rows: writers[name].append(rows))
            bar.advance(batch)
    return shard


def claims_of(store: Folder, plan: dict[str, Any], hook_points: list[str]) -> Claims:
    if several_processes():
        return SharedClaims(store, hook_points, plan["max_tokens"])
    return Claims(finished_shards(store, hook_points), plan["max_tokens"])


def seal(store: Folder, plan: dict[str, Any], claims: Claims) -> None:
    """Write the manifest of a store whose shards are all finished."""
    n_shards, n_rows = claims.totals()
    if n_rows == 0:
        raise ValueError("the dataset's documents hold no tokens: there is nothing to harvest")
    ended_by = "max_tokens"
    if n_rows < plan["max_tokens"]:
        logger.warning("the dataset ended after %d rows, %d were asked for", n_rows, plan["max_tokens"])
        ended_by = "dataset"
    write_manifest(store, plan, n_shards, ended_by)
    write_event(store, event="end", rows=min(n_rows, plan["max_tokens"]), ended_by=ended_by)


@contextlib.contextmanager
def only_writer(store: Folder) -> Iterator[None]:
    """Refuse a second harvest of the store, where the system can lock.

    Of several processes of one harvest the first holds the lock for all.
    """
    if rank() > 0:
        yield
        return
    with store.locked() as ours:
        if not ours:
            raise ShardError(f"another harvest is writing {store}: wait for it, or choose another folder")
        yield


def _last_cursor(store: Folder, claims: Claims) -> tuple[int, Any]:
    """(shard, position in the source where it begins) of the last logged shard before a missing one."""
    missing = next(index for index in itertools.count() if index not in claims.finished)
    before = [event for event in events(store, "shard") if event["shard"] <= missing]
    cursors = {event["shard"]: event["cursor"] for event in before if event["cursor"] is not None}
    start = max(cursors, default=0)
    return start, cursors.get(start)


def log_start(store: Folder, model: nn.Module, claims: Claims, plan: dict[str, Any], **entry: Any) -> None:
    """Record the circumstances that bytes can depend on, and warn if they changed since the harvest began.

    plan: of the finished store; by its hash in the log, a damaged plan.json is noticed and made anew
    """
    now = circumstances(model)
    if claims.finished:
        logger.info("%s has %d finished shards: resuming", store, len(claims.finished))
        if changed := changed_circumstances(store, now):
            logger.warning(
                "circumstances changed, so rows may differ in their last bits: %s", "; ".join(changed)
            )
    entry |= {"finished_shards": len(claims.finished), "plan_sha256": plan_sha256(plan), "environment": now}
    write_event(store, claims.rank, event="start", **entry)
