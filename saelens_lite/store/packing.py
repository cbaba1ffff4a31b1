"""Packs documents into contexts of equal length.

A context keeps, for every position, its document and whether it has an activation row, so any row leads back
to its token, its position and its text.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Iterable, Sequence

import numpy as np

from saelens_lite.misfits import names_misfits

PADDING_ID = 0
"""Token id at unattended positions. Any valid id serves: padding comes last, so causal attention never reads
it, and other models get a mask."""


APART = "documents apart"
"""Name, in a plan, of packing that gives every document contexts of its own."""


@dataclasses.dataclass(frozen=True, slots=True)
class PackedContexts:
    """The contexts of a span of documents, position by position.

    input_ids: int32[n_seqs context]
    attended:  uint8[n_seqs context], 0 at the padding after a context's last token
    kept:      uint8[n_seqs context], 1 where the token has a row; rows follow in (sequence, position) order
    doc_id:    int32[n_seqs context], relative to first_doc, the span's first document; -1 at padding
    """

    input_ids: np.ndarray
    attended: np.ndarray
    kept: np.ndarray
    doc_id: np.ndarray
    first_doc: int

    @property
    def n_seqs(self) -> int:
        return len(self.input_ids)

    @property
    def n_rows(self) -> int:
        return int(self.kept.sum())

    def up_to(self, n_rows: int) -> PackedContexts:
        """Only the contexts that the first `n_rows` rows stand in."""
        rows_before = np.cumsum(self.kept.sum(axis=1)) - self.kept.sum(axis=1)
        return self.first(int((rows_before < n_rows).sum()))

    def first(self, n_seqs: int) -> PackedContexts:
        """Only the first contexts."""
        arrays = (array[:n_seqs] for array in (self.input_ids, self.attended, self.kept, self.doc_id))
        return PackedContexts(*arrays, self.first_doc)


@names_misfits
def pack(
    documents: Iterable[tuple[int, Sequence[int]]],
    context_length: int,
    bos_id: int | None,
    *,
    separator_id: int | None = None,
    special_ids: Collection[int] = (),
    max_rows: int | None = None,
    first_doc: int = 0,
    apart: bool = False,
) -> PackedContexts:
    """Lay documents end to end into contexts of equal length; only the last one is padded.

    In a context, a document sees those before it; with `apart` each begins a context, and its last is padded.

    Every context starts with `bos_id`, if given. A document that starts inside a context is preceded by
    `separator_id`, if given, which counts as that document's. Tokens in `special_ids`, among them the BOS if
    it is listed, keep their id but get no row.

    documents: (global document index, its token ids without added special tokens), in order; a document
        without ids leaves no trace
    context_length: tokens a context, BOS included
    max_rows: stop reading documents, and begin no further context, at this many rows
    first_doc: the document index that doc_id counts from
    """
    special = np.fromiter(special_ids, dtype=np.int32)
    pieces: list[np.ndarray] = []
    owners: list[tuple[int, int]] = []  # (document relative to first_doc, tokens) of each piece
    length, rows = 0, 0

    def lay(tokens: np.ndarray, document: int) -> None:
        nonlocal length
        pieces.append(tokens)
        owners.append((document - first_doc, len(tokens)))
        length += len(tokens)

    bos = None if bos_id is None else np.array([bos_id], dtype=np.int32)
    separator = None if separator_id is None else np.array([separator_id], dtype=np.int32)
    for document, ids in documents:
        tokens = np.asarray(ids, dtype=np.int32)
        if not len(tokens):
            continue
        if apart and length % context_length:
            lay(np.full(-length % context_length, PADDING_ID, dtype=np.int32), first_doc - 1)
        if separator is not None and length % context_length:
            lay(separator, document)
        start = 0
        while start < len(tokens):
            if bos is not None and length % context_length == 0:
                lay(bos, document)
            end = start + context_length - length % context_length
            lay(tokens[start:end], document)
            start = end
        rows += len(tokens) - int(np.isin(tokens, special).sum())
        if max_rows is not None and rows >= max_rows:
            break

    n_seqs = -(-length // context_length)
    input_ids = np.full(n_seqs * context_length, PADDING_ID, dtype=np.int32)
    doc_id = np.full(n_seqs * context_length, -1, dtype=np.int32)
    if length:
        input_ids[:length] = np.concatenate(pieces)
        doc_id[:length] = np.repeat(*np.array(owners, dtype=np.int64).T)
    attended = doc_id >= 0
    kept = attended & ~np.isin(input_ids, special)

    flat = (input_ids, attended.astype(np.uint8), kept.astype(np.uint8), doc_id)
    packed = PackedContexts(*(array.reshape(n_seqs, context_length) for array in flat), first_doc)
    return packed if max_rows is None else packed.up_to(max_rows)
