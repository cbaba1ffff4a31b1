"""Compiles the C kernels at first use and keeps the result in the user's cache folder."""

from __future__ import annotations

import ctypes
import functools
import hashlib
import logging
import os
import shutil
import subprocess
import tempfile
from pathlib import Path

log = logging.getLogger(__name__)

_SOURCES = [Path(__file__).with_name(name) for name in ("cpu.c", "screen.c", "tally.c", "rows.h")]
_COMPILE = ["-O3", "-march=native", "-fno-math-errno", "-fopenmp", "-fPIC", "-std=c11", "-c"]


def _cache_folder() -> Path:
    given = os.environ.get("XDG_CACHE_HOME")
    return (Path(given) if given else Path.home() / ".cache") / "saelens_lite"


def _host() -> str:
    """What -march=native depends on: in a shared home folder another processor must not load this library."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next((line for line in lines if line.startswith(("flags", "Features"))), "")
    except OSError:
        return ""


def _build(compiler: str) -> Path:
    source = b"".join(path.read_bytes() for path in _SOURCES)
    version = subprocess.run([compiler, "--version"], capture_output=True, check=True).stdout
    key = hashlib.blake2b(
        source + version + " ".join([*_COMPILE, _host()]).encode(), digest_size=8
    ).hexdigest()
    target = _cache_folder() / f"cpu-{key}.so"
    if target.exists():
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent) as folder:
        made, shared = [], Path(folder, "cpu.so")
        for path in _SOURCES:
            if path.suffix == ".c":
                made.append(str(Path(folder, path.name).with_suffix(".o")))
                subprocess.run(
                    [compiler, *_COMPILE, str(path), "-o", made[-1]], check=True, capture_output=True
                )
        # Linked without -fopenmp: GOMP_parallel is then found in the runtime that torch has loaded already.
        subprocess.run([compiler, "-shared", *made, "-o", str(shared)], check=True, capture_output=True)
        os.replace(shared, target)
    return target


@functools.cache
def library() -> ctypes.CDLL | None:
    compiler = shutil.which(os.environ.get("CC", "cc"))
    if compiler is None:
        return None
    try:
        loaded = ctypes.CDLL(str(_build(compiler)), mode=os.RTLD_NOW)
    except (OSError, RuntimeError, subprocess.CalledProcessError) as error:  # RuntimeError: no home folder
        log.info("kernels: cpu.c cannot be used here (%s); stock torch operators do the work", error)
        return None
    for name in ("select_topk", "collect", "keep_largest", "screened_topk", "screened_places"):
        getattr(loaded, name).restype = ctypes.c_int64
    loaded.nth_largest.restype = ctypes.c_float
    return loaded
