"""Writes an activation store: shards row by row, their commits, the manifest; each appears whole.

reader.py specifies the format. Rows go to the file as they come, by plain writes: through a memory map, a
full disk would be a crash and not an error.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import struct
from collections.abc import Iterator
from typing import IO, Any

import numpy as np
import safetensors.numpy
import torch
from torch import Tensor

from saelens_lite.errors import ShardError
from saelens_lite.store.codecs import Layout, dtype_name, encoder
from saelens_lite.store.folder import Folder
from saelens_lite.store.layout import (
    FORMAT,
    MANIFEST,
    PLAN,
    VERSION,
    commit_name,
    data_name,
    documents_name,
    encode_json,
    manifest_sha256,
    shard_name,
    tokens_name,
)
from saelens_lite.store.packing import PackedContexts


@contextlib.contextmanager
def writing_shard(
    store: Folder,
    shard: int,
    contexts: PackedContexts,
    n_documents: int,
    d_models: dict[str, int],
    dtype: torch.dtype,
) -> Iterator[dict[str, RowWriter]]:
    """Write one shard of text: tokens at once, rows as they come, commits if the block ends well.

    n_documents: source documents in the shard's span; d_models: width of the rows, by hook point
    dtype: how rows are kept, one of STORE_DTYPES
    yields: a writer by hook point, which expects a row for every kept token of `contexts`, in order
    """
    facts = {"rows": contexts.n_rows, "sequences": contexts.n_seqs}
    facts |= {"first_document": contexts.first_doc, "documents": n_documents}
    content = _encode_tokens(contexts)
    with _writing(store, shard, tokens_name(shard), content, facts, d_models, dtype) as writers:
        yield writers


@contextlib.contextmanager
def writing_vectors(
    store: Folder, shard: int, doc_id: np.ndarray, d_models: dict[str, int], dtype: torch.dtype
) -> Iterator[dict[str, RowWriter]]:
    """`writing_shard` without tokens; doc_id: int64[n_rows], global document index of each row."""
    documents = safetensors.numpy.save({"doc_id": np.ascontiguousarray(doc_id, dtype=np.int64)})
    facts = {"rows": len(doc_id)}
    with _writing(store, shard, documents_name(shard), documents, facts, d_models, dtype) as writers:
        yield writers


@contextlib.contextmanager
def _writing(
    store: Folder,
    shard: int,
    origin: str,
    content: bytes,
    facts: dict[str, Any],
    d_models: dict[str, int],
    dtype: torch.dtype,
) -> Iterator[dict[str, RowWriter]]:
    """origin, content: name and bytes of the file that says where the rows come from"""
    store.write(origin, content, sync_name=False)
    with contextlib.ExitStack() as files:
        writers = {}
        for hook_point, d_model in d_models.items():
            file = files.enter_context(store.appearing(data_name(shard, hook_point), sync_name=False))
            writers[hook_point] = RowWriter(file, hook_point, facts["rows"], d_model, dtype)
        yield writers
        finished = {hook_point: writer.finish() for hook_point, writer in writers.items()}
    store.sync_names(shard_name(shard))  # before a commit vouches for them, the files have their names
    source = {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    for hook_point, (data, sums) in finished.items():
        files = {origin.rsplit("/", 1)[1]: source, f"{hook_point}.safetensors": data}
        record = {"shard": shard, "hook_point": hook_point, **facts, "files": files, **sums}
        store.write(commit_name(shard, hook_point), encode_json(record), sync_name=False)
    store.sync_names(shard_name(shard))


class RowWriter:
    """Writes the rows of one shard and hook point as they come; `finish` completes the file.

    file: open binary file, written from its start; n_rows: rows to come
    hook_point: where they come from, for errors; dtype: how they are kept, one of STORE_DTYPES
    """

    def __init__(self, file: IO[bytes], hook_point: str, n_rows: int, d_model: int, dtype: torch.dtype):
        self._file, self._hook_point, self._dtype, self._n_rows = file, hook_point, dtype, n_rows
        self._encoder = encoder(dtype, n_rows, d_model)
        self._hash, self._bytes, self._n_written = hashlib.sha256(), 0, 0
        self._norms = np.empty(n_rows, dtype=np.float32)
        self._sum = torch.zeros(d_model, dtype=torch.float64)
        self._write(safetensors_head([*self._encoder.layout, ("norm", torch.float32, (n_rows,))]))

    def append(self, rows: Tensor) -> None:
        """Write rows[n d_model], of any float dtype and on any device.

        raises: ShardError if one of them is not finite as it is kept
        """
        encoded, stored = self._encoder.encode(rows)
        stop = self._n_written + len(stored)
        stored = stored.float()  # once: reductions of half types are slow on a CPU
        norms = self._norms[self._n_written : stop]
        torch.linalg.vector_norm(stored, dim=1, out=torch.from_numpy(norms))
        if broken := int(len(norms) - np.isfinite(norms).sum()):
            raise ShardError(
                f"{broken} of {len(norms)} rows of {self._hook_point} are not finite as {self._dtype} "
                f"({broken / len(norms):.0%} of a batch): the activations exceed that type or are broken; "
                "harvest with dtype='bfloat16' or 'float32', or compute in float32 (compute_dtype)"
            )
        self._sum += stored.sum(0, dtype=torch.float64)
        self._write_tensor(encoded)
        self._n_written = stop

    def finish(self) -> tuple[dict[str, Any], dict[str, Any]]:
        """Write what follows the rows. Returns bytes and sha256, and the two sums, for the commit record."""
        assert self._n_written == self._n_rows, f"{self._n_written} rows came, {self._n_rows} were announced"
        for tensor in self._encoder.tail():
            self._write_tensor(tensor)
        self._write(self._norms)
        sum_sq_norm = float(np.square(self._norms, dtype=np.float64).sum())
        file = {"bytes": self._bytes, "sha256": self._hash.hexdigest()}
        return file, {"sum": self._sum.tolist(), "sum_sq_norm": sum_sq_norm}

    def _write_tensor(self, tensor: Tensor) -> None:
        self._write(tensor.contiguous().view(-1).view(torch.uint8).numpy())

    def _write(self, data: bytes | np.ndarray) -> None:
        view = memoryview(data).cast("B") if len(data) else b""
        self._file.write(view)
        self._hash.update(view)
        self._bytes += len(view)


def safetensors_head(layout: Layout) -> bytes:
    """Its length (uint64, little-endian), then JSON padded to 8 bytes."""
    header, start = {}, 0
    for name, dtype, shape in layout:
        stop = start + math.prod(shape) * dtype.itemsize
        header[name] = {"dtype": dtype_name(dtype), "shape": list(shape), "data_offsets": [start, stop]}
        start = stop
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text


def _encode_tokens(contexts: PackedContexts) -> bytes:
    names = ("input_ids", "attended", "kept", "doc_id")
    arrays = {name: np.ascontiguousarray(getattr(contexts, name)) for name in names}
    return safetensors.numpy.save(arrays | {"first_doc": np.array([contexts.first_doc], dtype=np.int64)})


def write_manifest(store: Folder, plan: dict[str, Any], n_shards: int, ended_by: str) -> None:
    """Seal a store whose shards are all committed.

    ended_by: "max_tokens" or "dataset", whichever came first; "rows" for rows from elsewhere
    """
    shards, totals = [], {"rows": 0, "bytes": 0}
    for index in range(n_shards):
        shard: dict[str, Any] = {"hook_points": {}}
        for hook_point in plan["hook_points"]:
            content = store.read(commit_name(index, hook_point))
            record = json.loads(content)
            files = record["files"]
            data = files.pop(f"{hook_point}.safetensors")
            shard["rows"] = record["rows"]
            for name, file in files.items():
                shard[name.removesuffix(".safetensors")] = {"bytes": file["bytes"]}
            commit_sha256 = hashlib.sha256(content).hexdigest()
            shard["hook_points"][hook_point] = {"bytes": data["bytes"], "commit_sha256": commit_sha256}
            totals["bytes"] += data["bytes"]
        for name in ("rows", "sequences", "documents"):
            if name in record:
                totals[name] = totals.get(name, 0) + record[name]
        totals["bytes"] += sum(file["bytes"] for file in files.values())
        shards.append(shard)
    surplus_rows = max(0, totals["rows"] - plan.get("max_tokens", totals["rows"]))
    manifest = {
        "format": FORMAT,
        "version": VERSION,
        "plan_sha256": store.sha256(PLAN),
        "shards": shards,
        "totals": totals,
        "rows_used": shards[-1]["rows"] - surplus_rows,
        "ended_by": ended_by,
    }
    manifest["sha256"] = manifest_sha256(manifest)
    store.write(MANIFEST, encode_json(manifest))
