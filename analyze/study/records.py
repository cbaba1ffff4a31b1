"""Files of questions: read and checked, line by line, before a model is loaded.

JSON lines, CSV or parquet, compressed or not. A line, or row, has the fields of `Question` as keys or
columns:

    {"prompt": "The city Leeuwarden lies in", "entity": "Leeuwarden", "answer": "Netherlands", "relation":
     "country", "type": "city"}

In CSV a cell of several answers is a JSON list, and an empty cell is no value. Files with columns of other
names are read through `fields`, prompts are put together by `prompt`.
"""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from saelens_lite.config import from_mapping
from saelens_lite.data_files import loader_of, opened, text_lines
from saelens_lite.errors import nearest
from saelens_lite.json_data import loads
from saelens_lite.misfits import names_misfits

from .questions import Question

Row = dict[str, Any]
_TRUTH = {"true": True, "1": True, "yes": True, "false": False, "0": False, "no": False}


@names_misfits
def read_questions(
    path: str | Path,
    *,
    fields: Mapping[str, str] | None = None,
    prompt: str | None = None,
    only: Mapping[str, str] | None = None,
    complete: bool = False,
) -> list[Question]:
    """The questions of a study, read from a file of records; its format stands above.

    fields: of `Question`, each with the column that holds it: {"answer": "facts.country"} takes "country" of
        the mapping in column "facts"
    prompt: what the prompt is made of, with columns in braces: "The city {entity} lies in"
    only: columns with the value that a row must have to be read
    complete: whether they are all that a study has: there must then be an answer for each that may be known,
        labels for all or none, unknown entities, two entities of each type, and more than one group
    raises: ValueError with the line for what is no record or has the wrong values, and what to do about it
    """
    mapping, records, lines = dict(fields or {}), [], []
    for line, row in _rows(path):
        where = f"{path}, line {line}"
        if any(str(row.get(column)) != value for column, value in (only or {}).items()):
            continue
        given = _fields_of(row, mapping, prompt, where)
        try:
            records.append(from_mapping(Question, given, where))
        except ValueError as error:
            raise ValueError(str(error) if str(error).startswith(where) else f"{where}: {error}") from error
        lines.append(where)
    if not records:
        of = "" if not only else f" with {', '.join(f'{name}={value}' for name, value in only.items())}"
        raise ValueError(f"{path} expected records{of}, got {'none' if only else 'an empty file'}")
    if complete:
        _check_together(records, lines)
    return records


def _check_together(records: Sequence[Question], lines: Sequence[str]) -> None:
    labelled = [record.known is not None for record in records]
    if any(labelled) and not all(labelled):
        raise ValueError(
            f"{lines[labelled.index(False)]}: records expected all to have known, or none, got "
            f"{labelled.count(False)} of {len(records)} without: say who is known everywhere, or leave it "
            "to the "
            "model's answers everywhere"
        )
    for record, line in zip(records, lines):
        if record.known is not False and not record.answers:
            raise ValueError(
                f"{line}: answer expected what is right, got none for {record.prompt!r}: give it, or "
                "known=false "
                "where the model cannot know it"
            )
    if all(labelled) and len({record.known for record in records}) == 1:
        has, lacks = ("known", "unknown") if records[0].known else ("unknown", "known")
        raise ValueError(
            f"{lines[0]}, and all others: a study expected known and unknown entities, got {has} ones "
            f"alone: add records of {lacks} entities, or leave known out to label them by answers"
        )
    clusters: dict[str, dict[str, int]] = {}
    for i, record in enumerate(records):
        clusters.setdefault(record.type, {}).setdefault(record.cluster, i)
    for kind, found in clusters.items():
        if len(found) == 1:
            [[cluster, i]] = found.items()
            of = f"type {kind!r}" if kind else "records without a type"
            raise ValueError(
                f"{lines[i]}: {of} expected several entities, to choose latents on some and test them on "
                "others, "
                f"got {cluster!r} alone: add entities, give it another type, or leave group and type out"
            )


def _fields_of(row: Row, mapping: Mapping[str, str], prompt: str | None, where: str) -> Row:
    """A row with the names of `Question`."""
    names = Question.__dataclass_fields__
    for name in mapping:
        if name not in names:
            raise ValueError(f"fields expected fields of Question, got {name!r}{nearest(name, names)}")
    found = {name: _column(row, column, where) for name, column in mapping.items()}
    if prompt is not None:
        found["prompt"] = re.sub(r"\{([\w.]+)\}", lambda hit: str(_column(row, hit[1], where)), prompt)
    if found:  # the other columns of a file that was not made for a study may be anything
        found = {name: value for name, value in row.items() if name in names} | found
    else:
        found = row
    return {key: tuple(value) if isinstance(value, list) else value for key, value in found.items()}


def _column(row: Row, name: str, where: str) -> Any:
    """A value of a row, by the name of its column, or by names with dots for mappings within."""
    value: Any = row
    for part in [name] if name in row else name.split("."):
        if not isinstance(value, Mapping) or part not in value:
            has = list(value) if isinstance(value, Mapping) else []
            raise ValueError(
                f"{where} expected a column {name!r}{nearest(part, has)}, got {', '.join(has) or 'none'}"
            )
        value = value[part]
    return value


def _rows(path: str | Path) -> Iterator[tuple[int, Row]]:
    """Each record with its line, or its row in a parquet file, counted from 1."""
    kind = loader_of(str(path))
    yield from {"csv": _csv_rows, "parquet": _parquet_rows}.get(kind or "", _json_rows)(path)


def _json_rows(path: str | Path) -> Iterator[tuple[int, Row]]:
    for number, line in enumerate(text_lines(path), 1):
        if not line.strip():
            continue
        try:
            row = loads(line)
        except json.JSONDecodeError as error:
            raise ValueError(
                f"{path}, line {number} expected a JSON object, got {line[:60]!r}: {error}"
            ) from error
        if not isinstance(row, dict):
            raise ValueError(
                f"{path}, line {number} expected a JSON object with fields of Question, got "
                f"{type(row).__name__}"
            )
        yield number, row


def _csv_rows(path: str | Path) -> Iterator[tuple[int, Row]]:
    reader = csv.DictReader(text_lines(path), strict=True)
    try:
        for row in reader:
            where = f"{path}, line {reader.line_num}"
            if None in row or None in row.values():
                raise ValueError(
                    f"{where} expected {len(reader.fieldnames or ())} cells, as the head has: quote cells "
                    "that hold "
                    "a comma"
                )
            yield reader.line_num, {name: _of_cell(name, cell, where) for name, cell in row.items() if cell}
    except csv.Error as error:
        raise ValueError(f"{path} after line {reader.line_num} expected a row of CSV: {error}") from error


def _of_cell(name: str, cell: str, where: str) -> Any:
    """A cell of CSV as the value of a field."""
    if name == "known":
        if cell.lower() not in _TRUTH:
            raise ValueError(f"{where}: known expected true or false, got {cell!r}")
        return _TRUTH[cell.lower()]
    if cell.startswith("[") and name in ("answer", "span"):
        try:
            return loads(cell)
        except json.JSONDecodeError as error:
            raise ValueError(f"{where}: {name} expected a JSON list, got {cell!r}: {error}") from error
    if name == "popularity":
        try:
            return float(cell)
        except ValueError as error:
            raise ValueError(f"{where}: popularity expected a number, got {cell!r}") from error
    return cell


def _parquet_rows(path: str | Path) -> Iterator[tuple[int, Row]]:
    import pyarrow
    from pyarrow import parquet

    try:
        with opened(path) as file:
            table = parquet.read_table(pyarrow.BufferReader(file.read()))
    except (pyarrow.ArrowInvalid, OSError, EOFError) as error:
        raise ValueError(f"{path} expected a parquet file, compressed as its name says: {error}") from error
    for number, row in enumerate(table.to_pylist(), 1):
        yield number, {name: value for name, value in row.items() if value is not None}
