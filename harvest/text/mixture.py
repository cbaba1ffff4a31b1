"""Several sources as one: in sequence, or mixed by weights.

In a mixture, a stateless hash of (seed, n) draws the source of document n, so the numbers of documents read
are enough to resume exactly. A source that ends leaves the draw; the others share its weight in proportion.
"""

from __future__ import annotations

import bisect
import itertools
import math
import numbers
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from saelens_lite.hashing import hashed_uniform

from .documents import FIRST_DOCUMENTS, Cursor, Document, DocumentStream, Source

_DRAW = 1
"""Second key of the hash: the seed alone draws the held-out split from the same indices, and what is held out
must not depend on the source."""

_DRAWS = 1024

_Open = Callable[[int, Cursor | None], DocumentStream]


def chained(sources: Sequence[Source], facts: dict[str, Any]) -> Source:
    first = [document for source in sources for document in source.first][:FIRST_DOCUMENTS]
    opens = [source.open for source in sources]
    return _joined(sources, facts, first, lambda cursor: _Chain(opens, cursor))


def open_mixture(sources: Sequence[Source], weights: Sequence[float], seed: int = 0) -> Source:
    """A mixture of sources: about weights[i] / sum(weights) of the documents come from source i, until one
    ends.

    weights: shares of documents, not of tokens
    raises: ValueError if there is not one positive weight for each source
    """
    check_weights(weights, len(sources))
    facts = {
        "mixture": [source.facts for source in sources],
        "weights": [float(weight) for weight in weights],
        "seed": seed,
    }
    looks = [lambda start, _, first=source.first: _Iterated(first[start:]) for source in sources]
    first = list(itertools.islice(_Mixture(looks, weights, seed, None), FIRST_DOCUMENTS))
    opens = [source.open for source in sources]
    return _joined(sources, facts, first, lambda cursor: _Mixture(opens, weights, seed, cursor))


def check_weights(weights: Sequence[float], n_datasets: int) -> None:
    """raises: ValueError if there is not one positive, finite weight for each dataset"""
    if len(weights) != n_datasets:
        raise ValueError(
            f"dataset_weights expected one weight for each dataset, got {len(weights)} for {n_datasets}"
        )
    for weight in weights:
        if not (isinstance(weight, numbers.Real) and weight > 0 and math.isfinite(weight)):
            raise ValueError(
                f"dataset_weights expected positive numbers, got {weight!r}: leave unwanted datasets out"
            )


def _joined(
    sources: Sequence[Source],
    facts: dict[str, Any],
    first: list[Document],
    at: Callable[[Cursor | None], DocumentStream],
) -> Source:
    def open_at(start: int, cursor: Cursor | None) -> DocumentStream:
        stream = at(cursor)
        if cursor is None:
            stream.skip(start)
        return stream

    numbers = [[source.n_documents for source in sources], [source.approximate_bytes for source in sources]]
    totals = [None if None in each else sum(each) for each in numbers]
    return Source(facts, first, *totals, open_at)


class _Part:
    """One of several sources, opened for its first document. Its cursor: [documents read, cursor there]."""

    def __init__(self, open_at: _Open, cursor: Cursor | None) -> None:
        self.open_at = open_at
        self.read, self.begin = cursor or (0, None)
        self.stream: DocumentStream | None = None

    def opened(self) -> DocumentStream:
        if self.stream is None:
            self.stream = self.open_at(self.read, self.begin)
        return self.stream

    def next(self) -> Document | None:
        document = next(self.opened(), None)
        self.read += document is not None
        return document

    def skip(self, n: int) -> int:
        passed = self.opened().skip(n)
        self.read += passed
        return passed

    def cursor(self) -> Cursor:
        return [self.read, self.begin if self.stream is None else self.stream.cursor()]


class _Chain(DocumentStream):
    """The cursor is [source, its part's cursor]."""

    def __init__(self, opens: Sequence[_Open], cursor: Cursor | None) -> None:
        self.opens = opens
        self.source, part = cursor or (0, None)
        self.part = _Part(opens[self.source], part)

    def __next__(self) -> Document:
        while (document := self.part.next()) is None:
            if not self._turn():
                raise StopIteration
        return document

    def cursor(self) -> Cursor:
        return [self.source, self.part.cursor()]

    def skip(self, n: int) -> int:
        passed = self.part.skip(n)
        while passed < n and self._turn():
            passed += self.part.skip(n - passed)
        return passed

    def _turn(self) -> bool:
        if self.source + 1 == len(self.opens):
            return False
        self.source += 1
        self.part = _Part(self.opens[self.source], None)
        return True


class _Mixture(DocumentStream):
    """The cursor is [documents read, the parts' cursors, null for an ended one]."""

    def __init__(
        self, opens: Sequence[_Open], weights: Sequence[float], seed: int, cursor: Cursor | None
    ) -> None:
        self.weights, self.seed = weights, seed
        self.n, parts = cursor or (0, [[0, None]] * len(opens))
        self.parts = [part and _Part(open_at, part) for open_at, part in zip(opens, parts, strict=True)]
        self._drawn_from = -_DRAWS
        self._weigh()

    def _weigh(self) -> None:
        self.live = [i for i, part in enumerate(self.parts) if part is not None]
        bounds = list(itertools.accumulate(self.weights[i] for i in self.live))
        self.bounds = [bound / bounds[-1] for bound in bounds]

    def _draw(self) -> int:
        if not 0 <= self.n - self._drawn_from < _DRAWS:
            self._drawn_from = self.n
            self._drawn = hashed_uniform(np.arange(self.n, self.n + _DRAWS), self.seed, _DRAW).tolist()
        return self.live[bisect.bisect_right(self.bounds, self._drawn[self.n - self._drawn_from])]

    def _advance(self, read: Callable[[_Part], Document | int | None]) -> Any:
        """Read from the drawn source, and draw again if it has ended; None at the end."""
        while self.live:
            source = self._draw()
            part = self.parts[source]
            if (result := read(part)) is not None:
                self.n += 1
                return result
            self.parts[source] = None
            self._weigh()
        return None

    def __next__(self) -> Document:
        if (document := self._advance(_Part.next)) is None:
            raise StopIteration
        return document

    def cursor(self) -> Cursor:
        return [self.n, [part and part.cursor() for part in self.parts]]

    def skip(self, n: int) -> int:
        passed = 0
        while passed < n and self._advance(lambda part: part.skip(1) or None) is not None:
            passed += 1
        return passed


class _Iterated(DocumentStream):
    def __init__(self, documents: list[Document]) -> None:
        self.documents = iter(documents)

    def __next__(self) -> Document:
        return next(self.documents)
