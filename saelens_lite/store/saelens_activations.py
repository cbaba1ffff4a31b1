"""SAELens' cached activations: a folder of the `datasets` library, in and out of an activation store.

CacheActivationsRunner of SAELens 6 writes such a folder and its training reads it (`use_cached_activations`).
A row of the dataset is a context: a column named after the hook point, Array2D[context d_model] in float32 or
float16, and token_ids, int32[context], which older releases lack. The format knows no documents, no padding
and no positions without activations.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from saelens_lite.atomic import make_folder, sync, write_file
from saelens_lite.json_data import loads
from saelens_lite.misfits import names_misfits
from saelens_lite.store.codecs import STORE_DTYPES
from saelens_lite.store.folder import open_folder
from saelens_lite.store.from_arrays import CHUNK_ROWS, begin_store, regrouped, write_arrays
from saelens_lite.store.packing import PackedContexts
from saelens_lite.store.reader import ActivationStore
from saelens_lite.store.writer import write_manifest, writing_shard

logger = logging.getLogger(__name__)

_TOKENS = "token_ids"
_RUNNER_CONFIG = "cache_activations_runner_cfg.json"
_BATCH_BYTES = 2**26
_FILE_BYTES = 2**30
"""SAELens keeps its files below 2 GiB, where the writer of `datasets` has had trouble."""


@names_misfits
def read_saelens_activations(
    source: str | os.PathLike[str],
    path: str | os.PathLike[str],
    *,
    hook_points: Sequence[str] | None = None,
    dtype: str = "float32",
    rows_per_shard: int = 65_536,
    model_name: str = "",
    tokenizer_name: str = "",
) -> ActivationStore:
    """Import a dataset folder of cached activations into a new store.

    Every position of every context has a row, BOS too (see `TrainConfig.max_norm_ratio`). The folder does not
    say where documents end, so each context counts as one document.

    source: the dataset folder, local
    path: new or empty folder, or URL, of the store
    hook_points: columns to import; None takes all
    dtype, rows_per_shard: as in `ActivationStore.from_arrays`; a shard holds whole contexts
    model_name, tokenizer_name: hub ids or folders, which such a folder does not name; with them analysis
        shows text and checks that SAE and store belong together
    returns: the store; without tokens if the folder has none
    raises: ValueError if the source is no such folder; ShardError if the store's folder is not empty
    """
    folder, dataset = open_folder(path), _load(source)
    shapes = _hook_points(dataset, source, hook_points)
    context_length = next(iter(shapes.values()))[0]
    d_models = {name: d_model for name, (_, d_model) in shapes.items()}
    n_seqs = max(1, rows_per_shard // context_length)
    if _TOKENS not in dataset.column_names:
        arrays = {name: _chunks(dataset, name, d_model) for name, d_model in d_models.items()}
        documents = np.arange(len(dataset)).repeat(context_length)
        rows_per_shard = n_seqs * context_length
        write_arrays(
            folder, arrays, hook_point="", dtype=dtype, rows_per_shard=rows_per_shard, documents=documents
        )
        return ActivationStore(folder)
    facts = {
        "source": {"kind": "saelens", "fingerprint": dataset._fingerprint},
        "model": {"name": model_name or _runner_config(source).get("model_name", "")},
        "tokenizer": {"name": tokenizer_name},
        "hook_points": {name: {"d_model": d_model} for name, d_model in d_models.items()},
        "context_length": context_length,
        "dtype": dtype,
    }
    plan = begin_store(folder, facts)
    tokens, starts = dataset.select_columns(_TOKENS).with_format("numpy"), range(0, len(dataset), n_seqs)
    for shard, first in enumerate(starts):
        input_ids = tokens[first : first + n_seqs][_TOKENS].astype(np.int32)
        everywhere = np.ones(input_ids.shape, dtype=np.uint8)
        doc_id = np.arange(len(input_ids), dtype=np.int32).repeat(context_length).reshape(input_ids.shape)
        contexts = PackedContexts(input_ids, everywhere, everywhere, doc_id, first)
        here = dataset.select(range(first, first + len(input_ids)))
        with writing_shard(folder, shard, contexts, len(input_ids), d_models, STORE_DTYPES[dtype]) as writers:
            for name, writer in writers.items():
                for chunk in _chunks(here, name, d_models[name]):
                    writer.append(chunk)
    write_manifest(folder, plan, len(starts), "dataset")
    return ActivationStore(folder)


@names_misfits
def write_saelens_activations(
    store: ActivationStore,
    folder: str | os.PathLike[str],
    hook_point: str | None = None,
    *,
    context_size: int | None = None,
    dtype: str = "float32",
) -> None:
    """Export one hook point as cached activations, for SAELens' `use_cached_activations`.

    SAELens expects an activation at every position. So the rows and their tokens, in order, are cut into
    contexts of context_size rows: the store's if it has a row at every position. Rows at the end that fill no
    context are left out. SAELens mixes rows in training, so nothing else depends on the cut. In SAELens, set
    `context_size` to the same number, `d_in` to the width and `hook_name` to the hook point.

    folder: new or empty, local; it opens once state.json is written
    context_size: rows a context; None takes the store's context_length
    dtype: float32 or float16
    raises: ValueError for another dtype, a folder that is not empty, or a store without contexts and no
        context_size
    """
    from datasets import Array2D, DatasetInfo, Features, Value
    from datasets import Sequence as ListOf
    from datasets.arrow_writer import ArrowWriter

    hook_point, target = store.hook_point(hook_point), Path(folder)
    if dtype not in ("float32", "float16"):
        raise ValueError(
            f"dtype expected float32 or float16, which datasets of arrays can have, got {dtype!r}"
        )
    if context_size is None and not store.has_tokens:
        raise ValueError(
            f"{store.path} has no contexts: say how many rows SAELens is to take as one, context_size=128 say"
        )
    context_size = context_size or store.context_length
    n_seqs = store.n_rows // context_size
    if n_seqs < 1:
        raise ValueError(f"context_size {context_size} is more than the {store.n_rows} rows of {store.path}")
    if target.exists() and any(target.iterdir()):
        raise ValueError(f"{target} is not empty: choose a new or empty folder")
    if left := store.n_rows % context_size:
        logger.info("the last %d rows fill no context of %d and are left out", left, context_size)
    make_folder(target)

    d_model = store.d_model(hook_point)
    columns: dict[str, Any] = {hook_point: Array2D((context_size, d_model), dtype)}
    if store.has_tokens:
        columns[_TOKENS] = ListOf(Value("int32"), length=context_size)
    features = Features(columns)
    seq_bytes = context_size * d_model * getattr(torch, dtype).itemsize
    batch_seqs = max(1, _BATCH_BYTES // seq_bytes)
    file_seqs = batch_seqs * max(1, _FILE_BYTES // (batch_seqs * seq_bytes))
    token_ids = regrouped(_row_tokens(store), batch_seqs * context_size) if store.has_tokens else None
    n_files = -(-n_seqs // file_seqs)
    names = [f"data-{file:05d}-of-{n_files:05d}.arrow" for file in range(n_files)]
    for file, name in enumerate(names):
        file_end = min(n_seqs, (file + 1) * file_seqs)
        with ArrowWriter(path=str(target / name), features=features) as writer:
            for first in range(file * file_seqs, file_end, batch_seqs):
                n = min(batch_seqs, file_end - first)
                rows = torch.arange(first * context_size, (first + n) * context_size)
                acts = store.gather(rows, hook_point, getattr(torch, dtype)).view(n, context_size, d_model)
                batch: dict[str, Any] = {hook_point: acts.numpy()}
                if token_ids is not None:
                    batch[_TOKENS] = next(token_ids)[: n * context_size].view(n, context_size).numpy()
                writer.write_batch(batch)
            writer.finalize()
        sync(target / name)
    DatasetInfo(features=features).write_to_directory(str(target))
    identity = f"{store.fingerprint} {hook_point} {context_size} {dtype}"
    state = {
        "_data_files": [{"filename": name} for name in names],
        "_fingerprint": hashlib.sha256(identity.encode()).hexdigest()[:16],
        "_format_columns": None,
        "_format_kwargs": {},
        "_format_type": None,
        "_output_all_columns": False,
        "_split": None,
    }
    write_file(target / "state.json", json.dumps(state, indent=2))


def _load(source: str | os.PathLike[str]) -> Any:
    from datasets import Dataset, load_from_disk

    try:
        dataset = load_from_disk(os.fspath(source))
    except FileNotFoundError as error:
        raise ValueError(
            f"{source} expected a dataset folder, such as CacheActivationsRunner writes, got none"
        ) from error
    if not isinstance(dataset, Dataset):
        raise ValueError(f"{source} holds the splits {', '.join(dataset)}: give the folder of one of them")
    return dataset


def _hook_points(dataset: Any, source: Any, wanted: Sequence[str] | None) -> dict[str, tuple[int, int]]:
    """(context, d_model) of each hook point. raises: ValueError if there is none, or contexts differ"""
    shapes = {name: tuple(getattr(feature, "shape", ())) for name, feature in dataset.features.items()}
    shapes = {name: shape for name, shape in shapes.items() if len(shape) == 2}
    for name in wanted or ():
        if name not in shapes:
            raise ValueError(
                f"{source} has activations of {', '.join(shapes) or 'no hook point'}, none of {name!r}"
            )
    shapes = {name: shape for name, shape in shapes.items() if wanted is None or name in wanted}
    if not shapes or not len(dataset):
        raise ValueError(
            f"{source} expected contexts with a column [context, d_model] of activations, "
            f"got {len(dataset)} rows of {', '.join(dataset.column_names)}"
        )
    if len({context for context, _ in shapes.values()}) > 1:
        raise ValueError(
            f"{source} expected contexts of one length, got {shapes}: choose hook_points that agree"
        )
    return shapes


def _chunks(dataset: Any, column: str, d_model: int) -> Iterator[Tensor]:
    context_length = dataset.features[column].shape[0]
    batch_seqs = max(1, CHUNK_ROWS // context_length)
    arrays = dataset.select_columns(column).with_format("numpy")
    for first in range(0, len(dataset), batch_seqs):
        yield torch.tensor(arrays[first : first + batch_seqs][column]).view(-1, d_model)


def _row_tokens(store: ActivationStore) -> Iterator[Tensor]:
    for shard in range(store.n_shards):
        tokens = store.tokens(shard)
        yield tokens.input_ids[tokens.kept.bool()]


def _runner_config(source: str | os.PathLike[str]) -> dict[str, Any]:
    """The settings that SAELens puts beside a dataset on the hub; empty if they are not there."""
    path = Path(source) / _RUNNER_CONFIG
    return loads(path.read_text(encoding="utf-8")) if path.exists() else {}
