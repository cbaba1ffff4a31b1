"""Questions put to a chat model: each prompt as the user's turn, behind it the beginning of the answer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from .questions import Question


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
