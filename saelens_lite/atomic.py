"""Files and folders that appear whole or not at all, even if the power fails; folders that go again.

What appears is written under a temporary name beside its place and synced to the disk, then renamed, and then
the folder that holds its name is synced.
"""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import shutil
import signal
import stat
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from filelock import FileLock, Timeout

_TEMPORARY, _IN_USE = "saelens_lite-folder-", ".in-use"
_BEGINNING_S = 60.0
"""A temporary folder is not yet locked when it is made; after this time, one without lock is left over."""


@contextlib.contextmanager
def appearing_file(
    path: Path, *, sync_name: bool = True, temporary: Path | None = None
) -> Iterator[IO[bytes]]:
    """A binary file to write, which appears at `path` when the block ends without an error.

    It replaces an older file; missing folders are made. A device or pipe, such as /dev/null, is written to.
    sync_name: False where the caller syncs the folder once for several files
    temporary: a name that must be free; None takes `path` with .tmp, which a killed call may have left
    """
    mode = "wb" if temporary is None else "xb"
    if is_special(path):
        with open(path, "wb") as file:
            yield file
        return
    temporary = path.with_name(path.name + ".tmp") if temporary is None else temporary
    make_folder(path.parent)
    if temporary.is_symlink():
        raise FileExistsError(errno.EEXIST, "a symbolic link has a name that is needed", str(temporary))
    try:
        with open(temporary, mode) as file:
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


def write_file(path: str | Path, content: str | bytes, *, shared: bool = True) -> Path:
    """Write a whole file as `appearing_file` does, text as UTF-8; returns its path.

    shared: whether its folder may hold files of others, which no temporary name then hits
    """
    path = Path(path)
    temporary = path.with_name(f".{secrets.token_hex(8)}.tmp") if shared else None
    with appearing_file(path, temporary=temporary) as file:
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


@contextlib.contextmanager
def temporary_folder() -> Iterator[Path]:
    """A folder that is removed at the end, also after SIGTERM; those that killed processes left go first."""
    for left in Path(tempfile.gettempdir()).glob(f"{_TEMPORARY}*"):
        with contextlib.suppress(OSError, NotImplementedError, Timeout):
            facts = left.lstat()
            mine = stat.S_ISDIR(facts.st_mode) and (os.name != "posix" or facts.st_uid == os.geteuid())
            if mine and time.time() - facts.st_mtime > _BEGINNING_S:
                with FileLock(left / _IN_USE, blocking=False, fallback_to_soft=False):
                    shutil.rmtree(left, ignore_errors=True)
    with tempfile.TemporaryDirectory(prefix=_TEMPORARY, ignore_cleanup_errors=True) as folder:
        with contextlib.ExitStack() as held:
            with contextlib.suppress(OSError, NotImplementedError):  # without locks, nobody removes it
                held.enter_context(FileLock(Path(folder, _IN_USE), fallback_to_soft=False))
            held.enter_context(_sigterm_as_exit())
            yield Path(folder)


@contextlib.contextmanager
def _sigterm_as_exit() -> Iterator[None]:
    """Let SIGTERM end the block as an error does; a second one ends the process."""
    alone = threading.current_thread() is threading.main_thread()
    if not alone or signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL:
        yield
        return

    def leave(number: int, frame: Any) -> None:
        signal.signal(number, signal.SIG_DFL)
        raise SystemExit(128 + number)

    signal.signal(signal.SIGTERM, leave)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


def check_output(path: str | Path, *, folder: bool = False) -> None:
    """Refuse what could not be written at a path, before the work is done whose result shall stand there.

    raises: ValueError where something else has the name, or the folder above cannot be written
    """
    path, wanted = Path(path), "a folder" if folder else "a file"
    if not folder and is_special(path):
        return
    if path.exists() and path.is_dir() != folder:
        there = "a folder" if path.is_dir() else "a file"
        raise ValueError(
            f"{path} expected {wanted} to write, there is {there} of this name: choose another name"
        )
    above = path.absolute()
    while not above.exists():
        above = above.parent
        if above.exists() and not above.is_dir():
            raise ValueError(f"{path} expected {wanted} in a folder, {above} is a file: choose another place")
    above = above if above.is_dir() else above.parent
    if not os.access(above, os.W_OK):
        raise ValueError(
            f"{path} expected a folder that can be written, {above} cannot: choose another place"
        )


def is_special(path: Path) -> bool:
    """Whether a device, pipe or socket stands at a path, which no file may replace; links are followed."""
    try:
        return not any(kind(path.stat().st_mode) for kind in (stat.S_ISREG, stat.S_ISDIR))
    except OSError:
        return False


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
    shutil.rmtree(hidden, ignore_errors=True)  # where it cannot go, or another process removes it too
