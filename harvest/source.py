"""Documents: from the hub, local files, `datasets` objects or any iterable, as a stream of texts in a fixed order.

A document's index in this stream is its identity everywhere: in shards, in the held-out split, in provenance.
"""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence, Sized
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
    """A stream of documents, to be read once.

    facts: what identifies it, for the plan
    first: its first documents, at most 64, read to look before anything is done
    texts: all documents, the first ones included
    """

    facts: dict[str, Any]
    first: list[str]
    texts: Iterator[str]


def as_names(dataset: Any) -> list[str] | None:
    """The datasets that a string, a path or a list of these names; None if `dataset` holds the documents itself.

    A list of strings is one of names if each could be one: an existing path, a data file's name, or owner/name.
    """
    if isinstance(dataset, str | Path):
        return [str(dataset)]
    if isinstance(dataset, list | tuple) and dataset and all(isinstance(item, str | Path) for item in dataset):
        names = [str(item) for item in dataset]
        if all(_looks_like_dataset(name) for name in names):
            return names
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
    """The documents of datasets on the hub or on disk, one dataset after the other; see HarvestConfig for the rest.

    raises: ValueError if there is no document, no such split or no such column; FileNotFoundError for a missing file
    """
    parts = [_named(name, split, text_unit, config, revision) for name in names]
    facts = {"sources": [facts for facts, _ in parts], "split": split}

    texts = itertools.chain.from_iterable(_texts(rows, text_column, name) for name, (_, rows) in zip(names, parts))
    return _probed(facts, text_column, texts, ", ".join(names))


def open_given(dataset: Any, *, split: str = "train", text_column: str = "text") -> Source:
    """The documents that the caller holds.

    dataset: a `datasets` object; any iterable of strings, or of mappings with a text column; a mapping of these by split.
        A one-time iterator is read where it stands: to go on with a harvest, pass a fresh one.
    raises: ValueError if there is no document, no such split or no such column
    """
    if isinstance(dataset, Mapping):
        dataset = _split_of(dataset, split, "the dataset")
    if not isinstance(dataset, Iterable):
        raise ValueError(f"dataset expected names, texts or rows, got {type(dataset).__name__}")
    described = f"{type(dataset).__name__} of documents"
    facts = {"sources": [{"kind": described, "documents": len(dataset) if isinstance(dataset, Sized) else None}]}
    return _probed(facts, text_column, _texts(dataset, text_column, described), described)


def _probed(facts: dict[str, Any], text_column: str, texts: Iterator[str], described: str) -> Source:
    """Read the first documents, so that what is wrong shows at once; their hash joins the facts."""
    first = list(itertools.islice(texts, _PROBE_DOCUMENTS))
    if not first:
        raise ValueError(f"{described} holds no documents: there is nothing to harvest")
    digest = hashlib.sha256("\0".join(first).encode("utf-8", "surrogatepass")).hexdigest()
    facts = facts | {"text_column": text_column, "first_documents_sha256": digest}
    return Source(facts, first, itertools.chain(first, texts))


def _texts(rows: Iterable[Any], text_column: str, described: str) -> Iterator[str]:
    """The text of each row: a string, or a mapping's text column; a missing text is an empty document."""
    for index, row in enumerate(rows):
        text = row
        if isinstance(row, Mapping):
            if text_column not in row:
                raise ValueError(
                    f"{described} has no column {text_column!r}{nearest(text_column, row)}; "
                    f"its columns are {', '.join(map(str, row))}: name one with text_column"
                )
            text = row[text_column]
        if text is not None and not isinstance(text, str):
            raise ValueError(
                f"{described}: document {index} expected text, got {type(text).__name__}; name another text_column"
            )
        yield text or ""


def _looks_like_dataset(name: str) -> bool:
    if not re.search(r"\s", name) and (_format_of(name) is not None or re.fullmatch(r"[\w.-]+/[\w.-]+", name)):
        return True
    try:
        return bool(name) and Path(name).exists()
    except (OSError, ValueError):  # no file system takes a name like this text
        return False


def _format_of(name: str) -> str | None:
    """The `datasets` loader for a file of that name, a compression's suffix aside; None if it is no data file's name."""
    suffixes = [suffix for suffix in Path(name).suffixes if suffix not in _COMPRESSED]
    return _FORMATS.get(suffixes[-1]) if suffixes else None


def _named(
    name: str, split: str, text_unit: str, config: str | None, revision: str | None
) -> tuple[dict[str, Any], Iterable[Any]]:
    """(facts for the plan, rows) of a dataset on the hub or on disk."""
    import datasets

    path, kind = Path(name), _format_of(name)
    if path.is_file() and kind is None:
        raise ValueError(f"dataset {name} expected a file of type {', '.join(_FORMATS)} (compressed too), got {path.name}")
    if path.is_file():
        options = {"sample_by": text_unit} if kind == "text" else {}
        arguments: dict[str, Any] = {"path": kind, "data_files": str(path), **options}
        facts = {"file": path.name, "fingerprint": _file_fingerprint(path)} | options
    elif path.is_dir():
        if (path / "state.json").exists() or (path / "dataset_dict.json").exists():
            return _saved_to_disk(path, split)
        arguments = {"path": str(path), "name": config}
        facts = {"folder": path.name, "config": config}
    elif kind is not None:
        raise FileNotFoundError(f"dataset {name} expected an existing file: there is none at {path.absolute()}")
    elif re.fullmatch(r"[\w.-]+(/[\w.-]+)?", name) is None:
        raise ValueError(
            f"dataset expected a hub id or an existing file or folder, got {name[:80]!r}: "
            "to harvest texts, pass a list of them"
        )
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
    return facts, stream


def _saved_to_disk(path: Path, split: str) -> tuple[dict[str, Any], Iterable[Any]]:
    import datasets

    found = datasets.load_from_disk(str(path))
    if isinstance(found, datasets.DatasetDict):
        found = _split_of(found, split, f"dataset {path}")
    return {"folder": path.name, "fingerprint": found._fingerprint}, found


def _split_of(splits: Mapping[str, Any], split: str, described: str) -> Any:
    if split not in splits:
        hint = nearest(split, splits)
        raise ValueError(f"{described} has no split {split!r}{hint}; it has {', '.join(splits)}")
    return splits[split]


def _file_fingerprint(path: Path) -> str:
    """sha256 of a file's size and its first and last MiB: told apart without reading all of a large file."""
    size = path.stat().st_size
    digest = hashlib.sha256(str(size).encode())
    with open(path, "rb") as file:
        digest.update(file.read(_PROBE_BYTES))
        file.seek(max(0, size - _PROBE_BYTES))
        digest.update(file.read(_PROBE_BYTES))
    return digest.hexdigest()
