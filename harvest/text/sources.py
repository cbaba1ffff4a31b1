"""Opens a dataset argument: names of the hub or of files, `datasets` objects, or any iterable."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import logging
import re
from collections.abc import Iterable, Mapping, Sequence, Sized
from pathlib import Path
from typing import Any

from saelens_lite.data_files import COMPRESSIONS, TABLES, TEXT, loader_of
from saelens_lite.errors import nearest

from .dataset_rows import row_streams
from .documents import FIRST_DOCUMENTS, Source, no_column, probed, sha256_of
from .mixture import chained
from .text_files import OPENERS, JsonLines, TextFile, columns

logger = logging.getLogger(__name__)

_PROBE_BYTES = 1 << 20
_MOST_COMPRESSED = 8
"""Assumed size of a compressed file's text over the file's, at most."""


def as_names(dataset: Any) -> list[str] | None:
    """The names in a string, a path or a list of these; None if `dataset` holds the documents itself.

    A list of strings holds names if each could be one: an existing path, a data file's name, or owner/name.
    """
    if isinstance(dataset, str | Path):
        return [str(dataset)]
    listed = isinstance(dataset, list | tuple) and dataset
    if listed and all(isinstance(item, str | Path) and _looks_like_dataset(str(item)) for item in dataset):
        return [str(item) for item in dataset]
    return None


def open_named(
    names: Sequence[str],
    *,
    split: str = "train",
    text_column: str = "text",
    text_unit: str = "line",
    config: str | None = None,
    revision: str | None = None,
) -> Source:
    """The documents of datasets on the hub or on disk, in order; HarvestConfig describes the arguments.

    raises: ValueError without a document, such a split or such a column; FileNotFoundError for a missing file
    """
    parts = [_named(name, split, text_column, text_unit, config, revision) for name in names]
    facts = {"sources": [part.facts for part in parts], "split": split}
    return _looked_at(chained(parts, facts), text_column, ", ".join(names))


def open_given(dataset: Any, *, split: str = "train", text_column: str = "text") -> Source:
    """The documents that the caller holds.

    dataset: a `datasets` object; any iterable of strings, of chats (lists of messages), of lists of token
        ids, or of mappings with a text column; a mapping of these by split. To resume a harvest from a
        one-time iterator, pass a fresh one.
    raises: ValueError without a document, such a split or such a column, or for a buffer-shuffled stream
    """
    if isinstance(dataset, Mapping):
        dataset = _split_of(dataset, split, "the dataset")
    if not isinstance(dataset, Iterable):
        raise ValueError(f"dataset expected names, texts or rows, got {type(dataset).__name__}")
    described = f"{type(dataset).__name__} of documents"
    n_documents = len(dataset) if isinstance(dataset, Sized) else None
    facts = {"sources": [{"kind": described, "documents": n_documents}]}
    source = probed(facts, row_streams(dataset, text_column, described), n_documents=n_documents)
    return _looked_at(source, text_column, described)


def _looked_at(source: Source, text_column: str, described: str) -> Source:
    if not source.first:
        raise ValueError(f"{described} holds no documents: there is nothing to harvest")
    facts = source.facts | {"text_column": text_column, "first_documents_sha256": sha256_of(source.first)}
    return dataclasses.replace(source, facts=facts)


def _looks_like_dataset(name: str) -> bool:
    if not re.search(r"\s", name) and (loader_of(name) or re.fullmatch(r"[\w.-]+/[\w.-]+", name)):
        return True
    try:
        return bool(name) and Path(name).exists()
    except (OSError, ValueError):  # no file system takes a name like this text
        return False


def _named(
    name: str, split: str, text_column: str, text_unit: str, config: str | None, revision: str | None
) -> Source:
    """Perhaps empty."""
    path, kind = Path(name), loader_of(name)
    if path.is_file() and kind is None:
        raise ValueError(
            f"dataset {name} expected a file of type {', '.join(TEXT | TABLES)} (compressed too), "
            f"got {path.name}"
        )
    if path.is_file():
        options = {"sample_by": text_unit} if kind == "text" else {}
        arguments: dict[str, Any] = {"path": kind, "data_files": str(path), **options}
        facts = {"file": path.name, "fingerprint": _file_fingerprint(path)} | options
        if (suffix := _read_here(path)) is not None:
            return _lines_of(path, suffix, facts, split, text_column, text_unit)
    elif path.is_dir():
        if (path / "state.json").exists() or (path / "dataset_dict.json").exists():
            return _saved_to_disk(path, split, text_column)
        arguments = {"path": str(path), "name": config}
        facts = {"folder": path.name, "config": config}
    elif kind is not None:
        raise FileNotFoundError(
            f"dataset {name} expected an existing file: there is none at {path.absolute()}"
        )
    elif re.fullmatch(r"[\w.-]+(/[\w.-]+)?", name) is None:
        raise ValueError(
            f"dataset expected a hub id or an existing file or folder, got {name[:80]!r}: "
            "to harvest texts, pass a list of them"
        )
    else:
        arguments = {"path": name, "name": config, "revision": revision}
        facts = {"hub": name, "config": config}

    import datasets

    builder = datasets.load_dataset_builder(**arguments)
    try:
        stream = builder.as_streaming_dataset(split=split)
    except ValueError as error:
        if "split" in str(error):
            raise ValueError(f"dataset {name} has no split {split!r}: {error}") from error
        raise
    if "hub" in facts:
        # The commit, not its name: if the dataset changes, a harvest resumes with the old revision.
        commit = re.search("@([0-9a-f]{40})", str(builder.config.data_files))
        facts["revision"] = commit[1] if commit else revision
    size = _text_bytes(path)
    if path.is_dir():
        size = sum(_text_bytes(file) or 0 for file in _files_of_split(path, builder.config.data_files, split))
    return probed(facts, row_streams(stream, text_column, name), approximate_bytes=size)


def _files_of_split(folder: Path, by_split: Any, split: str) -> list[Path]:
    """The files that `datasets` reads; the others are named in a warning, since it takes splits from names of
    files (validation_v1.jsonl) and reads one type of file alone.
    """
    found = {
        path: name
        for name, files in (by_split or {}).items()
        for path in map(Path, files)
        if path.is_relative_to(folder.resolve())
    }
    read = [path for path, name in found.items() if name == split.partition("[")[0]]
    all_files = (path for path in folder.resolve().rglob("*") if path.is_file() and loader_of(path.name))
    left_out = sorted(
        f"{path.relative_to(folder.resolve())} ({found.get(path, 'no split')})"
        for path in all_files
        if path not in read
        and not any(part.startswith(".") for part in path.relative_to(folder.resolve()).parts)
    )
    if read and left_out:
        shown = ", ".join(left_out[:8]) + (", …" if len(left_out) > 8 else "")
        logger.warning(
            "dataset %s: split %s is %d of its %d files. Left out: %s. To read these too, name the files one "
            "by one, or another split", folder, split, len(read), len(read) + len(left_out), shown,
        )  # fmt: skip
    return read or [folder]


def _read_here(path: Path) -> str | None:
    """The suffix, without compression, of a file that is read by lines; None if `datasets` reads it."""
    suffix = path.with_suffix("").suffix if path.suffix in OPENERS else path.suffix
    return suffix if suffix == ".jsonl" or suffix in TEXT else None


def _lines_of(
    path: Path, suffix: str, facts: dict[str, Any], split: str, text_column: str, text_unit: str
) -> Source:
    if split != "train":
        raise ValueError(f"dataset {path} has no split {split!r}: a file of its own has only train")
    stream: Any
    if suffix == ".jsonl":
        found, stream = columns(path, FIRST_DOCUMENTS), functools.partial(JsonLines, path, text_column)
    else:
        found, stream = ["text"], functools.partial(TextFile, path, text_unit)
    if found and text_column not in found:
        no_column(str(path), text_column, found)
    return probed(facts, lambda start, cursor: stream(cursor), approximate_bytes=_text_bytes(path))


def _saved_to_disk(path: Path, split: str, text_column: str) -> Source:
    import datasets

    found = datasets.load_from_disk(str(path))
    if isinstance(found, datasets.DatasetDict):
        found = _split_of(found, split, f"dataset {path}")
    facts = {"folder": path.name, "fingerprint": found._fingerprint}
    size = sum(_text_bytes(Path(part["filename"])) or 0 for part in found.cache_files)
    return probed(
        facts, row_streams(found, text_column, str(path)), n_documents=len(found), approximate_bytes=size
    )


def _text_bytes(path: Path) -> int | None:
    """An upper estimate of the bytes of text in a file or folder; None for a hub dataset."""
    if path.is_dir():
        return sum(_text_bytes(file) or 0 for file in path.rglob("*") if file.is_file())
    if not path.is_file():
        return None
    compressed = path.suffix in COMPRESSIONS | {".parquet"}
    return path.stat().st_size * (_MOST_COMPRESSED if compressed else 1)


def _split_of(splits: Mapping[str, Any], split: str, described: str) -> Any:
    if split in splits:
        return splits[split]
    raise ValueError(
        f"{described} has no split {split!r}{nearest(split, splits)}; it has {', '.join(splits)}"
    )


def _file_fingerprint(path: Path) -> str:
    """Of its size and its first and last MiB, which spares reading a large file."""
    size = path.stat().st_size
    digest = hashlib.sha256(str(size).encode())
    with open(path, "rb") as file:
        for start in (0, max(0, size - _PROBE_BYTES)):
            file.seek(start)
            digest.update(file.read(_PROBE_BYTES))
    return digest.hexdigest()
