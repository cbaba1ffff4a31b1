"""Documents to packed contexts with provenance, the held-out split by document, and token ids back to readable pieces.

A packed context keeps, for every position, which document it came from and whether it has an activation row, so that
any row leads back to its token, its position and its text.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Iterable, Sequence
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

PADDING_ID = 0
"""Token id at unattended positions. Any valid id serves: padding comes last, so causal attention never reads it."""

LONGEST_RUN_TOKENS = 8
"""Longest run of tokens that `token_strings` joins; a UTF-8 character has at most four bytes, so four tokens are usual."""

ArrayOrTensor = TypeVar("ArrayOrTensor", np.ndarray, Tensor)


@dataclasses.dataclass(frozen=True, slots=True)
class PackedContexts:
    """The contexts of a span of documents, position by position.

    input_ids: int32[n_seqs context]
    attended:  uint8[n_seqs context], 0 at the padding behind the last token
    kept:      uint8[n_seqs context], 1 where the token has an activation row; rows follow in (sequence, position) order
    doc_id:    int32[n_seqs context], relative to first_doc; -1 at padding
    first_doc: global index of the span's first document
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
        used = int((rows_before < n_rows).sum())
        arrays = (array[:used] for array in (self.input_ids, self.attended, self.kept, self.doc_id))
        return PackedContexts(*arrays, self.first_doc)


def pack(
    documents: Iterable[tuple[int, Sequence[int]]],
    context_length: int,
    bos_id: int | None,
    *,
    separator_id: int | None = None,
    special_ids: Collection[int] = (),
    max_rows: int | None = None,
    first_doc: int = 0,
) -> PackedContexts:
    """Lay documents end to end into contexts of equal length; only the last one is padded.

    Every context starts with `bos_id` (when there is one). A document that starts inside a context is preceded by
    `separator_id` (when there is one), which counts as that document's; one that starts a context needs no separator.
    Tokens in `special_ids` keep their id but get no row; the BOS has one only if it is not among them.

    documents: (global document index, its token ids without added special tokens), in order; no ids leave no trace
    context_length: tokens a context, BOS included
    max_rows: stop reading documents, and begin no further context, once there are this many rows
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
    attended = np.arange(n_seqs * context_length) < length
    kept = attended & ~np.isin(input_ids, special)

    flat = (input_ids, attended.astype(np.uint8), kept.astype(np.uint8), doc_id)
    packed = PackedContexts(*(array.reshape(n_seqs, context_length) for array in flat), first_doc)
    return packed if max_rows is None else packed.up_to(max_rows)


def is_held_out(doc_ids: ArrayOrTensor, fraction: float = 0.05, seed: int = 0) -> ArrayOrTensor:
    """Which documents are held out: the one split used for rows and for text alike.

    A stateless hash of the global document index decides, so a document is on the same side everywhere, whatever the
    order, the sharding or the number of documents.

    doc_ids: int64[...], global document indices; array or tensor
    fraction: expected share of documents held out, 0 to 1
    seed: another seed draws another split
    returns: bool[...], the same kind as doc_ids
    """
    if not 0 <= fraction <= 1:
        raise ValueError(f"fraction is a share of documents from 0 to 1, got {fraction}")
    if isinstance(doc_ids, Tensor):
        return torch.from_numpy(is_held_out(doc_ids.cpu().numpy(), fraction, seed)).to(doc_ids.device)
    return hashed_uniform(np.asarray(doc_ids), seed) < fraction


def hashed_uniform(indices: np.ndarray, *keys: int) -> np.ndarray:
    """A number for each index, uniform in [0, 1): a stateless hash of the index and the keys.

    indices: int64[...]
    keys: integers; other keys, and other numbers of keys, give independent numbers
    returns: float64[...], multiples of 2^-53
    source: the mixer is splitmix64 (Steele, Lea and Flood 2014, doi:10.1145/2660193.2660195)
    """
    stream = np.zeros(1, dtype=np.uint64)
    for key in keys:
        stream = _splitmix64(stream ^ np.array([key], dtype=np.int64).astype(np.uint64))
    return (_splitmix64(indices.astype(np.uint64) ^ stream) >> np.uint64(11)) * 2.0**-53


def _splitmix64(x: np.ndarray) -> np.ndarray:
    """One output of splitmix64 for each state in x: uint64[...], arithmetic modulo 2^64."""
    x = x + np.uint64(0x9E3779B97F4A7C15)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def special_token_ids(tokenizer: Any) -> list[int]:
    """Ids of the tokens that are no text: those with a role, and those the tokenizer marks as special."""
    marked = [i for i, token in getattr(tokenizer, "added_tokens_decoder", {}).items() if token.special]
    return sorted({*tokenizer.all_special_ids, *marked})


def token_strings(tokenizer: Any, ids: Sequence[int]) -> list[str]:
    """The text of each token, such that the pieces joined give the decoded text.

    A character whose bytes are spread over several tokens (an emoji, a Chinese character) is the piece of the first of
    them; the others are "". A space that a tokenizer hides at the start of a text is shown where the full text has one.
    Bytes that never become a character stay replacement characters (U+FFFD) on the token where they begin.
    """

    def decode(start: int, end: int) -> str:
        return tokenizer.decode(ids[start:end], skip_special_tokens=False, clean_up_tokenization_spaces=False)

    ids = [int(i) for i in ids]
    pieces = [""] * len(ids)
    context = start = 0  # ids[context:start] are settled and decoded again, for what follows may depend on them
    known = ""  # decode(context, start)
    pending = ""  # what the unsettled tokens ids[start:end] gave before the current one
    for end in range(1, len(ids) + 1):
        text = decode(context, end)
        # byte fallback gives up a whole run of bytes for one that begins no character: what was settled stays
        new = text[len(known) :] if text.startswith(known) else decode(start, end)
        if new.endswith("�") and end - start < LONGEST_RUN_TOKENS and end < len(ids):
            pending = new
            continue
        if pending and new.startswith(pending) and end - start > 1:  # the last token repaired nothing: it stands alone
            pieces[start], pieces[end - 1] = pending, new[len(pending) :]
        else:
            pieces[start] = new
        context, start, pending = start, end, ""
        known = decode(context, start)
    return pieces
