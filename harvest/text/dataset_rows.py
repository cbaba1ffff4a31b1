"""Documents from rows in memory or from `datasets`: what has numbered rows, what has a state, what can only
be iterated."""

from __future__ import annotations

import copy
import itertools
import json
import sys
from collections.abc import Callable, Iterator, Mapping, Sized
from typing import Any

from .documents import Cursor, Document, DocumentStream, as_document, no_column


def row_streams(
    rows: Any, text_column: str, described: str
) -> Callable[[int, Cursor | None], DocumentStream]:
    """reopen(start, cursor) for `probed`, over rows: strings, chats, token ids, or mappings with a text
    column.

    rows: an object with numbered rows (list, tuple, array, `datasets.Dataset`), a `datasets.IterableDataset`,
        or any iterable; an iterator can be opened once
    raises: ValueError for a `datasets` stream that is shuffled through a buffer
    """
    if _is_a("IterableDataset", rows):
        _refuse_buffer(rows._ex_iterable, described)
        return lambda start, cursor: _StateStream(rows, text_column, described, start, cursor)
    if is_numbered(rows):
        return lambda start, cursor: _NumberedStream(rows, text_column, described, cursor or 0)
    once = iter(rows) is rows
    opened = False

    def reopen(start: int, cursor: Cursor | None) -> DocumentStream:
        nonlocal opened
        if opened and once:
            raise ValueError(
                f"{described} can be read only once: pass a fresh one, or a list, to read it again"
            )
        opened = True
        return _RowStream(iter(rows), text_column, described, start)

    return reopen


def is_numbered(rows: Any) -> bool:
    """Does rows[i] give row i? A pandas object, which takes labels there, is iterated instead."""
    return isinstance(rows, Sized) and hasattr(rows, "__getitem__") and not hasattr(rows, "iloc")


def _is_a(name: str, rows: Any) -> bool:
    """Is it an object of that class of `datasets`? If it is, the library is loaded."""
    datasets = sys.modules.get("datasets")
    return datasets is not None and isinstance(rows, getattr(datasets, name))


class _RowStream(DocumentStream):
    """Rows that can only be iterated: no position."""

    def __init__(self, rows: Iterator[Any], text_column: str, described: str, index: int) -> None:
        self.rows, self.text_column, self.described, self.index = rows, text_column, described, index

    def __next__(self) -> Document:
        row = next(self.rows)
        self.index += 1
        if isinstance(row, Mapping):
            if self.text_column not in row:
                no_column(self.described, self.text_column, row)
            row = row[self.text_column]
        return as_document(row, f"{self.described}: document {self.index - 1}")

    def skip(self, n: int) -> int:
        passed = sum(1 for _ in itertools.islice(self.rows, n))
        self.index += passed
        return passed


class _NumberedStream(_RowStream):
    """Rows that have numbers: the cursor is the next one's."""

    def __init__(self, rows: Any, text_column: str, described: str, index: int) -> None:
        super().__init__(_rows_from(rows, index), text_column, described, index)
        self.all = rows

    def cursor(self) -> int:
        return self.index

    def skip(self, n: int) -> int:
        passed = max(0, min(n, len(self.all) - self.index))
        self.index += passed
        self.rows = _rows_from(self.all, self.index)
        return passed


def _rows_from(rows: Any, index: int) -> Iterator[Any]:
    if _is_a("Dataset", rows) and index < len(
        rows
    ):  # iterating reads ahead in blocks, many times faster than row by row
        return iter(rows.select(range(index, len(rows))))
    return (rows[i] for i in range(index, len(rows)))


class _StateStream(_RowStream):
    """A `datasets` stream: the cursor is its state, which is taken before the next row is read."""

    def __init__(
        self, stream: Any, text_column: str, described: str, index: int, cursor: Cursor | None
    ) -> None:
        self.stream = object.__new__(type(stream))  # its copy.copy would share all attributes with it
        vars(self.stream).update(vars(stream))
        self.stream._ex_iterable = _with_own_state(stream._ex_iterable)
        self.opened_at, self.begun_at = cursor, index
        if cursor is not None:
            self.stream.load_state_dict(cursor)
        super().__init__(iter(self.stream), text_column, described, index)

    def cursor(self) -> Cursor | None:
        if self.index == self.begun_at:  # the stream loads its state with its first row
            return self.opened_at
        state = self.stream.state_dict()
        try:
            json.dumps(state)
        except TypeError:  # of a kind of iterable whose state is more than plain values
            return None
        return state


def _with_own_state(iterable: Any) -> Any:
    """A copy of the chain of iterables under a stream, whose objects hold the state: the caller's stream
    stays as it is, and streams of one source do not disturb each other.
    """
    own = copy.copy(iterable)
    if hasattr(own, "ex_iterables"):
        own.ex_iterables = [_with_own_state(part) for part in own.ex_iterables]
    elif hasattr(own, "ex_iterable"):
        own.ex_iterable = _with_own_state(own.ex_iterable)
    return own


def _refuse_buffer(iterable: Any, described: str) -> None:
    if type(iterable).__name__ == "BufferShuffledExamplesIterable":
        raise ValueError(
            f"{described} is shuffled through a buffer, whose content no saved position restores, so an "
            "interrupted "
            "harvest could not go on exactly: pass it without shuffle(). Training mixes the rows of all "
            "shards; "
            "for another order of documents, shuffle a datasets.Dataset or the list of files"
        )
    for part in getattr(iterable, "ex_iterables", None) or filter(
        None, [getattr(iterable, "ex_iterable", None)]
    ):
        _refuse_buffer(part, described)
