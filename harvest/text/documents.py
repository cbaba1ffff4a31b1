"""Documents, streams of documents that know their position, and sources that open streams.

A document's index in its source is its identity everywhere: in shards, in the held-out split, in provenance.
"""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, NoReturn

import numpy as np

from saelens_lite.errors import nearest

Document = str | list[dict[str, Any]] | list[int]
"""A text; a chat, as messages with role and content; or token ids."""

Cursor = Any
"""A position in a source, as JSON; only the stream that gave it reads it."""

FIRST_DOCUMENTS = 64
"""Documents that are read to check a source first."""

_TELLING_COLUMNS = {"messages": "chats", "input_ids": "token ids"}


class DocumentStream(Iterator[Document]):
    """An iterator of documents that knows its position."""

    def cursor(self) -> Cursor | None:
        """The position of the next document, for `Source.open`; None if the source has no positions."""
        return None

    def skip(self, n: int) -> int:
        """Skip the next n documents; returns how many there were."""
        return sum(1 for _ in itertools.islice(self, n))


@dataclasses.dataclass(frozen=True, slots=True)
class Source:
    """Documents in a fixed order.

    facts: what identifies it, for the plan
    first: its first documents, at most 64
    n_documents: if it is known without reading them
    approximate_bytes: of local files, usually no less than their text's bytes
    open: open(start, cursor) gives the stream from document `start` on. A stream of an equal source gave
        `cursor` before that document; None reads past the earlier ones.
        raises: ValueError if the source is a one-time iterator that was opened before
    """

    facts: dict[str, Any]
    first: list[Document]
    n_documents: int | None
    approximate_bytes: int | None
    open: Callable[[int, Cursor | None], DocumentStream]


def as_document(value: Any, described: str) -> Document:
    """The document that a value is; None is an empty text.

    value: str; list of messages; or int[n_tokens] as list, tuple, array or tensor
    raises: ValueError, which begins with `described`, for anything else
    """
    if value is None:
        return ""
    if isinstance(value, str):
        return value
    if isinstance(value, list | tuple) and value and all(isinstance(item, Mapping) for item in value):
        for message in value:
            if not {"role", "content"} <= message.keys():
                raise ValueError(
                    f"{described} expected chat messages with role and content, got one with "
                    f"{', '.join(map(str, message))}"
                )
        # Tables give every message every key, and templates take a None for a value.
        return [{key: entry for key, entry in message.items() if entry is not None} for message in value]
    if isinstance(value, list | tuple):
        kinds = {type(item) for item in value}
        if all(issubclass(kind, int | np.integer) and kind is not bool for kind in kinds):
            return [int(item) for item in value]
        got = f"{type(value).__name__} of {', '.join(sorted(kind.__name__ for kind in kinds))}"
    elif hasattr(value, "__array__"):
        ids = np.asarray(value)
        if ids.ndim == 1 and ids.dtype.kind in "iu":
            return ids.tolist()
        got = f"an array of shape {list(ids.shape)} and type {ids.dtype}"
    else:
        got = type(value).__name__
    raise ValueError(f"{described} expected text, a chat or token ids, got {got}: name another text_column")


def is_token_ids(document: Document) -> bool:
    return isinstance(document, list) and all(isinstance(item, int) for item in document)


def no_column(described: str, text_column: str, columns: Iterable[Any]) -> NoReturn:
    """raises: ValueError that says which column to name instead"""
    columns = [str(column) for column in columns]
    likely = [
        f"text_column={name!r} for its {what}" for name, what in _TELLING_COLUMNS.items() if name in columns
    ]
    raise ValueError(
        f"{described} has no column {text_column!r}{nearest(text_column, columns)}; its columns are "
        f"{', '.join(columns)}: name one with text_column"
        + (f", such as {' or '.join(likely)}" if likely else "")
    )


def probed(
    facts: dict[str, Any],
    reopen: Callable[[int, Cursor | None], DocumentStream],
    *,
    n_documents: int | None = None,
    approximate_bytes: int | None = None,
) -> Source:
    """A source whose first documents are read now, so that errors show at once.

    They serve the first opening too: nothing is fetched twice, and a one-time iterator loses nothing.
    reopen: reopen(start, cursor) gives a stream at the cursor, whose next document is `start`
    """

    def begin() -> _Replayed:
        stream = reopen(0, None)
        first, cursors = [], []
        while len(first) < FIRST_DOCUMENTS:
            cursor = stream.cursor()
            document = next(stream, None)
            if document is None:
                break
            first.append(document)
            cursors.append(cursor)
        return _Replayed(first, cursors, stream)

    def open_at(start: int, cursor: Cursor | None) -> DocumentStream:
        if cursor is not None:
            unread.clear()  # closes its file or connection
            return reopen(start, cursor)
        stream = unread.pop() if unread else begin()
        if stream.first != first:
            raise ValueError(
                "the dataset gave other documents when it was read again: pass one that repeats itself"
            )
        stream.skip(start)
        return stream

    unread = [begin()]
    first = unread[0].first
    return Source(facts, first, n_documents, approximate_bytes, open_at)


class _Replayed(DocumentStream):
    """The first documents, then the rest of the stream."""

    def __init__(self, first: list[Document], cursors: list[Cursor | None], rest: DocumentStream) -> None:
        self.first, self.cursors, self.rest = first, cursors, rest
        self.index = 0

    def __next__(self) -> Document:
        if self.index == len(self.first):
            return next(self.rest)
        self.index += 1
        return self.first[self.index - 1]

    def cursor(self) -> Cursor | None:
        return self.rest.cursor() if self.index == len(self.first) else self.cursors[self.index]

    def skip(self, n: int) -> int:
        kept = min(n, len(self.first) - self.index)
        self.index += kept
        return kept + (self.rest.skip(n - kept) if n > kept else 0)


def sha256_of(documents: list[Document]) -> str:
    texts = [text if isinstance(text, str) else json.dumps(text, default=str) for text in documents]
    return hashlib.sha256("\0".join(texts).encode("utf-8", "surrogatepass")).hexdigest()
