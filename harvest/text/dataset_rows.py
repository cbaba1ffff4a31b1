"""Documents from rows in memory or from `datasets`: numbered rows, streams with a state, any iterable."""

from __future__ import annotations

import copy
import itertools
import json
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sized
from typing import Any

from .documents import Cursor, Document, DocumentStream, as_document, no_column


def row_streams(
    rows: Any, text_column: str, described: str
) -> Callable[[int, Cursor | None], DocumentStream]:
    """reopen(start, cursor) for `probed`, over strings, chats, token ids, or mappings with a text column.

    rows: an object with numbered rows (list, tuple, array, `datasets.Dataset`), a `datasets.IterableDataset`,
        or any iterable; an iterator can be opened once
    raises: ValueError for a `datasets` stream that is shuffled through a buffer
    """
    if _is_a("IterableDataset", rows):
        _refuse_buffer(_parts_of(rows), described)
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
    """Does rows[i] give row i? A pandas object takes labels there, so it is iterated instead."""
    return isinstance(rows, Sized) and hasattr(rows, "__getitem__") and not hasattr(rows, "iloc")


def _is_a(name: str, rows: Any) -> bool:
    """The library is not loaded for the question."""
    datasets = sys.modules.get("datasets")
    return datasets is not None and isinstance(rows, getattr(datasets, name))


class _RowStream(DocumentStream):
    """Rows that can only be iterated, without a position."""

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
    """Numbered rows: the cursor is the next row's number."""

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
    # Iterating a Dataset reads blocks, many times faster than row by row.
    if _is_a("Dataset", rows) and index < len(rows):
        return iter(rows.select(range(index, len(rows))))
    return (rows[i] for i in range(index, len(rows)))


class _StateStream(_RowStream):
    """A `datasets` stream: the cursor is its state before the next row."""

    def __init__(
        self, stream: Any, text_column: str, described: str, index: int, cursor: Cursor | None
    ) -> None:
        self.stream = _own_stream(stream)
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
        except TypeError:  # some iterables have a state of more than plain values
            return None
        return state


def _refuse_buffer(iterables: Iterable[Any], described: str) -> None:
    if any(type(iterable).__name__ == "BufferShuffledExamplesIterable" for iterable in iterables):
        raise ValueError(
            f"{described} is shuffled through a buffer, whose content no saved position restores, so "
            "an interrupted harvest could not resume exactly: pass it without shuffle(). Training mixes the "
            "rows of all shards; for another order of documents, shuffle a datasets.Dataset or the files"
        )


# Private parts of `datasets`, hence its upper bound in pyproject.toml: a stream is a chain of iterables that
# hold its state. No public call copies a stream with a state of its own, or says whether it is shuffled.


def _own_stream(stream: Any) -> Any:
    """A copy with a state of its own: streams of one source do not disturb each other, nor the caller's."""

    def own(iterable: Any) -> Any:
        copied = copy.copy(iterable)
        if hasattr(copied, "ex_iterables"):
            copied.ex_iterables = [own(part) for part in copied.ex_iterables]
        elif hasattr(copied, "ex_iterable"):
            copied.ex_iterable = own(copied.ex_iterable)
        return copied

    copied = object.__new__(type(stream))  # its copy.copy would share all attributes with it
    vars(copied).update(vars(stream))
    copied._ex_iterable = own(stream._ex_iterable)
    return copied


def _parts_of(stream: Any) -> Iterator[Any]:
    waiting = [stream._ex_iterable]
    while waiting:
        iterable = waiting.pop()
        yield iterable
        waiting += getattr(iterable, "ex_iterables", None) or filter(
            None, [getattr(iterable, "ex_iterable", None)]
        )
