"""Documents of local text and jsonl files, found again by byte offset.

The cursor is [byte, line]: the offset of the next document in the decompressed file, and the lines before it.
A compressed file is decompressed up to there, unparsed.

Text is UTF-8 with any line ends (CR, LF, CRLF), cut as by the `text` loader of `datasets`: a line, empty ones
included; a paragraph, which ends before two line ends, without empty ones; or the whole file.
"""

from __future__ import annotations

import bz2
import contextlib
import gzip
import io
import json
import lzma
import re
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from saelens_lite.json_data import loads

from .documents import Cursor, Document, DocumentStream, as_document

OPENERS = {".gz": gzip.open, ".bz2": bz2.open, ".xz": lzma.open}
"""By suffix, the compressions that are read here."""

_BUFFER_BYTES = 1 << 18
MOST_BYTES = 1 << 28
"""Of a line or a document: a small compressed file may hold one that no memory does."""
_LINE = re.compile(rb"[^\r\n]*(?:\r\n|\r|\n)|[^\r\n]+\Z")


class _FileStream(DocumentStream):
    """The pieces of a file, each with the position after it; a subclass cuts and reads them."""

    def __init__(self, path: Path, cursor: Cursor | None) -> None:
        self.path = path
        self.byte, self.line = cursor or (0, 0)
        self.pieces = self._guarded()

    def __next__(self) -> Document:
        piece = next(self.pieces)
        with self._text_of(piece):
            return self._document(piece)

    def cursor(self) -> list[int]:
        return [self.byte, self.line]

    def skip(self, n: int) -> int:
        return sum(1 for _ in zip(range(n), self.pieces))

    @contextlib.contextmanager
    def _text_of(self, piece: bytes) -> Iterator[None]:
        try:
            yield
        except UnicodeDecodeError as error:
            raise ValueError(
                f"{self.path}, line {self.line}: expected UTF-8 text, got byte {piece[error.start]:#04x}: "
                "convert the file, or give it the suffix of its compression"
            ) from error

    def _guarded(self) -> Iterator[bytes]:
        with (
            OPENERS.get(self.path.suffix, open)(self.path, "rb") as raw,
            io.BufferedReader(raw, _BUFFER_BYTES) as file,
        ):
            try:
                file.seek(self.byte)
                yield from self._pieces(file)
            except (EOFError, OSError, zlib.error, lzma.LZMAError) as error:
                raise ValueError(
                    f"{self.path} is damaged, it cannot be read beyond line {self.line}: {error}"
                ) from error

    def _upto_newlines(self, file: io.BufferedReader) -> Iterator[bytes]:
        while line := file.readline(MOST_BYTES + 1):
            self._check_size(len(line))
            yield line

    def _held(self, lines: Iterable[bytes]) -> Iterator[bytes]:
        """The lines of one document."""
        total = 0
        for line in lines:
            total += len(line)
            self._check_size(total)
            yield line

    def _check_size(self, n_bytes: int) -> None:
        if n_bytes > MOST_BYTES:
            raise ValueError(
                f"{self.path}, line {self.line + 1}: expected lines and documents of at most "
                f"{MOST_BYTES >> 20} MiB, got a longer one: cut it into several"
            )

    def _pieces(self, file: io.BufferedReader) -> Iterator[bytes]:
        raise NotImplementedError

    def _document(self, piece: bytes) -> Document:
        raise NotImplementedError


class JsonLines(_FileStream):
    """A column of a jsonl file; blank lines are skipped, and a row without the column is an empty document.

    raises: ValueError, with file and line, for what is no JSON object, or whose column holds no document
    """

    def __init__(self, path: Path, text_column: str, cursor: Cursor | None = None) -> None:
        super().__init__(path, cursor)
        self.text_column = text_column

    def row(self, piece: bytes) -> dict[str, Any]:
        try:
            with self._text_of(piece):
                row = loads(piece)
        except json.JSONDecodeError as error:
            raise ValueError(
                f"{self.path}, line {self.line}: expected one JSON object a line, got {piece[:60]!r}: {error}"
            ) from error
        if not isinstance(row, dict):
            raise ValueError(
                f"{self.path}, line {self.line}: expected one JSON object a line, such as "
                f'{{"{self.text_column}": …}}, got {type(row).__name__}; an array over many lines is a '
                ".json file"
            )
        return row

    def _document(self, piece: bytes) -> Document:
        return as_document(self.row(piece).get(self.text_column), f"{self.path}, line {self.line}")

    def _pieces(self, file: io.BufferedReader) -> Iterator[bytes]:
        for line in self._upto_newlines(file):
            self.byte += len(line)
            self.line += 1
            if not line.isspace():
                yield line


def columns(path: Path, n_rows: int) -> list[str]:
    """The columns in the first rows of a jsonl file, in order of appearance."""
    stream = JsonLines(path, "text")
    return list(
        dict.fromkeys(name for _, piece in zip(range(n_rows), stream.pieces) for name in stream.row(piece))
    )


class TextFile(_FileStream):
    """The lines, paragraphs or all of a text file. raises: ValueError for bytes that are not UTF-8"""

    def __init__(self, path: Path, unit: str, cursor: Cursor | None = None) -> None:
        super().__init__(path, cursor)
        self.unit = unit

    def _document(self, piece: bytes) -> str:
        return piece.decode("utf-8")

    def _pieces(self, file: io.BufferedReader) -> Iterator[bytes]:
        if self.unit == "document":
            if self.line == 0:
                whole = b"".join(self._held(self._lines(file)))
                self.line = max(1, self.line)  # after an empty file is another place than before it, too
                yield whole
            return
        if self.unit == "line":
            yield from (line.removesuffix(b"\n") for line in self._lines(file))
            return
        paragraph: list[bytes] = []
        n_bytes = 0
        for line in self._lines(file):
            if line != b"\n" or not paragraph:
                paragraph.append(line)
                n_bytes += len(line)
                self._check_size(n_bytes)
                continue
            n_bytes = 0
            if ended := b"".join(paragraph)[:-1]:
                yield ended
            paragraph = []
        if paragraph:
            yield b"".join(paragraph)

    def _lines(self, file: io.BufferedReader) -> Iterator[bytes]:
        """Each line with its end as \\n; the position is after it."""
        for upto_newline in self._upto_newlines(file):
            for line in _LINE.findall(upto_newline) if b"\r" in upto_newline else [upto_newline]:
                self.byte += len(line)
                self.line += 1
                yield line.rstrip(b"\r\n") + b"\n" if line.endswith((b"\r", b"\n")) else line
