"""Writing an activation store: shards row by row, their commits, the manifest; nothing appears before it is whole.

The format is specified at the top of store.py. Rows are written to the file as they come, with plain writes (a full
disk must be an error, and through a memory map it is a crash), so memory does not grow with the shard.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import struct
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import IO, Any

import numpy as np
import safetensors.numpy
import torch
from torch import Tensor

from saelens_lite.errors import ShardError
from saelens_lite.tokens import PackedContexts

FORMAT = "saelens_lite activation store"
VERSION = 1

STORE_DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}
_SAFETENSORS_NAMES = {torch.bfloat16: "BF16", torch.float16: "F16", torch.float32: "F32"}


def shard_folder(store: Path, shard: int) -> Path:
    return store / "shards" / f"{shard:05d}"


def tokens_path(store: Path, shard: int) -> Path:
    return shard_folder(store, shard) / "tokens.safetensors"


def data_path(store: Path, shard: int, hook_point: str) -> Path:
    return shard_folder(store, shard) / f"{hook_point}.safetensors"


def commit_path(store: Path, shard: int, hook_point: str) -> Path:
    return shard_folder(store, shard) / f"{hook_point}.json"


@contextlib.contextmanager
def writing_shard(
    store: Path, shard: int, contexts: PackedContexts, n_documents: int, d_models: dict[str, int], dtype: torch.dtype
) -> Iterator[dict[str, RowWriter]]:
    """Write one shard: its tokens at once, its rows as they come, its commits when the block ends without an error.

    n_documents: source documents in the shard's span
    d_models: width of the rows, by hook point
    yields: a writer by hook point; each expects one row for every kept token of `contexts`, in order
    """
    n_rows, folder = contexts.n_rows, shard_folder(store, shard)
    tokens = _encode_tokens(contexts)
    write_file(tokens_path(store, shard), tokens, sync_name=False)
    with contextlib.ExitStack() as files:
        writers = {}
        for hook_point, d_model in d_models.items():
            file = files.enter_context(appearing(data_path(store, shard, hook_point), sync_name=False))
            writers[hook_point] = RowWriter(file, hook_point, n_rows, d_model, dtype)
        yield writers
        finished = {hook_point: writer.finish() for hook_point, writer in writers.items()}
    _sync_folder(folder)  # all data is on disk under its name before a commit can be
    for hook_point, facts in finished.items():
        record = {
            "shard": shard,
            "hook_point": hook_point,
            "rows": n_rows,
            "sequences": contexts.n_seqs,
            "first_document": contexts.first_doc,
            "documents": n_documents,
            "files": {
                "tokens.safetensors": {"bytes": len(tokens), "sha256": hashlib.sha256(tokens).hexdigest()},
                f"{hook_point}.safetensors": {"bytes": facts["bytes"], "sha256": facts["sha256"]},
            },
            "sum": facts["sum"],
            "sum_sq_norm": facts["sum_sq_norm"],
        }
        write_file(commit_path(store, shard, hook_point), encode_json(record), sync_name=False)
    _sync_folder(folder)


def finished_shards(store: Path, hook_points: Collection[str]) -> dict[int, int]:
    """Rows of each shard that is committed for every one of these hook points, by index.

    raises: ShardError if a committed file is missing or has another size than its commit records
    """
    finished = {}
    for folder in (store / "shards").glob("[0-9]*"):
        if not (folder.name.isdecimal() and folder.is_dir()):  # such as a shard that someone moved aside
            continue
        commits = [commit_path(store, int(folder.name), hook_point) for hook_point in hook_points]
        if all(commit.exists() for commit in commits):
            for record in map(read_json, commits):
                for name, file in record["files"].items():
                    check_size(folder / name, file["bytes"])
            finished[int(folder.name)] = record["rows"]
    return finished


class RowWriter:
    """Writes the rows of one shard and hook point as they come; `finish` completes the file.

    file: open binary file, written from its start
    hook_point: where the rows come from, for errors
    n_rows: rows that will come, known from packing
    dtype: dtype of the rows in the file
    """

    def __init__(self, file: IO[bytes], hook_point: str, n_rows: int, d_model: int, dtype: torch.dtype):
        self._file = file
        self._hook_point = hook_point
        self._hash = hashlib.sha256()
        self._dtype = dtype
        self._n_rows = n_rows
        self._bytes = 0
        self._norms = np.empty(n_rows, dtype=np.float32)
        self._n_written = 0
        self._sum = torch.zeros(d_model, dtype=torch.float64)
        self._write(_acts_header(n_rows, d_model, dtype))

    def append(self, rows: Tensor) -> None:
        """Write rows[n d_model], of any float dtype and on any device."""
        stored = rows.to(self._dtype).cpu().contiguous()
        stop = self._n_written + len(stored)
        torch.linalg.vector_norm(
            stored, dim=1, dtype=torch.float32, out=torch.from_numpy(self._norms[self._n_written : stop])
        )
        self._sum += stored.sum(0, dtype=torch.float64)
        self._write(stored.view(torch.uint8).numpy())
        self._n_written = stop

    def finish(self) -> dict[str, Any]:
        """Write the norms behind the rows. Returns bytes, sha256 and the two sums for the commit record."""
        assert self._n_written == self._n_rows, f"{self._n_written} rows came, {self._n_rows} were announced"
        self._write(self._norms)
        if not np.isfinite(self._norms).all():
            count = int((~np.isfinite(self._norms)).sum())
            raise ShardError(
                f"{count} of {self._n_rows} rows of {self._hook_point} are not finite as {self._dtype}: the activations "
                "exceed that type or are broken; harvest with dtype='bfloat16' or 'float32', or compute in float32"
            )
        return {
            "bytes": self._bytes,
            "sha256": self._hash.hexdigest(),
            "sum": self._sum.tolist(),
            "sum_sq_norm": float(np.square(self._norms, dtype=np.float64).sum()),
        }

    def _write(self, data: bytes | np.ndarray) -> None:
        view = memoryview(data).cast("B") if len(data) else b""
        self._file.write(view)
        self._hash.update(view)
        self._bytes += len(view)


def _acts_header(n_rows: int, d_model: int, dtype: torch.dtype) -> bytes:
    """The head of a safetensors file: its length (uint64, little-endian), then JSON padded to a multiple of 8 bytes."""
    acts_bytes = n_rows * d_model * dtype.itemsize
    header = {
        "acts": {
            "dtype": _SAFETENSORS_NAMES[dtype],
            "shape": [n_rows, d_model],
            "data_offsets": [0, acts_bytes],
        },
        "norm": {"dtype": "F32", "shape": [n_rows], "data_offsets": [acts_bytes, acts_bytes + 4 * n_rows]},
    }
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text


def _encode_tokens(contexts: PackedContexts) -> bytes:
    """The content of a shard's tokens.safetensors."""
    return safetensors.numpy.save(
        {
            "input_ids": np.ascontiguousarray(contexts.input_ids),
            "attended": np.ascontiguousarray(contexts.attended),
            "kept": np.ascontiguousarray(contexts.kept),
            "doc_id": np.ascontiguousarray(contexts.doc_id),
            "first_doc": np.array([contexts.first_doc], dtype=np.int64),
        }
    )


def write_manifest(store: Path, plan: dict[str, Any], n_shards: int, ended_by: str) -> None:
    """Seal a store whose shards are all committed.

    ended_by: "max_tokens" or "dataset", whichever came first
    """
    shards, totals = [], {"rows": 0, "sequences": 0, "documents": 0, "bytes": 0}
    for index in range(n_shards):
        shard: dict[str, Any] = {"hook_points": {}}
        for hook_point in plan["hook_points"]:
            content = commit_path(store, index, hook_point).read_bytes()
            record = json.loads(content)
            files = record["files"]
            shard["rows"], shard["tokens"] = record["rows"], {"bytes": files["tokens.safetensors"]["bytes"]}
            shard["hook_points"][hook_point] = {
                "bytes": files[f"{hook_point}.safetensors"]["bytes"],
                "commit_sha256": hashlib.sha256(content).hexdigest(),
            }
            totals["bytes"] += shard["hook_points"][hook_point]["bytes"]
        for name in ("rows", "sequences", "documents"):
            totals[name] += record[name]
        totals["bytes"] += shard["tokens"]["bytes"]
        shards.append(shard)
    surplus_rows = max(0, totals["rows"] - plan["max_tokens"])
    manifest = {
        "format": FORMAT,
        "version": VERSION,
        "plan_sha256": sha256_of_file(store / "plan.json"),
        "shards": shards,
        "totals": totals,
        "rows_used": shards[-1]["rows"] - surplus_rows,
        "ended_by": ended_by,
    }
    manifest["sha256"] = manifest_sha256(manifest)
    write_file(store / "manifest.json", encode_json(manifest))


def manifest_sha256(manifest: dict[str, Any]) -> str:
    """sha256 of the manifest without its own "sha256" entry."""
    return hashlib.sha256(encode_json({key: manifest[key] for key in manifest if key != "sha256"})).hexdigest()


def encode_json(content: dict[str, Any]) -> bytes:
    """The one spelling of a JSON file in a store. Floats are written so that they are read back exactly."""
    return (json.dumps(content, sort_keys=True, ensure_ascii=False, allow_nan=False) + "\n").encode()


def sha256_of_file(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read_json(path: Path, missing: str = "it belongs to the store") -> dict[str, Any]:
    """A JSON file of a store. raises: ShardError if it is missing or not a JSON object."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ShardError(f"{path} does not exist: {missing}") from error
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ShardError(f"{path} is not readable JSON ({error}): the file was altered") from error
    if not isinstance(content, dict):
        raise ShardError(f"{path} should hold a JSON object, it holds a {type(content).__name__}: the file was altered")
    return content


def check_version(plan: dict[str, Any], path: Path) -> None:
    """raises: ShardError unless `plan` is of the format and version that this code knows"""
    if plan.get("format") != FORMAT:
        raise ShardError(f"{path} should be a plan of format {FORMAT!r}, it states {plan.get('format')!r}")
    if plan.get("version") != VERSION:
        raise ShardError(
            f"{path} is of version {plan.get('version')}, this saelens_lite reads version {VERSION}: "
            "use the release that wrote it, or a newer one"
        )


def check_size(path: Path, size_bytes: int) -> None:
    found = path.stat().st_size if path.exists() else None
    if found != size_bytes:
        state = "is missing" if found is None else f"has {found} bytes"
        raise ShardError(
            f"{path} {state}, the store records {size_bytes} bytes: restore the file, or delete the shard's folder and "
            "manifest.json and give the harvest command again, which recomputes only what is missing"
        )


@contextlib.contextmanager
def appearing(path: Path, *, sync_name: bool = True) -> Iterator[IO[bytes]]:
    """A binary file to write that appears under `path` when the block ends, whole and on disk, or not at all.

    sync_name: also make the name durable before leaving; False where the caller syncs the folder for several files
    raises: ShardError for what the file system refuses, such as a full disk
    """
    temporary = path.with_name(path.name + ".tmp")
    try:
        with _refusals_named(path):
            _make_folder(path.parent)
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
        _sync_folder(path.parent)


def write_file(path: Path, content: bytes, *, sync_name: bool = True) -> None:
    """Write a whole file as `appearing` does."""
    with appearing(path, sync_name=sync_name) as file:
        file.write(content)


@contextlib.contextmanager
def _refusals_named(path: Path) -> Iterator[None]:
    """Turn what the file system refuses into an error that names the path and the way out."""
    try:
        yield
    except OSError as error:
        raise ShardError(
            f"{path} could not be written: {error.strerror or error}{_free_space(path)}; finished shards are kept: "
            "make room or mend the cause, then give the same command again"
        ) from error


def _make_folder(folder: Path) -> None:
    """Create `folder` and its parents, each durable in its own parent."""
    if not folder.is_dir():
        _make_folder(folder.parent)
        folder.mkdir(exist_ok=True)
        _sync_folder(folder.parent)


def _sync_folder(folder: Path) -> None:
    """Make the names in `folder` durable, where the system knows folders as files (POSIX)."""
    if os.name == "posix":
        with _refusals_named(folder):
            descriptor = os.open(folder, os.O_RDONLY)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)


def _free_space(path: Path) -> str:
    try:
        return f" ({shutil.disk_usage(path.parent).free:,} bytes are free there)"
    except OSError:
        return ""
