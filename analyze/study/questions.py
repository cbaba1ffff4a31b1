"""Questions about entities, each with what is true: the records of a study, their file, and their tokens.

A file of records is JSON, one object a line, with the fields of `Question`:

    {"prompt": "The city Leeuwarden lies in", "entity": "Leeuwarden", "answer": "Netherlands", "relation":
     "country", "type": "city"}
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from saelens_lite.config import check_fields, from_mapping
from saelens_lite.data_files import text_lines
from saelens_lite.json_data import loads
from saelens_lite.lm.positions import span_mask
from saelens_lite.misfits import names_misfits


@dataclass(frozen=True, kw_only=True, slots=True)
class Question:
    """One question about one entity, which the model's continuation of the prompt answers."""

    prompt: str
    """Up to where the answer begins, without white space at its end."""
    entity: str
    """The entity's name as it stands in the prompt."""
    answer: str | tuple[str, ...] = ()
    """What is right; several spellings are all right. None where nobody knows."""
    relation: str = ""
    """What is asked, such as "country"."""
    group: str = ""
    """What belongs together when entities are drawn and divided: by default the entity's name."""
    type: str = ""
    """Kind of entity, such as "city"; of several kinds, latents are chosen that serve all of them."""
    known: bool | None = None
    """Whether the model knows the answer, where that is certain; None leaves it to the model's answers."""
    span: tuple[int, int] | None = None
    """The entity in the prompt, in characters; needed where its name stands there more than once."""

    def __post_init__(self) -> None:
        check_fields(self)
        if not self.prompt or self.prompt != self.prompt.rstrip():
            raise ValueError(
                "prompt expected text without white space at its end, as tokens begin with theirs, got "
                f"{self.prompt!r}"
            )
        if self.span is not None:
            if len(self.span) != 2:
                raise ValueError(f"span expected two places in the prompt, start and end, got {self.span}")
            start, end = self.span
            if not 0 <= start < end <= len(self.prompt):
                raise ValueError(
                    f"span expected a part of the prompt's {len(self.prompt)} characters, got {self.span}"
                )
            if self.prompt[start:end] != self.entity:
                raise ValueError(
                    f"span expected to be that of {self.entity!r}, got {self.prompt[start:end]!r}"
                )
        elif not self.entity or (found := self.prompt.count(self.entity)) == 0:
            raise ValueError(f"entity expected a part of the prompt {self.prompt!r}, got {self.entity!r}")
        elif found > 1:
            raise ValueError(
                f"{self.entity!r} stands {found} times in {self.prompt!r}: give span=(start, end)"
            )

    @property
    def place(self) -> tuple[int, int]:
        """The entity in the prompt, in characters."""
        if self.span is not None:
            return self.span
        start = self.prompt.index(self.entity)
        return start, start + len(self.entity)

    @property
    def cluster(self) -> str:
        """The group, or the entity's name."""
        return self.group or self.entity

    @property
    def answers(self) -> tuple[str, ...]:
        """All that is right."""
        return (self.answer,) if isinstance(self.answer, str) else self.answer


@names_misfits
def read_questions(path: str | Path) -> list[Question]:
    """The questions of a study, read from a file of records, compressed or not; its format stands above.

    raises: ValueError with the line for what is no JSON object of the fields, or has the wrong values
    """
    records = []
    for number, line in enumerate(text_lines(path), 1):
        if not line.strip():
            continue
        where = f"{path}, line {number}"
        try:
            fields = loads(line)
        except json.JSONDecodeError as error:
            raise ValueError(f"{where} expected a JSON object, got {line[:60]!r}: {error}") from error
        if not isinstance(fields, dict):
            raise ValueError(
                f"{where} expected a JSON object with fields of Question, got {type(fields).__name__}"
            )
        fields = {key: tuple(value) if isinstance(value, list) else value for key, value in fields.items()}
        try:
            records.append(from_mapping(Question, fields, where))
        except ValueError as error:
            raise ValueError(str(error) if str(error).startswith(where) else f"{where}: {error}") from error
    if not records:
        raise ValueError(f"{path} expected records, got an empty file")
    return records


@dataclass(frozen=True, slots=True, eq=False)
class Batch:
    """Records as tokens, int64[batch width] padded on the left.

    entity, last: bool[batch width], the tokens of the entity that are edited, and its last one
    """

    records: tuple[Question, ...]
    inputs: dict[str, Tensor]
    entity: Tensor
    last: Tensor


def batches(
    tokenizer: Any, records: Sequence[Question], size: int, position: Literal["last", "all"] = "last"
) -> Iterator[Batch]:
    """The records in batches of `size`, in their order. raises: ValueError for a tokenizer without offsets"""
    if not getattr(tokenizer, "is_fast", False):
        raise ValueError(
            f"a study expected a fast tokenizer, which gives offsets, got {type(tokenizer).__name__}"
        )
    pad = tokenizer.pad_token_id or 0
    for start in range(0, len(records), size):
        of_batch = tuple(records[start : start + size])
        encoded = tokenizer([record.prompt for record in of_batch], return_offsets_mapping=True)
        ids, offsets = encoded["input_ids"], encoded["offset_mapping"]
        width = max(map(len, ids))
        inputs = {
            "input_ids": torch.tensor([[pad] * (width - len(row)) + row for row in ids]),
            "attention_mask": torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in ids]),
        }
        places = torch.tensor([[(0, 0)] * (width - len(row)) + list(row) for row in offsets])
        padded = {"offset_mapping": places}
        spans = [record.place for record in of_batch]
        yield Batch(of_batch, inputs, span_mask(padded, spans, position), span_mask(padded, spans, "last"))
