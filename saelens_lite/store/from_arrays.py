"""A store from rows that come from elsewhere: arrays or chunks of them, with documents and without text."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from saelens_lite.errors import ShardError, nearest
from saelens_lite.store.codecs import STORE_DTYPES
from saelens_lite.store.folder import Folder
from saelens_lite.store.layout import FORMAT, MANIFEST, PLAN, VERSION, check_names, encode_json
from saelens_lite.store.writer import write_manifest, writing_vectors

Rows = np.ndarray | Tensor | Iterable[np.ndarray | Tensor]
"""float[n d_model], images [n c h w] or series [n c length], or chunks of them."""

CHUNK_ROWS = 4096
"""Rows read and encoded at a time. A shard is gathered first, so its bytes do not depend on the chunks."""


def write_arrays(
    folder: Folder,
    arrays: Rows | Mapping[str, Rows],
    *,
    hook_point: str,
    dtype: str,
    rows_per_shard: int,
    documents: np.ndarray | Tensor | None,
) -> None:
    if rows_per_shard < 1:
        raise ValueError(f"rows_per_shard expected at least 1, got {rows_per_shard}")
    doc_ids = None if documents is None else _document_ids(documents)
    given = arrays if isinstance(arrays, Mapping) else {hook_point: arrays}
    shards, d_models, shapes = {}, {}, {}
    for name, rows in given.items():
        chunks = _chunks(name, rows)
        chunk = next(chunks, torch.empty(0, 1))
        parts = regrouped((c.flatten(1) for c in itertools.chain([chunk], chunks)), rows_per_shard)
        if (first := next(parts, None)) is None:
            raise ValueError(f"arrays expected at least one row of {name}, got none")
        shapes[name], d_models[name] = chunk.shape[1:], first.shape[1]
        shards[name] = itertools.chain([first], parts)
    if not shards:
        raise ValueError("arrays expected the rows of at least one hook point, got an empty mapping")

    hook_points = {
        name: {"d_model": d_model, **({"shape": list(shapes[name])} if len(shapes[name]) > 1 else {})}
        for name, d_model in d_models.items()
    }
    plan = begin_store(folder, {"source": {"kind": "arrays"}, "hook_points": hook_points, "dtype": dtype})
    n_rows = n_shards = 0
    for parts in itertools.zip_longest(*shards.values()):
        lengths = [0 if rows is None else len(rows) for rows in parts]
        if len(set(lengths)) > 1:
            counts = ", ".join(f"{n_rows + n} of {name}" for name, n in zip(shards, lengths, strict=True))
            raise ValueError(
                f"arrays expected equally many rows of every hook point, got {counts} up to shard {n_shards}"
            )
        end = n_rows + lengths[0]
        ids = np.arange(n_rows, end) if doc_ids is None else doc_ids[n_rows:end]
        if len(ids) < lengths[0]:
            raise ValueError(f"documents expected an id for every row, got {len(doc_ids)} ids for more rows")
        with writing_vectors(folder, n_shards, ids, d_models, STORE_DTYPES[dtype]) as writers:
            for writer, rows in zip(writers.values(), parts, strict=True):
                for chunk in rows.split(CHUNK_ROWS):
                    writer.append(chunk)
        n_rows, n_shards = end, n_shards + 1
    if doc_ids is not None and len(doc_ids) > n_rows:
        raise ValueError(f"documents expected an id for every row, got {len(doc_ids)} ids for {n_rows} rows")
    write_manifest(folder, plan, n_shards, "rows")


def begin_store(folder: Folder, facts: Mapping[str, Any]) -> dict[str, Any]:
    """Write the plan of a store whose rows are at hand, into a new folder or that of an interrupted attempt.

    facts: what it states besides its format
    raises: ShardError if the folder holds anything else; ValueError for an unknown dtype or a name that leads
        out of the store
    """
    dtype = facts["dtype"]
    if dtype not in STORE_DTYPES:
        raise ValueError(
            f"dtype expected one of {', '.join(STORE_DTYPES)}{nearest(dtype, STORE_DTYPES)}, got {dtype!r}"
        )
    check_names(facts["hook_points"])
    plan = {"format": FORMAT, "version": VERSION, **facts}
    if folder.size(MANIFEST) is not None:
        raise ShardError(
            f"{folder} holds a finished store: open it with ActivationStore, or choose another folder"
        )
    unfinished = folder.size(PLAN) is not None and folder.read(PLAN) == encode_json(plan)
    if not unfinished and not folder.is_empty():
        raise ShardError(f"{folder} is not empty: choose a new or empty folder for the store")
    folder.write(PLAN, encode_json(plan))
    return plan


def regrouped(chunks: Iterable[Tensor], n_rows: int) -> Iterator[Tensor]:
    """The rows of the chunks, n_rows at a time; the last portion may be smaller."""
    held: list[Tensor] = []
    missing = n_rows
    for chunk in chunks:
        while len(chunk) >= missing:
            yield torch.cat([*held, chunk[:missing]])
            chunk, held, missing = chunk[missing:], [], n_rows
        if len(chunk):
            held.append(chunk)
            missing -= len(chunk)
    if held:
        yield torch.cat(held)


def _chunks(hook_point: str, rows: Rows) -> Iterator[Tensor]:
    """Finite float[n …] of one shape a row, on the CPU."""
    if isinstance(rows, np.ndarray | Tensor) or not isinstance(rows, Iterable):
        whole = _as_rows(hook_point, rows)
        rows = (whole[start : start + CHUNK_ROWS] for start in range(0, len(whole), CHUNK_ROWS))
    of_row, n_rows = None, 0
    for given in rows:
        chunk = _as_rows(hook_point, given)
        shape = tuple(chunk.shape[1:])
        if of_row not in (None, shape):
            before, got = (str(s[0]) if len(s) == 1 else str(s) for s in (of_row, shape))
            raise ValueError(
                f"{hook_point} expected rows of width {before} as before, got {got} at row {n_rows}"
            )
        tensor = chunk.detach().cpu() if isinstance(chunk, Tensor) else torch.from_numpy(np.array(chunk))
        tensor = tensor if tensor.is_floating_point() else tensor.float()
        broken = (~tensor.flatten(1).isfinite().all(1)).nonzero()
        if len(broken):
            raise ValueError(
                f"row {n_rows + int(broken[0])} of {hook_point} holds nan or infinity: leave it out"
            )
        of_row, n_rows = shape, n_rows + len(chunk)
        yield tensor


def _as_rows(hook_point: str, rows: Any) -> np.ndarray | Tensor:
    """raises: ValueError unless this is an array or tensor [n d_model], [n c h w] or [n c length], none 0"""
    shape = list(rows.shape) if isinstance(rows, np.ndarray | Tensor) else f"a {type(rows).__name__}"
    if not isinstance(shape, list) or len(shape) not in (2, 3, 4) or min(shape[1:]) < 1:
        raise ValueError(
            f"arrays expected [n_rows, d_model] for {hook_point}, as array, tensor or chunks, got {shape}; "
            "images are [n_rows, c, h, w] and series [n_rows, c, length]"
        )
    return rows


def _document_ids(documents: Any) -> np.ndarray:
    """int64[n]. raises: ValueError unless these are ids"""
    ids = np.asarray(documents.cpu() if isinstance(documents, Tensor) else documents)
    if ids.ndim != 1 or (len(ids) and (ids.dtype.kind not in "iu" or ids.min() < 0)):
        raise ValueError(
            f"documents expected int[n_rows], ids of 0 or more, got {ids.dtype}{list(ids.shape)}"
        )
    return ids.astype(np.int64)
