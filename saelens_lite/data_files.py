"""The kinds of data files, told by their suffixes."""

from __future__ import annotations

from pathlib import Path

TEXT = {".txt": "text", ".text": "text", ".md": "text"}
TABLES = {".jsonl": "json", ".json": "json", ".csv": "csv", ".parquet": "parquet"}
"""The `datasets` loader of each suffix."""

COMPRESSIONS = {".gz", ".bz2", ".xz", ".zst"}


def loader_of(name: str) -> str | None:
    """The `datasets` loader for a file of this name, compressed or not; None if it is no data file's name."""
    suffixes = [suffix for suffix in Path(name).suffixes if suffix not in COMPRESSIONS]
    return (TEXT | TABLES).get(suffixes[-1]) if suffixes else None
