"""Which rows of a store are scored: whole documents, drawn by a hash of their index, whatever their order."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from saelens_lite.hashing import hashed_uniform, is_held_out
from saelens_lite.store.reader import ActivationStore

_KEY = 0x5A3B1E
"""Of the draw, which is independent of what is held out."""


def sampled_rows(store: ActivationStore, fraction: float | None, max_rows: int | None) -> Iterator[Tensor]:
    """For each shard which of its rows are scored: bool[n_rows].

    Documents are taken in the order of their hash until they have max_rows rows; of the last one those rows
    count that come first.

    fraction: of the documents that are held out (hashing.is_held_out), score only those; None: of all
    max_rows: None for all
    """
    documents, last, of_last = None, -1, 0
    if max_rows is not None:
        documents, last, of_last = _drawn(store, fraction, max_rows)
    for shard in range(store.n_shards):
        docs = store.row_docs(shard)
        if documents is None:
            yield torch.ones(len(docs), dtype=torch.bool) if fraction is None else is_held_out(docs, fraction)
            continue
        is_last = docs == last
        yield torch.isin(docs, documents) & (~is_last | (is_last.cumsum(0) <= of_last))
        of_last -= int(is_last.sum())


def _drawn(store: ActivationStore, fraction: float | None, max_rows: int) -> tuple[Tensor, int, int]:
    """The documents of a sample, the one drawn last, and how many of its rows count."""
    pairs = [store.row_docs(shard).unique(return_counts=True) for shard in range(store.n_shards)]
    docs, inverse = torch.cat([docs for docs, _ in pairs]).unique(return_inverse=True)
    rows = torch.zeros(len(docs), dtype=torch.int64).index_add_(0, inverse, torch.cat([n for _, n in pairs]))
    if fraction is not None:
        held_out = is_held_out(docs, fraction)
        docs, rows = docs[held_out], rows[held_out]
    order = torch.from_numpy(hashed_uniform(docs.numpy(), _KEY)).argsort(stable=True)
    ends = rows[order].cumsum(0)
    n = min(len(docs), int(torch.searchsorted(ends, max_rows)) + 1)
    if n == 0 or int(ends[n - 1]) <= max_rows:
        return docs[order[:n]], -1, 0
    last = order[n - 1]
    return docs[order[:n]], int(docs[last]), max_rows - int(ends[n - 1] - rows[last])
