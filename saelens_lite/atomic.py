"""Files and folders that appear whole or not at all, even if the power fails.

What appears is written under a temporary name beside its place and synced to the disk, then renamed, and then
the folder that holds its name is synced.
"""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import IO


@contextlib.contextmanager
def appearing_file(path: Path, *, sync_name: bool = True) -> Iterator[IO[bytes]]:
    """A binary file to write, which appears at `path` when the block ends without an error.

    It replaces an older file; missing folders are made.
    sync_name: False where the caller syncs the folder once for several files
    """
    temporary = path.with_name(path.name + ".tmp")
    make_folder(path.parent)
    try:
        with open(temporary, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise
    if sync_name:
        sync(path.parent)


def write_file(path: str | Path, content: str | bytes) -> Path:
    """Write a whole file as `appearing_file` does, text as UTF-8; returns its path."""
    path = Path(path)
    with appearing_file(path) as file:
        file.write(content.encode() if isinstance(content, str) else content)
    return path


@contextlib.contextmanager
def appearing_folder(path: Path) -> Iterator[Path]:
    """A hidden folder to fill, which appears at `path` when the block ends without an error.

    It replaces an older folder; missing parents are made.
    """
    staged = path.with_name(f".{path.name}.tmp")
    make_folder(path.parent)
    shutil.rmtree(staged, ignore_errors=True)  # left by a process that was killed
    try:
        staged.mkdir()
        yield staged
        for written in (*staged.rglob("*"), staged):
            sync(written)
        if path.exists():
            discard(path)
        os.replace(staged, path)
    finally:
        shutil.rmtree(staged, ignore_errors=True)
    sync(path.parent)


def make_folder(folder: Path) -> None:
    """Create `folder` and its parents, each durable in its own parent."""
    if not folder.is_dir():
        make_folder(folder.parent)
        folder.mkdir(exist_ok=True)
        sync(folder.parent)


def sync(path: Path) -> None:
    """Put on the disk what was written to a file, or the names in a folder."""
    posix = os.name == "posix"
    if not posix and path.is_dir():
        return  # Windows does not open folders as files
    descriptor = os.open(path, os.O_RDONLY if posix else os.O_RDWR)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def discard(folder: Path) -> None:
    """Remove a folder so that under its name it is whole or absent, even after a crash."""
    hidden = folder.with_name(f".{folder.name}.old")
    shutil.rmtree(hidden, ignore_errors=True)
    os.replace(folder, hidden)
    sync(folder.parent)
    shutil.rmtree(hidden)
