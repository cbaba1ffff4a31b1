"""The activation store, version 1: its format, and reading it.

A store is a folder, local or at any URL that fsspec opens (folder.py). Its unit is the shard: a fixed span of
source documents, set by the plan. Packing restarts and forward batches end at a shard's edge, so a shard is a
pure function of (plan, index). A row is one token's vector.

    plan.json                              everything that determines the rows; written first
    shards/00000/tokens.safetensors        input_ids int32[n_seqs context], attended uint8, kept uint8 (1 =
                                           has a row), doc_id int32 relative to first_doc (-1 at padding),
                                           first_doc int64[1]
    shards/00000/{hook point}.safetensors  the rows as the plan's dtype keeps them (codecs.py: acts
                                           {BF16|F16|F32}[n_rows d_model], or the tensors of int8), then norm
                                           F32[n_rows]
    shards/00000/{hook point}.json         the commit of that shard and hook point: rows, sequences,
                                           documents; bytes and sha256 of its two files; float64 sums of the
                                           rows and of their squared norms
    manifest.json                          written last: rows, bytes and commit hashes of every shard, totals,
                                           rows_used of the last shard, hash of the plan and of the manifest
                                           itself
    log.jsonl                              clock, speed, versions; no part of the store's identity
    .lock                                  there while a process writes; no part of it either

Rows of a shard are its kept positions in (sequence, position) order. A store of rows without text has, in
place of every tokens.safetensors,

    shards/00000/documents.safetensors     doc_id int64[n_rows], the global document index of each row

and its commits name no sequences and documents. `norm` and the sums are of the rows as a reader gets them.
The rows of the store are those of the shards in order, in the last shard only the first `rows_used`. JSON
files are UTF-8 with sorted keys; the manifest's own sha256 is taken over the file without that entry. Every
file appears by fsync and rename, so it is whole; a shard without its commit does not count.

Readers map files into memory and never unpickle. writer.py writes.
"""

from __future__ import annotations

import dataclasses
import hashlib
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import torch
from torch import Tensor

from saelens_lite.errors import ShardError, nearest
from saelens_lite.hashing import is_held_out
from saelens_lite.misfits import names_misfits
from saelens_lite.store.codecs import check_shapes, decode
from saelens_lite.store.common_mean import mean_to_spread
from saelens_lite.store.folder import Folder, LocalFolder, open_folder
from saelens_lite.store.layout import (
    MANIFEST,
    MANIFEST_BEFORE,
    PLAN,
    altered,
    check_manifest,
    check_names,
    check_plan,
    check_size,
    check_version,
    commit_name,
    data_name,
    documents_name,
    encode_json,
    is_finished,
    manifest_sha256,
    plan_of,
    read_json,
    read_json_and_sha256,
    tokens_name,
)
from saelens_lite.store.mapped_files import MappedFiles
from saelens_lite.store.packing import PackedContexts
from saelens_lite.store.places import Place, place_among


@dataclasses.dataclass(frozen=True, slots=True)
class ShardTokens:
    """The contexts of one shard as tensors; see `PackedContexts`. kept.sum() is the shard's rows in use."""

    input_ids: Tensor
    attended: Tensor
    kept: Tensor
    doc_id: Tensor
    first_doc: int


class _Renamed:
    """A method of version 0.1.0: the AttributeError says what to call today."""

    def __init__(self, today: str) -> None:
        self._today = today

    def __set_name__(self, owner: type, name: str) -> None:
        self._name = f"{owner.__name__}.{name}"

    def __get__(self, instance: Any, owner: type) -> NoReturn:
        raise AttributeError(f"{self._name} is now {self._today}")


_HELD_OUT_ROWS = 1_000_000
"""Rows whose documents are hashed at a time."""
_GATHERED_BYTES = 2**19
"""Rows of small shards that are put in their places at a time."""


class ActivationStore:
    """A finished activation store, open for reading; all data is memory-mapped.

    If it holds one hook point, `hook_point` may be left out everywhere.

    path: a local folder, or any URL that fsspec opens (s3://…); a remote file is copied into a local cache
        (see `RemoteFolder`) when it is first read
    raises: ShardError if the folder is no store, is unfinished, or a file is missing or has another size than
        recorded
    """

    @names_misfits
    def __init__(self, path: str | os.PathLike[str] | Folder):
        self.folder = folder = open_folder(path)
        what = "this folder is no activation store"
        if folder.size("cfg.json") is not None:
            what = "this folder is an SAE, no activation store"
        elif folder.size("dataset_info.json") is not None:
            what = (
                "this folder is a dataset, as SAELens caches activations: "
                f"sl.store.read_saelens_activations({str(folder)!r}, PATH) makes a store of it"
            )
        self.plan: dict[str, Any] = read_json(folder, PLAN, missing=what)
        check_version(self.plan, folder.describe(PLAN))
        unfinished = "the harvest is unfinished; run the same command again and it resumes"
        added_to = folder.size(MANIFEST) is None and is_finished(folder)
        name = MANIFEST_BEFORE if added_to else MANIFEST
        self._manifest = read_json(folder, name, missing=unfinished)
        if encode_json(self._manifest) != folder.read(name) or (
            manifest_sha256(self._manifest) != self._manifest.get("sha256")
        ):
            raise ShardError(f"{folder}/{name} was altered: its content does not have the sha256 it states")
        check_manifest(self._manifest, folder.describe(name))
        check_plan(self.plan, folder.describe(PLAN))
        if added_to:
            self.plan = plan_of(self.plan, self._manifest)
        digest = hashlib.sha256(encode_json(self.plan)).hexdigest() if added_to else folder.sha256(PLAN)
        if digest != self._manifest["plan_sha256"]:
            raise ShardError(f"{folder}/{PLAN} was altered: it has another sha256 than the manifest records")
        check_plan(self.plan, folder.describe(PLAN), self._manifest["shards"])
        try:
            check_names(self.plan["hook_points"], new=False)
        except ValueError as error:
            raise ShardError(f"{folder.describe(PLAN)} leads out of the store: {error}") from error
        self._shards: list[dict[str, Any]] = self._manifest["shards"]
        self._files = MappedFiles(folder, self.fingerprint)
        rows = [shard["rows"] for shard in self._shards]
        self._shard_rows = [*rows[:-1], self._manifest["rows_used"]]
        self._ends = torch.tensor(self._shard_rows).cumsum(0)
        self._firsts = self._ends - torch.tensor(self._shard_rows)
        recorded = dict(self._recorded_sizes())
        for (name, size_bytes), found in zip(recorded.items(), folder.sizes_of(recorded), strict=True):
            check_size(folder, name, found, size_bytes)

    @classmethod
    @names_misfits
    def from_arrays(
        cls,
        path: str | os.PathLike[str],
        arrays: Any,
        *,
        hook_point: str = "acts",
        dtype: str = "float32",
        rows_per_shard: int = 65_536,
        documents: np.ndarray | Tensor | None = None,
    ) -> ActivationStore:
        """Keep rows that come from elsewhere, such as an image encoder, for training and analysis.

            store = ActivationStore.from_arrays("store/", embeddings, documents=image_ids)

        path: new or empty folder, or URL
        arrays: [n_rows, d_model] as numpy array or tensor, or an iterable of chunks of it; or a mapping from
            hook point to either. Iterables are read once, a shard at a time. Images [n_rows, c, h, w] and
            series [n_rows, c, length] become rows in C order, and plan.json has their shape beside d_model
        hook_point: the rows' name if arrays is no mapping
        dtype: how rows are kept: float32, float16, bfloat16 or int8
        rows_per_shard: rows of a file; memory holds one shard of each hook point while writing
        documents: int[n_rows], ids of 0 or more, of rows that belong together: held-out rows are of other
            documents than training rows. None makes every row its own document
        returns: the store, which has no tokens, contexts or positions
        raises: ValueError for other shapes, a row that is not finite (by number), or unequal numbers of rows;
            ShardError if the folder is not empty or cannot be written, or a row exceeds the dtype
        """
        from saelens_lite.store.from_arrays import write_arrays

        folder = open_folder(path)
        write_arrays(
            folder,
            arrays,
            hook_point=hook_point,
            dtype=dtype,
            rows_per_shard=rows_per_shard,
            documents=documents,
        )
        return cls(folder)

    from_saelens = _Renamed("saelens_lite.store.read_saelens_activations(source, path)")
    to_saelens = _Renamed("saelens_lite.store.write_saelens_activations(store, folder)")

    @property
    def path(self) -> Path | str:
        """The store's folder: a path, or the URL of a remote one."""
        return self.folder.root if isinstance(self.folder, LocalFolder) else str(self.folder)

    @property
    def hook_points(self) -> list[str]:
        return list(self.plan["hook_points"])

    @property
    def has_tokens(self) -> bool:
        """Whether the store keeps the text of its rows."""
        return "tokens" in self._shards[0]

    @property
    def context_length(self) -> int:
        """Tokens a context, BOS included. raises: ShardError if the store has no tokens"""
        self._need_tokens()
        return self.plan["context_length"]

    @property
    def n_shards(self) -> int:
        return len(self._shards)

    @property
    def shard_rows(self) -> list[int]:
        """Rows of each shard, not to be altered; of the last one those in use."""
        return self._shard_rows

    @property
    def n_rows(self) -> int:
        return int(self._ends[-1])

    @property
    def model_name(self) -> str:
        """Name or folder of the model of the rows; "" if unknown."""
        return self.plan.get("model", {}).get("name", "")

    @property
    def tokenizer_name(self) -> str:
        """Name or folder of the tokenizer; "" if unknown."""
        return self.plan.get("tokenizer", {}).get("name", "")

    @property
    def fingerprint(self) -> str:
        """sha256 that names the content: equal for stores whose files have equal bytes."""
        return self._manifest["sha256"]

    def __repr__(self) -> str:
        return f"ActivationStore({str(self.path)!r}, {self.n_rows:,} rows of {', '.join(self.hook_points)})"

    @names_misfits
    def hook_point(self, name: str | None = None) -> str:
        """The hook point of this name, as the store has it: blocks.3.hook_resid_post for model.layers.3. None
        means the only one.

        raises: ValueError if the store lacks it, or None is ambiguous
        """
        if name is None:
            if len(self.hook_points) > 1:
                raise ValueError(
                    f"{self.path} holds several hook points, name one of: {', '.join(self.hook_points)}"
                )
            return self.hook_points[0]
        if not isinstance(name, str):
            raise TypeError(f"expected the name of one hook point, got {type(name).__name__} {name!r}")
        if (found := place_among(Place(name), self.plan["hook_points"])) is None:
            hint = nearest(name, self.hook_points)
            raise ValueError(
                f"{self.path} has no hook point {name!r}{hint}; it holds {', '.join(self.hook_points)}"
            )
        return found

    @names_misfits
    def place(self, hook_point: str | None = None) -> Place:
        """Where in the model the rows of a hook point are from."""
        name = self.hook_point(hook_point)
        return Place(name, self.plan["hook_points"][name].get("module_path", ""))

    @names_misfits
    def d_model(self, hook_point: str | None = None) -> int:
        """Width of the rows of a hook point."""
        return self.plan["hook_points"][self.hook_point(hook_point)]["d_model"]

    @names_misfits
    def acts(self, shard: int, hook_point: str | None = None, rows: slice = slice(None)) -> Tensor:
        """Rows of one shard, all or a slice: {bf16|f16|f32}[n_rows d_model].

        A float store gives them memory-mapped, in its dtype; an int8 store decodes them to float32.
        """
        tensors = self._tensors(shard, self.hook_point(hook_point))
        return decode(tensors, slice(*rows.indices(self._shard_rows[shard])))

    @names_misfits
    def norms(self, shard: int, hook_point: str | None = None) -> Tensor:
        """The L2 norm of each row of one shard: float32[n_rows]."""
        return self._tensors(shard, self.hook_point(hook_point))["norm"][: self._shard_rows[shard]]

    @names_misfits
    def median_norm(self, hook_point: str | None = None) -> float:
        """Median L2 norm of a row over the store; of two in the middle the lower."""
        return float(self.all_norms(hook_point).median())

    @names_misfits
    def all_norms(self, hook_point: str | None = None) -> Tensor:
        """The L2 norm of each row of the store: float32[n_rows]."""
        return torch.cat([self.norms(shard, hook_point).clone() for shard in range(self.n_shards)])

    @names_misfits
    def tokens(self, shard: int) -> ShardTokens:
        """The contexts of one shard. raises: ShardError if the store has no tokens"""
        contexts = self.contexts(shard)
        arrays = {
            f.name: torch.from_numpy(getattr(contexts, f.name)) for f in dataclasses.fields(contexts)[:4]
        }
        used = self._shard_rows[shard]
        if used < self._shards[shard]["rows"]:
            kept = arrays["kept"].flatten()
            arrays["kept"] = (kept * (kept.cumsum(0) <= used)).view_as(arrays["kept"])
        return ShardTokens(**arrays, first_doc=contexts.first_doc)

    @names_misfits
    def contexts(self, shard: int) -> PackedContexts:
        """The contexts of one shard as they were packed; the last shard's reach beyond max_tokens."""
        self._need_tokens()
        names = ("input_ids", "attended", "kept", "doc_id", "first_doc")
        *arrays, first_doc = self._text(tokens_name(self._index(shard)), shard, "tokens", names)
        return PackedContexts(*(array.numpy() for array in arrays), first_doc=int(first_doc))

    @names_misfits
    def row_positions(self, shard: int) -> tuple[Tensor, Tensor]:
        """The place of each row of one shard: (sequence int64[n_rows], position int64[n_rows])."""
        sequence, position = self.tokens(shard).kept.nonzero(as_tuple=True)
        return sequence, position

    @names_misfits
    def row_docs(self, shard: int) -> Tensor:
        """Global index of each row's document, for one shard: int64[n_rows]."""
        if not self.has_tokens:
            (docs,) = self._text(documents_name(self._index(shard)), shard, "documents", ("doc_id",))
            return docs[: self._shard_rows[shard]]
        tokens = self.tokens(shard)
        return tokens.doc_id[tokens.kept.bool()].long() + tokens.first_doc

    @names_misfits
    def held_out_rows(self, fraction: float = 0.05, seed: int = 0) -> Tensor:
        """Which rows belong to held-out documents (see `is_held_out`): bool[n_rows]."""
        found, docs, n_docs = [], [], 0
        for shard in range(self.n_shards):
            docs.append(self.row_docs(shard).clone())
            n_docs += len(docs[-1])
            if n_docs >= _HELD_OUT_ROWS or shard == self.n_shards - 1:
                found.append(is_held_out(torch.cat(docs), fraction, seed))
                docs, n_docs = [], 0
        return torch.cat(found)

    @names_misfits
    def gather(
        self, rows: Tensor, hook_point: str | None = None, dtype: torch.dtype = torch.float32
    ) -> Tensor:
        """Rows int64[n] by their index in the whole store, in the given order: dtype[n d_model]."""
        rows = torch.as_tensor(rows)
        if rows.is_floating_point() and len(rows):
            raise TypeError(f"gather expected rows as whole numbers, got {rows.dtype}")
        rows = rows.long()
        out = torch.empty(len(rows), self.d_model(hook_point), dtype=dtype)
        self.gather_into(out, torch.arange(len(rows)), rows, hook_point)
        return out

    @names_misfits
    def gather_into(self, out: Tensor, places: Tensor, rows: Tensor, hook_point: str | None = None) -> None:
        """Write rows int64[n], by their index in the whole store, to places of an existing tensor.

        out: float[m d_model]; places: int64[n], 0 <= place < m, each once
        """
        if len(rows) and not (int(rows.min()) >= 0 and int(rows.max()) < self.n_rows):
            raise ValueError(
                f"rows go from 0 to {self.n_rows - 1}, got {int(rows.min())} to {int(rows.max())}"
            )
        hook_point = self.hook_point(hook_point)
        ascending, order = rows.sort()
        places = places[order]
        of_shards = torch.searchsorted(ascending, self._ends).diff(prepend=torch.zeros(1, dtype=torch.int64))
        shards = of_shards.nonzero().view(-1)
        sizes = of_shards[shards]
        local = (ascending - self._firsts[shards].repeat_interleave(sizes)).split(sizes.tolist())
        at_once = _GATHERED_BYTES // (out.shape[1] * out.element_size())
        read: list[Tensor] = []
        start = stop = 0
        for shard, of_shard in zip(shards.tolist(), local, strict=True):
            read.append(decode(self._tensors(shard, hook_point), of_shard, out.dtype))
            stop += len(of_shard)
            if stop - start >= at_once or stop == len(rows):
                out.index_copy_(0, places[start:stop], read[0] if len(read) == 1 else torch.cat(read))
                read, start = [], stop

    @names_misfits
    def mean(self, hook_point: str | None = None) -> Tensor:
        """Mean row over the store: float64[d_model]."""
        return self.moments(hook_point)[1]

    @names_misfits
    def mean_sq_norm(self, hook_point: str | None = None) -> float:
        """Mean squared L2 norm of a row over the store."""
        return self.moments(hook_point)[0]

    @names_misfits
    def moments(self, hook_point: str | None = None) -> tuple[float, Tensor]:
        """Mean squared L2 norm and mean float64[d_model] of a row over the store, read once."""
        totals, sq_norms = zip(*self._sums(hook_point), strict=True)
        return sum(sq_norms) / self.n_rows, torch.from_numpy(sum(totals) / self.n_rows)

    @names_misfits
    def mean_to_spread(self, hook_point: str | None = None) -> float:
        """γ, the norm of the mean row against the rows' spread; see common_mean.py."""
        return mean_to_spread(*self.moments(hook_point))

    def verify(self) -> list[str]:
        """Check every byte. Returns the problems found, each naming its file; empty if all is well."""
        from saelens_lite.store.verify import verify_store

        return [f"{self.folder}/{problem}" for problem in verify_store(self.folder)]

    @names_misfits
    def commit(self, shard: int, hook_point: str) -> dict[str, Any]:
        """The commit of a shard and hook point, as it was written. raises: ShardError if it was altered"""
        name, promised = commit_name(shard, hook_point), self._shards[shard]["hook_points"][hook_point]
        record, sha256 = read_json_and_sha256(self.folder, name)
        if sha256 != promised["commit_sha256"]:
            raise altered(self.folder, name, MANIFEST)
        return record

    def _index(self, shard: int) -> int:
        if not 0 <= shard < self.n_shards:
            raise IndexError(f"{self.path} has shards 0 to {self.n_shards - 1}, got {shard}")
        return shard

    def _recorded_sizes(self) -> Iterator[tuple[str, int]]:
        for index, shard in enumerate(self._shards):
            if self.has_tokens:
                yield tokens_name(index), shard["tokens"]["bytes"]
            else:
                yield documents_name(index), shard["documents"]["bytes"]
            for hook_point in self.hook_points:
                yield data_name(index, hook_point), shard["hook_points"][hook_point]["bytes"]

    def _text(self, name: str, shard: int, what: str, tensors: Sequence[str]) -> list[Tensor]:
        """Tensors of a file that tells which tokens or documents the rows of a shard are of."""
        found = self._files.tensors(name, self._shards[shard][what]["bytes"])
        if missing := [tensor for tensor in tensors if tensor not in found]:
            raise ShardError(
                f"{self.folder.describe(name)} expected {', '.join(tensors)}, it has no {missing[0]}: "
                "the file was altered"
            )
        return [found[tensor] for tensor in tensors]

    def _need_tokens(self) -> None:
        if not self.has_tokens:
            raise ShardError(
                f"{self.path} holds rows without text, so it has no tokens, contexts or positions: use "
                "row_docs and gather, or harvest the text itself with harvest_activations"
            )

    def _tensors(self, shard: int, hook_point: str) -> dict[str, Tensor]:
        """One shard's data file, memory-mapped, unused rows included; hook_point: as the store has it."""
        name, facts = data_name(self._index(shard), hook_point), self._shards[shard]
        size_bytes = facts["hook_points"][hook_point]["bytes"]
        if (tensors := self._files.kept(name, size_bytes)) is None:
            tensors = self._files.tensors(name, size_bytes)
            check_shapes(tensors, facts["rows"], self.d_model(hook_point), self.folder.describe(name))
            self._files.keep(name, tensors)
        return tensors

    def _sums(self, hook_point: str | None) -> Iterator[tuple[np.ndarray, float]]:
        """(float64[d_model] sum of rows, sum of squared norms) of each shard's used rows."""
        hook_point = self.hook_point(hook_point)
        for index, shard in enumerate(self._shards):
            if self._shard_rows[index] < shard["rows"]:
                acts, norms = self.acts(index, hook_point), self.norms(index, hook_point)
                yield acts.sum(0, dtype=torch.float64).numpy(), float(norms.double().square().sum())
            else:
                record, d_model = self.commit(index, hook_point), self.d_model(hook_point)
                if len(record["sum"]) != d_model:
                    name = self.folder.describe(commit_name(index, hook_point))
                    raise ShardError(
                        f"{name} expected a sum of {d_model} numbers, as the plan says, got "
                        f"{len(record['sum'])}: "
                        "the plan is of another store, or was altered"
                    )
                yield np.array(record["sum"]), record["sum_sq_norm"]
