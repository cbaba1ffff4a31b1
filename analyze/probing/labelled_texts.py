"""Labelled texts from a file or the hub, for probes."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from saelens_lite.data_files import COMPRESSIONS, TABLES, loader_of
from saelens_lite.errors import nearest
from saelens_lite.misfits import names_misfits


@dataclass(frozen=True, slots=True)
class LabelledTexts:
    """One of each a text; groups: None where no field was named. n_left_out: texts of other labels.

    rivals: values of further fields by name, numbers or categories
    """

    texts: list[str]
    labels: list[Hashable]
    groups: list[Hashable] | None
    n_left_out: int
    rivals: dict[str, list[Any]]


@names_misfits
def read_labelled(
    name: str,
    *,
    text_field: str = "text",
    label_field: str = "label",
    group_field: str | None = None,
    rival_fields: Sequence[str] = (),
    labels: Sequence[str] = (),
    split: str = "train",
    max_texts: int | None = None,
    seed: int = 0,
) -> LabelledTexts:
    """Rows of a jsonl, json, csv or parquet file, compressed or not, or of a dataset on the hub.

    labels: as text, the labels to keep; none keeps all
    rival_fields: what else could give a class away, such as the source; of numbers, or else categories
    max_texts: a longer set is sampled at random by seed, because files often come sorted by label
    raises: FileNotFoundError for a missing file; ValueError for a field or label that is not there
    """
    kept, n_left_out, wanted = [], 0, set(labels)
    seen: Counter[str] = Counter()
    for i, row in enumerate(_rows(name, split)):
        for field in filter(None, (text_field, label_field, group_field, *rival_fields)):
            if field not in row:
                raise ValueError(
                    f"{name}, row {i}: no field {field!r}{nearest(field, row)}; its fields are "
                    f"{', '.join(map(str, row))}"
                )
        seen[str(row[label_field])] += 1
        if wanted and str(row[label_field]) not in wanted:
            n_left_out += 1
            continue
        group = row[group_field] if group_field else None
        kept.append((row[text_field], row[label_field], group, [row[field] for field in rival_fields]))
    if missing := [label for label in labels if label not in seen]:
        raise ValueError(
            f"{name} has no label {missing[0]!r}{nearest(missing[0], seen)}; it has {_shown(seen)}"
        )
    if max_texts is not None and len(kept) > max_texts:
        kept = random.Random(seed).sample(kept, max_texts)
    texts, of_texts, groups = ([row[i] for row in kept] for i in range(3))
    rivals = {field: _rival([row[3][i] for row in kept]) for i, field in enumerate(rival_fields)}
    return LabelledTexts(texts, of_texts, groups if group_field else None, n_left_out, rivals)


def _rival(values: list[Any]) -> list[Any]:
    numbers = all(isinstance(value, int | float) and not isinstance(value, bool) for value in values)
    return values if numbers else [str(value) for value in values]


def _rows(name: str, split: str) -> Iterable[Mapping[str, Any]]:
    """Streamed: nothing is copied into a cache."""
    from datasets import load_dataset

    path, kind = Path(name), loader_of(name)
    if kind in (None, "text"):
        if path.exists() or any(suffix not in COMPRESSIONS for suffix in path.suffixes):
            raise ValueError(
                f"{name} expected a file of {', '.join(TABLES)}, or a dataset of the hub, owner/name"
            )
        return load_dataset(name, split=split, streaming=True)
    if not path.is_file():
        raise FileNotFoundError(f"no file {name}")
    if not path.stat().st_size:
        raise ValueError(f"{name} expected labelled texts, got an empty file")
    return load_dataset(kind, data_files=str(path), split="train", streaming=True)


def _shown(counts: Counter[str]) -> str:
    most = counts.most_common(8)
    return ", ".join(f"{label} ({n:,})" for label, n in most) + ", …" * (len(counts) > len(most))
