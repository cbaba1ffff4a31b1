"""Rows straight from the forward passes, a shard at a time: what a store would hold, without writing it."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from saelens_lite.lm.decoder import Decoder, evaluation_mode
from saelens_lite.prefetch import ahead
from saelens_lite.store.codecs import STORE_DTYPES, encoder

from .prepare import prepare, requested
from .shards.forward import Batch, forward_batches
from .shards.model import compile_blocks, drop_unused
from .shards.plan import documents_per_shard, identity_sha256
from .shards.write import overlaps
from .text.documents import Cursor
from .text.tokenized import PackedShard, packed_shards

_ENDLESS = 2**62
"""Rows that a stream's plan asks for: all that the dataset has."""

_PACKED_AHEAD, _BATCHES_AHEAD = 2, 2


@dataclasses.dataclass(frozen=True, slots=True)
class StreamedShard:
    """The rows of one shard of the plan.

    acts: float[n_rows d_model] on the CPU, as a reader of a store gets them
    doc_ids: int64[n_rows], the global index of each row's document
    cursor: where the shard begins in the dataset, for `ActivationStream.shards`; None without one
    """

    index: int
    acts: Tensor
    doc_ids: Tensor
    cursor: Cursor | None


class ActivationStream:
    """The shards of a dataset's rows at one hook point. Equal plans give equal rows."""

    def __init__(self, model: nn.Module, tokenizer: Any, source: Any, plan: dict[str, Any]) -> None:
        self._model, self._tokenizer, self._source, self.plan = model, tokenizer, source, plan

    @property
    def hook_point(self) -> str:
        return next(iter(self.plan["hook_points"]))

    @property
    def d_model(self) -> int:
        return self.plan["hook_points"][self.hook_point]["d_model"]

    @property
    def fingerprint(self) -> str:
        """sha256 that names the rows, as older versions did."""
        return identity_sha256(self.plan)

    def shards(self, start: int = 0, cursor: Cursor | None = None) -> Iterator[StreamedShard]:
        """The shards from `start` to the end of the dataset.

        cursor: of the shard `start`, from an earlier reading; None reads past what lies before
        raises: ValueError if the dataset is a one-time iterator that was read before
        """
        plan, model = self.plan, self._model
        n_embeddings = Decoder(model).embedding.num_embeddings
        packed = packed_shards(
            self._source, self._tokenizer, plan, itertools.count(start), n_embeddings, start, cursor
        )
        with contextlib.ExitStack() as stack:
            if overlaps(model):
                packed = stack.enter_context(ahead(packed, _PACKED_AHEAD))
            forward = forward_batches(model, packed, [self.hook_point], plan)
            batches = stack.enter_context(ahead(forward, _BATCHES_AHEAD)) if overlaps(model) else forward
            for _, of_shard in itertools.groupby(batches, key=lambda batch: batch.shard.index):
                yield self._shard(of_shard)

    def _shard(self, batches: Iterator[Batch]) -> StreamedShard:
        first = next(batches)
        shard: PackedShard = first.shard
        contexts = shard.contexts
        codec = encoder(STORE_DTYPES[self.plan["dtype"]], contexts.n_rows, self.d_model)
        arriving = [batch.rows[self.hook_point] for batch in (first, *batches) if batch.n_rows]
        stored = [codec.encode(rows.wait())[1] for rows in arriving]
        acts = torch.cat(stored) if stored else torch.empty(0, self.d_model)
        doc_ids = torch.from_numpy(contexts.doc_id[contexts.kept.astype(bool)]).long() + contexts.first_doc
        return StreamedShard(shard.index, acts, doc_ids, shard.cursor)


@contextlib.contextmanager
def activation_stream(
    model: str | nn.Module, dataset: Any, hook_point: str, *, tokenizer: Any = None, **options: Any
) -> Iterator[ActivationStream]:
    """The rows that a harvest would store, without the store; inside, the model is in evaluation mode.

    model, dataset, tokenizer, raises: as in `harvest_activations`, where a store has no part in it
    options: fields of HarvestConfig that say how text becomes rows, such as context_length, dtype or split
    """
    options = {"documents_per_shard": None} | options
    request = requested(model, dataset, hook_point, "", _ENDLESS, tokenizer, options)
    with prepare(request) as found:
        plan = found.plan
        if options["documents_per_shard"] is None:  # eight batches: all that a resumed reader makes twice
            batch_tokens = plan["batch_size_seqs"] * plan["context_length"]
            plan = plan | {"documents_per_shard": documents_per_shard(found.mean_tokens, 0, batch_tokens)}
    with evaluation_mode(found.model):
        if found.ours:
            drop_unused(found.model, found.points)
            if found.config.compile:
                compile_blocks(found.model, found.points)
        yield ActivationStream(found.model, found.tokenizer, found.source, plan)
