"""TODO clause of saelens_lite/atomic.py."""

from __future__ import annotations

import os
import shutil
from pathlib import Path


def write_page(path: str | Path, text: str) -> Path:
    """Write a page, whole or not at all, replacing one that is there; its folder is made. Returns the
    path."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text(text, encoding="utf-8")
    os.replace(temporary, path)
    return path


def sync(path: Path) -> None:
    """Have the disk hold what was written to a file, or a folder's list of names."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _make_folder(folder: Path) -> None:
    """Create `folder` and its parents, each durable in its own parent."""
    if not folder.is_dir():
        _make_folder(folder.parent)
        folder.mkdir(exist_ok=True)
        _sync_folder(folder.parent)


def _sync_folder(folder: Path) -> None:
    """Make the names in `folder` durable, where the system knows folders as files (POSIX)."""
    if os.name == "posix":
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _discard(folder: Path) -> None:
    """Remove a folder so that it is whole or absent under its name, even after a crash."""
    hidden = folder.with_name(f".{folder.name}.old")
    shutil.rmtree(hidden, ignore_errors=True)
    os.replace(folder, hidden)
    sync(folder.parent)
    shutil.rmtree(hidden)
