"""The folder of a store: local, or any URL that fsspec knows (s3://, gs://, memory://, …).

A file appears whole or not at all: locally as atomic.py writes it, on an object store by one upload. What the
system refuses becomes a ShardError that names the file.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import logging
import os
import shutil
import tempfile
from abc import ABC, abstractmethod
from collections.abc import Collection, Iterable, Iterator
from pathlib import Path
from typing import IO
from urllib.parse import unquote

from filelock import FileLock, Timeout

from saelens_lite.atomic import appearing_file, make_folder, sync, temporary_folder
from saelens_lite.errors import ShardError

logger = logging.getLogger(__name__)

LOCK = ".lock"
"""The file that `Folder.locked` locks, there while a process works in the folder.

The system frees the lock of a killed process, so a left-over file is no obstacle."""

_NO_LOCKS = {errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOTSUP, errno.EINVAL}
"""What file systems without locks answer, as some network ones do."""

_CACHE = "SAELENS_LITE_CACHE"


def open_folder(location: str | os.PathLike[str] | Folder) -> Folder:
    """The folder at a local path, a file:// URL, or another URL that fsspec can open.

    Credentials and endpoints come from fsspec's own configuration, such as FSSPEC_S3_ENDPOINT_URL.
    raises: ValueError for a URL whose protocol is unknown, or whose package is not installed
    """
    if isinstance(location, Folder):
        return location
    text = os.fspath(location)
    scheme, found, rest = text.partition("://")
    if found and scheme not in ("file", "local"):
        return RemoteFolder(text)
    return LocalFolder(Path(unquote(rest) if found else text))


class Folder(ABC):
    """Files under one root, by names such as "shards/00000/tokens.safetensors"."""

    @abstractmethod
    def __str__(self) -> str: ...

    @abstractmethod
    def sizes(self, under: str = "") -> dict[str, int]:
        """Bytes of every file under a subfolder, by name; empty without such a folder."""

    @abstractmethod
    def sizes_of(self, names: Iterable[str]) -> Iterator[int | None]:
        """Bytes of each of many files; None for one that does not exist."""

    @abstractmethod
    def is_empty(self, but_for: Collection[str] = ()) -> bool:
        """Whether nothing is in the folder, or it does not exist; its lock and files of these names do not
        count."""

    @abstractmethod
    def size(self, name: str) -> int | None:
        """Bytes of one file; None if it does not exist."""

    @abstractmethod
    def read(self, name: str) -> bytes:
        """raises: FileNotFoundError"""

    @abstractmethod
    def opened(self, name: str) -> IO[bytes]:
        """A binary file to read. raises: FileNotFoundError"""

    @abstractmethod
    def local(self, name: str, cache_key: str) -> Path:
        """A local path to read the file from: its own, or that of a copy in the cache.

        cache_key: names the content of the folder; a copy under the same key is used again
        """

    @abstractmethod
    def appearing(self, name: str, *, sync_name: bool = True) -> contextlib.AbstractContextManager[IO[bytes]]:
        """A binary file to write, which appears under `name` when the block ends without an error.

        sync_name: False where the caller syncs the subfolder once for several files
        raises: ShardError for what the system refuses, such as a full disk
        """

    @abstractmethod
    def sync_names(self, under: str) -> None:
        """Make the names in a subfolder durable."""

    @abstractmethod
    def append_line(self, name: str, line: bytes) -> None:
        """Append to a file that need not survive a crash; an unfinished line before it is ended first."""

    @abstractmethod
    def move(self, name: str, to: str) -> None:
        """Give a file another name, durably."""

    @abstractmethod
    def remove(self, name: str) -> None:
        """Remove a file if it exists, durably."""

    @abstractmethod
    def free_bytes(self) -> int | None:
        """Room on the folder's disk; None if unknown."""

    @abstractmethod
    def locked(self) -> contextlib.AbstractContextManager[bool]:
        """Keep other processes out for the block: False if one of them is in already, otherwise True, also
        where the system has no locks."""

    def write(self, name: str, content: bytes, *, sync_name: bool = True) -> None:
        """Write a file as `appearing` does."""
        with self.appearing(name, sync_name=sync_name) as file:
            file.write(content)

    def describe(self, name: str) -> str:
        """The file as the user would name it."""
        return f"{self}/{name}"

    def sha256(self, name: str) -> str:
        with self.opened(name) as file:
            return hashlib.file_digest(file, "sha256").hexdigest()  # type: ignore[arg-type]


class LocalFolder(Folder):
    """A folder of this machine's file system."""

    def __init__(self, root: Path):
        self.root = root

    def __str__(self) -> str:
        return str(self.root)

    def sizes(self, under: str = "") -> dict[str, int]:
        found = {}
        for folder, _, names in os.walk(self.root / under):
            inside = Path(folder).relative_to(self.root).as_posix()
            prefix = "" if inside == "." else f"{inside}/"
            for name in names:
                with contextlib.suppress(FileNotFoundError):  # another process may move its temporary file
                    found[prefix + name] = os.stat(os.path.join(folder, name)).st_size
        return found

    def sizes_of(self, names: Iterable[str]) -> Iterator[int | None]:
        for name in names:
            try:
                yield os.stat(f"{self.root}/{name}").st_size
            except (FileNotFoundError, NotADirectoryError):
                yield None

    def is_empty(self, but_for: Collection[str] = ()) -> bool:
        return not self.root.is_dir() or {*os.listdir(self.root)} <= {LOCK, *but_for}

    def size(self, name: str) -> int | None:
        path = self.root / name
        return path.stat().st_size if path.is_file() else None

    def read(self, name: str) -> bytes:
        return (self.root / name).read_bytes()

    def opened(self, name: str) -> IO[bytes]:
        return open(self.root / name, "rb")

    def local(self, name: str, cache_key: str) -> Path:
        return self.root / name

    @contextlib.contextmanager
    def appearing(self, name: str, *, sync_name: bool = True) -> Iterator[IO[bytes]]:
        self._check_inside(Path(name).parent)
        with self._refusals_named(name), appearing_file(self.root / name, sync_name=sync_name) as file:
            yield file

    def sync_names(self, under: str) -> None:
        with self._refusals_named(under):
            sync(self.root / under)

    def append_line(self, name: str, line: bytes) -> None:
        self._check_inside(Path(name))
        with self._refusals_named(name), open(self.root / name, "a+b") as file:
            if file.tell():
                file.seek(-1, os.SEEK_END)
                line = line if file.read() == b"\n" else b"\n" + line
            file.write(line)

    def move(self, name: str, to: str) -> None:
        for path in (name, to):
            self._check_inside(Path(path).parent)
        with self._refusals_named(name):
            make_folder((self.root / to).parent)
            os.replace(self.root / name, self.root / to)
            sync((self.root / to).parent)
            sync((self.root / name).parent)

    def remove(self, name: str) -> None:
        self._check_inside(Path(name).parent)
        with self._refusals_named(name):
            (self.root / name).unlink(missing_ok=True)
            sync((self.root / name).parent)

    def free_bytes(self) -> int | None:
        folder = self.root.absolute()
        while not folder.exists():
            folder = folder.parent
        return shutil.disk_usage(folder).free

    @contextlib.contextmanager
    def locked(self) -> Iterator[bool]:
        self._check_inside(Path(LOCK))
        if self.size(LOCK):  # ours are empty
            raise ShardError(f"{self.describe(LOCK)} is not a lock of ours: choose another folder")
        lock, ours = FileLock(self.root / LOCK, blocking=False, fallback_to_soft=False), True
        with self._refusals_named(LOCK):
            try:
                lock.acquire()
            except Timeout:
                ours = False
            except OSError as error:
                if error.errno not in _NO_LOCKS:
                    raise
                logger.warning("%s cannot be locked (%s): nothing keeps a second process out", self, error)
        try:
            yield ours
        finally:
            if ours:  # removed before it is released: whoever waits for the file finds that it is gone
                with contextlib.suppress(OSError):
                    os.unlink(self.root / LOCK)
                lock.release()

    def _check_inside(self, name: Path) -> None:
        """raises: ShardError for a name behind a symbolic link inside the folder, which may lead out of it"""
        for path in (name, *name.parents):
            if path.name and (self.root / path).is_symlink():
                raise ShardError(
                    f"{self.describe(str(path))} is a symbolic link, and nothing is written through one "
                    "inside a "
                    "folder: replace it by what it stands for"
                )

    @contextlib.contextmanager
    def _refusals_named(self, name: str) -> Iterator[None]:
        """Turn what the file system refuses into an error that names the path and the way out."""
        try:
            yield
        except (FileExistsError, NotADirectoryError) as error:
            raise ShardError(
                f"{self.describe(name)} could not be written: {error.strerror}: a file is in the way of a "
                "folder; choose another folder"
            ) from error
        except OSError as error:
            free = ""
            with contextlib.suppress(OSError):
                free = f" ({self.free_bytes():,} bytes are free there)"
            raise ShardError(
                f"{self.describe(name)} could not be written: {error.strerror or error}{free}; finished "
                "shards are kept: make room or mend the cause, then run the same command again"
            ) from error


class RemoteFolder(Folder):
    """A folder at an fsspec URL; reading keeps copies in SAELENS_LITE_CACHE, or ~/.cache/saelens_lite."""

    def __init__(self, url: str):
        import fsspec

        self.url = url.rstrip("/")
        try:
            self.fs, self._root = fsspec.core.url_to_fs(self.url)
        except (ImportError, ValueError) as error:
            raise ValueError(f"{url} expected a folder or a URL that fsspec can open: {error}") from error
        self._root = self._root.rstrip("/")

    def __str__(self) -> str:
        return self.url

    def sizes(self, under: str = "") -> dict[str, int]:
        self.fs.invalidate_cache()
        with self._reading(under):
            found = self.fs.find(self._path(under), detail=True)
        return {path.removeprefix(self._root).lstrip("/"): info["size"] for path, info in found.items()}

    def sizes_of(self, names: Iterable[str]) -> Iterator[int | None]:
        return map(self.sizes().get, names)

    def is_empty(self, but_for: Collection[str] = ()) -> bool:
        return all(name in but_for for name in self.sizes())

    def size(self, name: str) -> int | None:
        self.fs.invalidate_cache()
        with contextlib.suppress(FileNotFoundError), self._reading(name):
            return self.fs.info(self._path(name))["size"]
        return None

    def read(self, name: str) -> bytes:
        with self._reading(name):
            return self.fs.cat_file(self._path(name))

    def opened(self, name: str) -> IO[bytes]:
        with self._reading(name):
            return self.fs.open(self._path(name), "rb")

    def local(self, name: str, cache_key: str) -> Path:
        cached = cache_folder() / "stores" / cache_key / name
        assert ".." not in cached.parts and not name.startswith("/"), f"{name} leads out of the cache"
        if not cached.exists():
            cached.parent.mkdir(parents=True, exist_ok=True)
            descriptor, temporary = tempfile.mkstemp(dir=cached.parent, prefix=cached.name)
            os.close(descriptor)
            try:
                with self._reading(name):
                    self.fs.get_file(self._path(name), temporary)
                os.replace(temporary, cached)
            finally:
                Path(temporary).unlink(missing_ok=True)
        return cached

    @contextlib.contextmanager
    def appearing(self, name: str, *, sync_name: bool = True) -> Iterator[IO[bytes]]:
        with temporary_folder() as folder:
            temporary = folder / "upload"
            try:
                with open(temporary, "xb") as file:
                    yield file
            except OSError as error:
                raise ShardError(
                    f"{self.describe(name)} could not be written: {error.strerror or error} in "
                    f"{tempfile.gettempdir()}, where files wait for their upload; make room or set TMPDIR, "
                    "then run the same command again"
                ) from error
            with self._writing(name):
                self.fs.put_file(str(temporary), self._path(name))

    def sync_names(self, under: str) -> None:
        """Nothing: an object store knows no folders."""

    def append_line(self, name: str, line: bytes) -> None:
        """The file is uploaded anew: object stores cannot append."""
        try:
            before = self.read(name)
        except FileNotFoundError:
            before = b""
        with self._writing(name):
            self.fs.pipe_file(self._path(name), before + line)

    def move(self, name: str, to: str) -> None:
        with self._writing(name):
            self.fs.mv(self._path(name), self._path(to))

    def remove(self, name: str) -> None:
        if self.size(name) is not None:
            with self._writing(name):
                self.fs.rm_file(self._path(name))

    def free_bytes(self) -> int | None:
        return None

    @contextlib.contextmanager
    def locked(self) -> Iterator[bool]:
        yield True  # object stores have no locks

    def _path(self, name: str) -> str:
        return f"{self._root}/{name}".rstrip("/")

    @contextlib.contextmanager
    def _reading(self, name: str) -> Iterator[None]:
        """Name the file in errors of the other side; its absence stays a FileNotFoundError."""
        try:
            yield
        except FileNotFoundError:
            raise
        except Exception as error:  # each implementation has its own types
            raise ShardError(
                f"{self.describe(name)} could not be reached: {error}; check the URL, the credentials and "
                "the network, then run the same command again"
            ) from error

    @contextlib.contextmanager
    def _writing(self, name: str) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # as above
            raise ShardError(
                f"{self.describe(name)} could not be written: {error}; finished shards are kept: mend the "
                "cause, then run the same command again"
            ) from error


def cache_folder() -> Path:
    """The folder for copies of remote files, which may be deleted at any time."""
    return Path(os.environ.get(_CACHE) or Path.home() / ".cache" / "saelens_lite")
