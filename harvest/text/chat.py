"""TODO clause of harvest/text/chat.py."""

from __future__ import annotations

import datetime
from collections.abc import Sequence
from typing import Any

from .documents import Document, sha256_of

_DATE = datetime.datetime(2024, 7, 26)


"""What a chat template is told when it asks for the date: rows depend on the plan, not on the day. It is the
date that Llama's templates take where none is given."""


_DATE_FORMATS = ("a", "A", "b", "B", "d", "-d", "H", "I", "j", "m", "-m", "M", "p", "S", "y", "Y")


def chat_facts(tokenizer: Any, documents: Sequence[Document]) -> dict[str, str]:
    """What a plan says of the chat template: its hash if a chat is among the documents, as rows then depend
    on it."""
    if not any(map(_is_chat, documents)):
        return {}
    return {"chat_template_sha256": sha256_of([_chat_template(tokenizer)])}


def _is_chat(document: Document) -> bool:
    return not isinstance(document, str) and len(document) > 0 and not isinstance(document[0], int)


def _chat_text(tokenizer: Any, messages: list[dict[str, Any]]) -> str:
    template = _dated(_chat_template(tokenizer))
    try:
        return tokenizer.apply_chat_template(messages, chat_template=template, tokenize=False)
    except Exception as error:  # a template is a program of its own, and raises what it likes
        raise ValueError(
            f"the tokenizer's chat template refuses a chat, {str(messages)[:200]}: {error}"
        ) from error


def _chat_template(tokenizer: Any) -> str:
    if not getattr(tokenizer, "chat_template", None):
        raise ValueError(
            "the documents are chats, and the tokenizer has no chat template: take the tokenizer of a chat "
            "model, set "
            "tokenizer.chat_template, or name another text_column"
        )
    return tokenizer.get_chat_template()


def _dated(template: str) -> str:
    """The template, with the function by which it would ask for today's date shadowed by one that gives
    `_DATE`."""
    if "strftime_now" not in template:
        return template
    filters = "".join(f"|replace('%{name}', '{_DATE.strftime('%' + name)}')" for name in _DATE_FORMATS)
    # behind an expression, unlike behind a block, the line end that a template may begin with is kept
    return "{% macro strftime_now(format) %}{{ format" + filters + " }}{% endmacro %}{{ '' }}" + template
