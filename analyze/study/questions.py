"""Questions, most of them about an entity, each with what is true: as turns of a chat, and as tokens."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from saelens_lite.config import check_fields
from saelens_lite.lm.positions import span_mask
from saelens_lite.misfits import names_misfits

log = logging.getLogger(__name__)

Position = Literal["last", "all", "prompt_last", "everywhere"]
"""Which tokens of a prompt: the entity's last or all of them, the prompt's last, or all but special ones.
Where there is no entity, the prompt stands in its place."""
POSITIONS: tuple[Position, ...] = get_args(Position)


@dataclass(frozen=True, kw_only=True, slots=True)
class Question:
    """One question about one entity, which the model's continuation of the prompt answers."""

    prompt: str
    """Up to where the answer begins, without a space at its end."""
    entity: str = ""
    """The entity's name as it stands in the prompt; without one the question is about no entity."""
    answer: str | tuple[str, ...] = ()
    """What is right; several spellings are all right. None where nobody knows."""
    relation: str = ""
    """What is asked, such as "country"."""
    group: str = ""
    """What belongs together when entities are drawn and divided: by default the entity's name, or the
    prompt."""
    type: str = ""
    """Kind of entity, such as "city"; of several kinds, latents are chosen that serve all of them."""
    known: bool | None = None
    """Whether the model knows the answer, where that is certain; None leaves it to the model's answers."""
    span: tuple[int, int] | None = None
    """The entity in the prompt, in characters; needed where its name stands there more than once, and enough
    without the name."""
    popularity: float | None = None
    """How well known the entity is, such as views of its page."""
    source: str = ""
    """Where the question is from."""
    template: str = ""
    """The form that the prompt was written in."""

    def __post_init__(self) -> None:
        check_fields(self)
        if not self.prompt.strip() or self.prompt[-1] in " \t":
            raise ValueError(
                "prompt expected text without a space at its end, as tokens begin with theirs, got "
                f"{self.prompt!r}"
            )
        if any(not answer.strip() for answer in self.answers):
            raise ValueError(
                f"answer expected text, got {self.answer!r}: leave it out where nobody knows what is right"
            )
        if self.span is not None:
            if len(self.span) != 2:
                raise ValueError(f"span expected two places in the prompt, start and end, got {self.span}")
            start, end = self.span
            if not 0 <= start < end <= len(self.prompt):
                raise ValueError(
                    f"span expected a part of the prompt's {len(self.prompt)} characters, got {self.span}: "
                    "give "
                    "its start and end, counted from 0, the end not included"
                )
            if self.entity not in ("", self.prompt[start:end]):
                raise ValueError(
                    f"span expected to be that of {self.entity!r}, got {self.prompt[start:end]!r}: correct "
                    "one of "
                    "the two, or leave entity out"
                )
        elif self.entity and (found := self.prompt.count(self.entity)) != 1:
            if not found:
                raise ValueError(
                    f"entity expected a part of the prompt {self.prompt!r}, got {self.entity!r}: write it "
                    "as it "
                    "stands there, give span=(start, end), or leave it out"
                )
            raise ValueError(
                f"{self.entity!r} stands {found} times in {self.prompt!r}: give span=(start, end)"
            )

    @property
    def place(self) -> tuple[int, int] | None:
        """The entity in the prompt, in characters; None for a question about none."""
        if self.span is not None or not self.entity:
            return self.span
        start = self.prompt.index(self.entity)
        return start, start + len(self.entity)

    @property
    def cluster(self) -> str:
        """The group, or the entity's name, or the prompt."""
        named = self.entity or (self.prompt[slice(*self.span)] if self.span else "")
        return self.group or named or self.prompt

    @property
    def answers(self) -> tuple[str, ...]:
        """All that is right."""
        return (self.answer,) if isinstance(self.answer, str) else self.answer


@dataclass(frozen=True, slots=True, eq=False)
class Batch:
    """Records as tokens, int64[batch width] padded on the left.

    entity, last: bool[batch width], the tokens that are edited, and the entity's last one
    whole: bool[batch width], all tokens of the entity, or of the prompt where there is none
    """

    records: tuple[Question, ...]
    inputs: dict[str, Tensor]
    entity: Tensor
    last: Tensor
    whole: Tensor


@names_misfits
def as_chat(
    tokenizer: Any, records: Sequence[Question], *, template: str | None = None, system: str | None = None
) -> list[Question]:
    """The questions with their prompts written by the chat template, up to where the answer begins.

    Entities keep their place, and questions their group. A question without an entity is then one about the
    end of the prompt: its last token is the last of the template.

    template: a Jinja template, run in a sandbox; None takes the tokenizer's own
    system: what the system turn says; None writes none
    raises: ValueError where there is no template, where it fails, or where it does not write each prompt once
    """
    if not getattr(tokenizer, "chat_template", None) and template is None:
        raise ValueError(
            f"a chat expected a template, got none, as {type(tokenizer).__name__} of "
            f"{tokenizer.name_or_path or 'this model'} has none: give one as a string (--chat-template), "
            "or ask "
            "without --chat"
        )
    turns = [] if system is None else [{"role": "system", "content": system}]
    found = []
    for record in records:
        try:
            text = tokenizer.apply_chat_template(
                [*turns, {"role": "user", "content": record.prompt}],
                chat_template=template,
                tokenize=False,
                add_generation_prompt=True,
            )
        except Exception as error:  # whatever a template of a stranger raises
            raise ValueError(f"the chat template fails on {record.prompt!r}: {error}") from error
        if text.count(record.prompt) != 1:
            raise ValueError(
                f"the chat template expected to write the prompt {record.prompt!r} once, got {text!r}"
            )
        start, place = text.index(record.prompt), record.place
        span = None if place is None else (start + place[0], start + place[1])
        found.append(replace(record, prompt=text, span=span, group=record.cluster))
    return found


def with_instruction(records: Sequence[Question], instruction: str) -> list[Question]:
    """The questions with a sentence before their prompts; entities keep their place, and questions their
    group."""
    before = instruction.strip() + " "
    found = []
    for record in records:
        span = None if record.place is None else tuple(len(before) + at for at in record.place)
        found.append(replace(record, prompt=before + record.prompt, span=span, group=record.cluster))
    return found


def batches(
    tokenizer: Any, records: Sequence[Question], size: int, position: Position = "last"
) -> Iterator[Batch]:
    """The records in batches of `size`, in their order. raises: ValueError for a tokenizer without offsets"""
    if not getattr(tokenizer, "is_fast", False):
        raise ValueError(
            f"a study expected a fast tokenizer, which gives offsets, got {type(tokenizer).__name__}"
        )
    pad = tokenizer.pad_token_id or 0
    for start in range(0, len(records), size):
        of_batch = tuple(records[start : start + size])
        encoded = [_encoded(tokenizer, record.prompt) for record in of_batch]
        width = max(len(of["input_ids"]) for of in encoded)
        rows = {
            name: torch.tensor([[fill] * (width - len(of[name])) + list(of[name]) for of in encoded])
            for name, fill in (("input_ids", pad), ("attention_mask", 0), ("offset_mapping", (0, 0)))
        }
        # special tokens hold no characters
        holds = rows["offset_mapping"].diff(dim=-1)[..., 0] > 0
        spans = [record.place or (0, len(record.prompt)) for record in of_batch]
        prompt_last = torch.zeros_like(holds)
        prompt_last[:, -1] = True
        last = prompt_last if position == "prompt_last" else span_mask(rows, spans, "last")
        about_none = torch.tensor([record.place is None for record in of_batch])
        last = torch.where(about_none[:, None], prompt_last, last)
        whole = span_mask(rows, spans, "all")
        edited = {"prompt_last": prompt_last, "everywhere": holds, "last": last, "all": whole}[position]
        inputs = {name: rows[name] for name in ("input_ids", "attention_mask")}
        yield Batch(of_batch, inputs, edited, last, whole)


def _encoded(tokenizer: Any, prompt: str) -> dict[str, list[Any]]:
    """Ids, mask and offsets of one prompt; a BOS that it writes itself is not put before it once more."""
    given = tokenizer(prompt, return_offsets_mapping=True)
    ids, bos = given["input_ids"], tokenizer.bos_token_id
    if bos is not None and ids[:2] == [bos, bos]:
        log.warning(
            "a prompt begins with %s, and the tokenizer puts another before it: the second is left out",
            tokenizer.bos_token,
        )
        return {name: given[name][1:] for name in ("input_ids", "attention_mask", "offset_mapping")}
    return given
