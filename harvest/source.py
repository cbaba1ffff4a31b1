"""Documents: from the hub, local files, `datasets` objects or any iterable, as a stream of texts in a fixed order.

A document's index in this stream is its identity everywhere: in shards, in the held-out split, in provenance.
"""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from saelens_lite.errors import nearest

_FORMATS = {
    ".txt": "text",
    ".text": "text",
    ".md": "text",
    ".jsonl": "json",
    ".json": "json",
    ".csv": "csv",
    ".parquet": "parquet",
}
_COMPRESSED = {".gz", ".bz2", ".xz", ".zst"}
_PROBE_DOCUMENTS = 64
_PROBE_BYTES = 1 << 20


@dataclasses.dataclass(frozen=True, slots=True)
class Source:
    """A stream of documents.

    facts: what identifies it, for the plan
    first: its first documents, at most 64, read to look before anything is done
    open: gives the stream from its start; a one-time iterator can be opened once
    """

    facts: dict[str, Any]
    first: list[str]
    open: Callable[[], Iterator[str]]

    def documents(self, start: int = 0) -> Iterator[tuple[int, str]]:
        """(index, text) of the documents from index `start` on."""
        return itertools.islice(enumerate(self.open()), start, None)


def open_source(
    dataset: Any,
    *,
    split: str = "train",
    text_column: str = "text",
    text_unit: str = "line",
    config: str | None = None,
    revision: str | None = None,
) -> Source:
    """The documents of `dataset`.

    dataset: hub id, local file or folder; a sequence of these; a `datasets` object; an iterable of strings or of
        mappings with a text column. A one-time iterator can be read once per process.
    raises: ValueError if there is no document, no such split or no such column; FileNotFoundError for a missing file
    """
    names = _as_names(dataset)
    if names is not None:
        parts = [_named(name, split, text_unit, config, revision) for name in names]
        streams = [stream for _, stream in parts]
        facts: dict[str, Any] = {"sources": [part for part, _ in parts], "split": split}
        described = ", ".join(names)
    else:
        stream, facts = _given(dataset, split)
        streams, described = [stream], facts["kind"]

    def texts(rows: Iterable[Any]) -> Iterator[str]:
        return (_text_of(row, index, text_column, described) for index, row in enumerate(rows))

    def open_stream() -> Iterator[str]:
        return itertools.chain.from_iterable(texts(stream()) for stream in streams)

    probe = open_stream()
    first = list(itertools.islice(probe, _PROBE_DOCUMENTS))
    if not first:
        raise ValueError(f"{described} holds no documents: there is nothing to harvest")
    facts |= {
        "text_column": text_column,
        "first_documents_sha256": hashlib.sha256(
            "\0".join(first).encode("utf-8", "surrogatepass")
        ).hexdigest(),
    }
    if isinstance(dataset, Iterator):
        probe = itertools.chain(first, probe)
        return Source(facts, first, lambda: probe)
    return Source(facts, first, open_stream)


def _as_names(dataset: Any) -> list[str] | None:
    """The datasets that a string, path or sequence of these names; None if `dataset` holds the documents itself."""
    if isinstance(dataset, str | Path):
        return [str(dataset)]
    if (
        isinstance(dataset, list | tuple)
        and dataset
        and all(isinstance(item, str | Path) for item in dataset)
    ):
        names = [str(item) for item in dataset]
        if all(_looks_like_dataset(name) for name in names):
            return names
    return None


def _looks_like_dataset(name: str) -> bool:
    """A file or folder, a data file's name, or a hub id of the form owner/name."""
    if len(name) > 1000 or "\n" in name:
        return False
    return (
        _format_of(name) is not None
        or re.fullmatch(r"[\w.-]+/[\w.-]+", name) is not None
        or Path(name).exists()
    )


def _format_of(name: str) -> str | None:
    suffixes = [suffix for suffix in Path(name).suffixes if suffix not in _COMPRESSED]
    return _FORMATS.get(suffixes[-1]) if suffixes and " " not in suffixes[-1] else None


def _named(
    name: str, split: str, text_unit: str, config: str | None, revision: str | None
) -> tuple[dict[str, Any], Callable[[], Iterable[Any]]]:
    """(facts for the plan, opener) of a dataset on the hub or on disk."""
    import datasets

    path = Path(name)
    if path.is_file() or (_format_of(name) and not re.fullmatch(r"[\w.-]+/[\w.-]+", name)):
        if not path.is_file():
            raise FileNotFoundError(
                f"dataset {name} expected an existing file: there is none at {path.resolve()}"
            )
        kind = _format_of(name)
        if kind is None:
            raise ValueError(
                f"dataset {name} expected a file of type {', '.join(_FORMATS)} (or compressed), got {path.name}"
            )
        options = {"sample_by": text_unit} if kind == "text" else {}
        arguments: dict[str, Any] = {"path": kind, "data_files": str(path), **options}
        facts = {"file": path.name, "fingerprint": _file_fingerprint(path)} | options
    elif path.is_dir():
        if (path / "state.json").exists() or (path / "dataset_dict.json").exists():
            return _saved_to_disk(path, split)
        arguments = {"path": str(path), "name": config}
        facts = {"folder": path.name, "config": config}
    else:
        arguments = {"path": name, "name": config, "revision": revision}
        facts = {"hub": name, "config": config, "revision": revision}

    builder = datasets.load_dataset_builder(**arguments)
    try:
        stream = builder.as_streaming_dataset(split=split)
    except ValueError as error:
        if "split" in str(error):
            raise ValueError(f"dataset {name} has no split {split!r}: {error}") from error
        raise
    if "hub" in facts:
        commit = re.search("@([0-9a-f]{40})", str(builder.config.data_files))
        facts["fingerprint"] = commit[1] if commit else None
    return facts, lambda: stream


def _saved_to_disk(path: Path, split: str) -> tuple[dict[str, Any], Callable[[], Iterable[Any]]]:
    import datasets

    found = datasets.load_from_disk(str(path))
    if isinstance(found, datasets.DatasetDict):
        if split not in found:
            raise ValueError(
                f"dataset {path} has no split {split!r}{nearest(split, found)}; it has {', '.join(found)}"
            )
        found = found[split]
    return {"folder": path.name, "fingerprint": found._fingerprint}, lambda: found


def _given(dataset: Any, split: str) -> tuple[Callable[[], Iterable[Any]], dict[str, Any]]:
    """(opener, facts for the plan) of documents that the caller passed as an object."""
    if isinstance(dataset, Mapping):
        if split not in dataset:
            raise ValueError(
                f"dataset has no split {split!r}{nearest(split, dataset)}; it has {', '.join(dataset)}"
            )
        dataset = dataset[split]
    if not isinstance(dataset, Iterable):
        raise ValueError(f"dataset expected names, texts or rows, got {type(dataset).__name__}")
    facts: dict[str, Any] = {"kind": f"{type(dataset).__name__} of documents"}
    if isinstance(dataset, Sequence):
        facts["n_documents"] = len(dataset)
    return lambda: dataset, facts


def _text_of(row: Any, index: int, text_column: str, described: str) -> str:
    if isinstance(row, Mapping):
        if text_column not in row:
            hint = nearest(text_column, row)
            raise ValueError(
                f"{described} has no column {text_column!r}{hint}; its columns are {', '.join(map(str, row))}: "
                "name one with text_column"
            )
        row = row[text_column]
    if row is None:
        return ""
    if not isinstance(row, str):
        raise ValueError(
            f"{described}: document {index} expected text, got {type(row).__name__}; name another text_column"
        )
    return row


def _file_fingerprint(path: Path) -> str:
    """sha256 of a file's size and its first and last MiB: told apart without reading all of a large file."""
    size = path.stat().st_size
    digest = hashlib.sha256(str(size).encode())
    with open(path, "rb") as file:
        digest.update(file.read(_PROBE_BYTES))
        file.seek(max(0, size - _PROBE_BYTES))
        digest.update(file.read(_PROBE_BYTES))
    return digest.hexdigest()
