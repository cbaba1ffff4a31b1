"""The kinds of data files, told by their suffixes, and their lines."""

from __future__ import annotations

import bz2
import gzip
import lzma
import os
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

TEXT = {".txt": "text", ".text": "text", ".md": "text"}
TABLES = {".jsonl": "json", ".json": "json", ".csv": "csv", ".parquet": "parquet"}
"""The `datasets` loader of each suffix."""

COMPRESSIONS = {".gz", ".bz2", ".xz", ".zst"}


def loader_of(name: str) -> str | None:
    """The `datasets` loader for a file of this name, compressed or not; None if it is no data file's name."""
    suffixes = [suffix for suffix in Path(name).suffixes if suffix not in COMPRESSIONS]
    return (TEXT | TABLES).get(suffixes[-1]) if suffixes else None


LONGEST_LINE = 1 << 24
"""Characters: a small compressed file may hold a line that no memory does."""
_OPENERS: dict[str, Any] = {".gz": gzip.open, ".bz2": bz2.open, ".xz": lzma.open}


def text_lines(path: str | os.PathLike[str]) -> Iterator[str]:
    """The lines of a UTF-8 file, compressed (.gz, .bz2, .xz) or not.

    raises: ValueError for what is not as its name says, or a line that is too long
    """
    with _OPENERS.get(Path(path).suffix.lower(), open)(path, "rt", encoding="utf-8", newline="\n") as file:
        try:
            while line := file.readline(LONGEST_LINE):
                if len(line) == LONGEST_LINE:
                    raise ValueError(f"{path} expected lines below {LONGEST_LINE:,} characters")
                yield line
        except (UnicodeDecodeError, EOFError, zlib.error, lzma.LZMAError, OSError) as error:
            raise ValueError(f"{path} expected UTF-8 text, compressed as its name says: {error}") from error


def opened(path: str | os.PathLike[str]) -> IO[bytes]:
    """A file's bytes, as they were before a compression (.gz, .bz2, .xz) that its name tells."""
    return _OPENERS.get(Path(path).suffix.lower(), open)(path, "rb")
