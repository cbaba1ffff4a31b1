"""Writing an activation store: shards row by row, their commits, the manifest; nothing appears before it is whole.

The format is specified at the top of store.py. Rows are written to the file as they come, with plain writes (a full
disk must be an error, and through a memory map it is a crash), so memory does not grow with the shard.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import struct
from collections.abc import Collection, Iterator
from typing import IO, Any

import numpy as np
import safetensors.numpy
import torch
from torch import Tensor

from saelens_lite.errors import ShardError
from saelens_lite.files import Folder
from saelens_lite.tokens import PackedContexts

FORMAT = "saelens_lite activation store"
VERSION = 1

STORE_DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}
_SAFETENSORS_NAMES = {torch.bfloat16: "BF16", torch.float16: "F16", torch.float32: "F32"}


def shard_name(shard: int) -> str:
    return f"shards/{shard:05d}"


def tokens_name(shard: int) -> str:
    return f"{shard_name(shard)}/tokens.safetensors"


def data_name(shard: int, hook_point: str) -> str:
    return f"{shard_name(shard)}/{hook_point}.safetensors"


def commit_name(shard: int, hook_point: str) -> str:
    return f"{shard_name(shard)}/{hook_point}.json"


@contextlib.contextmanager
def writing_shard(
    store: Folder, shard: int, contexts: PackedContexts, n_documents: int, d_models: dict[str, int], dtype: torch.dtype
) -> Iterator[dict[str, RowWriter]]:
    """Write one shard: its tokens at once, its rows as they come, its commits when the block ends without an error.

    n_documents: source documents in the shard's span
    d_models: width of the rows, by hook point
    yields: a writer by hook point; each expects one row for every kept token of `contexts`, in order
    """
    n_rows, tokens = contexts.n_rows, _encode_tokens(contexts)
    store.write(tokens_name(shard), tokens, sync_name=False)
    with contextlib.ExitStack() as files:
        writers = {}
        for hook_point, d_model in d_models.items():
            file = files.enter_context(store.appearing(data_name(shard, hook_point), sync_name=False))
            writers[hook_point] = RowWriter(file, hook_point, n_rows, d_model, dtype)
        yield writers
        finished = {hook_point: writer.finish() for hook_point, writer in writers.items()}
    store.sync_names(shard_name(shard))  # all data is on disk under its name before a commit can be
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
        store.write(commit_name(shard, hook_point), encode_json(record), sync_name=False)
    store.sync_names(shard_name(shard))


def finished_shards(store: Folder, hook_points: Collection[str]) -> dict[int, int]:
    """Rows of each shard that is committed for every one of these hook points, by index, in order.

    raises: ShardError if a committed file is missing or has another size than its commit records
    """
    sizes, finished = store.sizes("shards"), {}
    numbers = {name.split("/")[1] for name in sizes}
    for shard in sorted(int(number) for number in numbers if number.isdecimal()):
        commits = [commit_name(shard, hook_point) for hook_point in hook_points]
        if all(commit in sizes for commit in commits):
            for record in (read_json(store, commit) for commit in commits):
                for file, facts in record["files"].items():
                    name = f"{shard_name(shard)}/{file}"
                    check_size(store, name, sizes.get(name), facts["bytes"])
            finished[shard] = record["rows"]
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


def write_manifest(store: Folder, plan: dict[str, Any], n_shards: int, ended_by: str) -> None:
    """Seal a store whose shards are all committed.

    ended_by: "max_tokens" or "dataset", whichever came first
    """
    shards, totals = [], {"rows": 0, "sequences": 0, "documents": 0, "bytes": 0}
    for index in range(n_shards):
        shard: dict[str, Any] = {"hook_points": {}}
        for hook_point in plan["hook_points"]:
            content = store.read(commit_name(index, hook_point))
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
        "plan_sha256": store.sha256("plan.json"),
        "shards": shards,
        "totals": totals,
        "rows_used": shards[-1]["rows"] - surplus_rows,
        "ended_by": ended_by,
    }
    manifest["sha256"] = manifest_sha256(manifest)
    store.write("manifest.json", encode_json(manifest))


def manifest_sha256(manifest: dict[str, Any]) -> str:
    """sha256 of the manifest without its own "sha256" entry."""
    return hashlib.sha256(encode_json({key: manifest[key] for key in manifest if key != "sha256"})).hexdigest()


def encode_json(content: dict[str, Any]) -> bytes:
    """The one spelling of a JSON file in a store. Floats are written so that they are read back exactly."""
    return (json.dumps(content, sort_keys=True, ensure_ascii=False, allow_nan=False) + "\n").encode()


def read_json(store: Folder, name: str, missing: str = "it belongs to the store") -> dict[str, Any]:
    """A JSON file of a store. raises: ShardError if it is missing or not a JSON object."""
    path = store.describe(name)
    try:
        content = json.loads(store.read(name).decode())
    except (FileNotFoundError, NotADirectoryError) as error:
        raise ShardError(f"{path} does not exist: {missing}") from error
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ShardError(f"{path} is not readable JSON ({error}): the file was altered") from error
    if not isinstance(content, dict):
        raise ShardError(f"{path} should hold a JSON object, it holds a {type(content).__name__}: the file was altered")
    return content


def check_version(plan: dict[str, Any], path: str) -> None:
    """raises: ShardError unless `plan` is of the format and version that this code knows"""
    if plan.get("format") != FORMAT:
        raise ShardError(f"{path} should be a plan of format {FORMAT!r}, it states {plan.get('format')!r}")
    if plan.get("version") != VERSION:
        raise ShardError(
            f"{path} is of version {plan.get('version')}, this saelens_lite reads version {VERSION}: "
            "use the release that wrote it, or a newer one"
        )


def check_size(store: Folder, name: str, found: int | None, recorded: int) -> None:
    """raises: ShardError unless a file has the bytes recorded for it"""
    if found != recorded:
        state = "is missing" if found is None else f"has {found} bytes"
        raise ShardError(
            f"{store.describe(name)} {state}, the store records {recorded} bytes: restore the file, or let "
            f"`saelens-lite verify {store} --repair` recompute the shard"
        )
