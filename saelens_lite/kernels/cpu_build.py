"""Compiles the C kernels at first use and keeps the result in the user's cache folder.

<cache>/saelens_lite/cpu-<key>-<digest>.so

key: of the sources, the flags and the processor, as several machines may share a home folder
digest: of the file itself; a file that does not have it (cut short, say) is made anew and never loaded

What another user may have written is not loaded. Where nothing can be kept, each process compiles for itself
in a folder that only it can write.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import hashlib
import logging
import os
import platform
import shlex
import shutil
import stat
import subprocess
import tempfile
from pathlib import Path

from filelock import FileLock

from saelens_lite.atomic import sync

log = logging.getLogger(__name__)

_SOURCES = [Path(__file__).with_name(name) for name in ("cpu.c", "screen.c", "tally.c", "rows.h")]
_COMPILE = ["-O3", "-march=native", "-fno-math-errno", "-fopenmp", "-fPIC", "-std=c11", "-c"]
_OTHERS_WRITE = stat.S_IWGRP | stat.S_IWOTH


@functools.cache
def library() -> ctypes.CDLL | None:
    """The kernels; None where they cannot be compiled or loaded. Whatever is amiss is logged once."""
    key, unkept = _key(), None
    try:
        cache = _cache_folder()
        if (loaded := _kept(cache, key)) is not None:
            return loaded
    except (OSError, RuntimeError) as error:  # RuntimeError: there is no home folder
        cache, unkept = None, error
    try:
        with contextlib.ExitStack() as stack:
            if cache is not None:
                with contextlib.suppress(OSError, NotImplementedError):  # a file system without locks
                    stack.enter_context(FileLock(cache / "lock", fallback_to_soft=False))
                if (loaded := _kept(cache, key)) is not None:  # made by another process meanwhile
                    return loaded
            made = _compiled(Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="saelens_lite-"))))
            try:
                if cache is not None:
                    return _loaded(_keep(made, cache, key))
            except OSError as error:
                unkept = error
            loaded = _loaded(made)
    except (OSError, ValueError) as error:
        log.warning(
            "the C kernels cannot be used: %s. Stock torch operators do the work, several times slower: "
            "install a C compiler or name one in CC; SAELENS_LITE_KERNELS=torch asks for the operators", error
        )  # fmt: skip
        return None
    log.warning(
        "the C kernels cannot be kept: %s. Each process compiles them anew: set XDG_CACHE_HOME to a folder "
        "that you alone can write", unkept
    )  # fmt: skip
    return loaded


def _key() -> str:
    """Without the compiler, which need not be there once the library is."""
    told = " ".join([*_COMPILE, platform.machine(), _processor()]).encode()
    return _digest(b"".join(path.read_bytes() for path in _SOURCES) + told)


def _processor() -> str:
    """What -march=native depends on."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next((line for line in lines if line.startswith(("flags", "Features"))), "")
    except OSError:
        return ""


def _digest(content: bytes) -> str:
    return hashlib.blake2b(content, digest_size=8).hexdigest()


def _cache_folder() -> Path:
    """The folder of the library, made if need be. raises: OSError where others could put a library there"""
    given = os.environ.get("XDG_CACHE_HOME")
    folder = (Path(given) if given else Path.home() / ".cache") / "saelens_lite"
    for path in (*reversed(folder.parents), folder):
        path.mkdir(mode=0o700, exist_ok=True)
    if os.name == "posix":
        if folder.lstat().st_uid == os.geteuid() and folder.is_dir() and not folder.is_symlink():
            folder.chmod(folder.stat().st_mode & ~_OTHERS_WRITE)  # a version before left it to the umask
        above = (path.stat().st_mode for path in folder.resolve().parents)
        if not _only_ours(folder.stat()) or any(m & stat.S_IWOTH and not m & stat.S_ISVTX for m in above):
            raise PermissionError(f"another user owns {folder} or can write there")
    return folder


def _only_ours(facts: os.stat_result) -> bool:
    """Whether a file or folder is this user's, or the system's, and only its owner writes to it."""
    return os.name != "posix" or (facts.st_uid in (0, os.geteuid()) and not facts.st_mode & _OTHERS_WRITE)


def _kept(cache: Path, key: str) -> ctypes.CDLL | None:
    """The library of an earlier process; damaged ones are removed."""
    for path in cache.glob(f"cpu-{key}-*.so"):
        with contextlib.suppress(OSError):
            if stat.S_ISREG(path.lstat().st_mode) and _only_ours(path.lstat()):
                if path.stem == f"cpu-{key}-{_digest(path.read_bytes())}":
                    return _loaded(path)
                path.unlink()
    return None


def _loaded(path: Path) -> ctypes.CDLL:
    loaded = ctypes.CDLL(str(path), mode=os.RTLD_NOW)
    for name in ("select_topk", "collect", "keep_largest", "screened_topk", "screened_places"):
        getattr(loaded, name).restype = ctypes.c_int64
    loaded.nth_largest.restype = ctypes.c_float
    return loaded


def _keep(made: Path, cache: Path, key: str) -> Path:
    """A copy in the cache folder, which appears there whole. raises: OSError"""
    target = cache / f"cpu-{key}-{_digest(made.read_bytes())}.so"
    descriptor, temporary = tempfile.mkstemp(dir=cache)
    try:
        with open(descriptor, "wb") as file:
            file.write(made.read_bytes())
        sync(Path(temporary))
        os.replace(temporary, target)
    finally:
        Path(temporary).unlink(missing_ok=True)
    sync(cache)
    return target


def _compiled(folder: Path) -> Path:
    """raises: OSError without a compiler, or with what it says; ValueError for a CC that cannot be split"""
    compiler = shlex.split(os.environ.get("CC") or "cc")
    if not compiler or shutil.which(compiler[0]) is None:
        raise FileNotFoundError(f"there is no compiler {shlex.join(compiler)!r}")
    made, shared = [], folder / "cpu.so"
    for path in _SOURCES:
        if path.suffix == ".c":
            made.append(str(folder / path.with_suffix(".o").name))
            _run([*compiler, *_COMPILE, str(path), "-o", made[-1]])
    # Linked without -fopenmp: GOMP_parallel is then found in the runtime that torch has loaded already.
    _run([*compiler, "-shared", *made, "-o", str(shared)])
    return shared


def _run(command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True, errors="replace")
    if done.returncode:
        said = done.stderr.strip().splitlines()
        raise OSError(
            f"{shlex.join(command)} ended with {done.returncode}: {said[-1] if said else 'no word'}"
        )
