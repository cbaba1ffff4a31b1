"""Chats as text, through the tokenizer's chat template."""

from __future__ import annotations

import datetime
from collections.abc import Sequence
from typing import Any

from .documents import Document, sha256_of

_DATE = datetime.datetime(2024, 7, 26)
"""The date for templates that ask for one, so that rows depend on the plan and not on the day: the default of
Llama's templates."""

_DATE_FORMATS = ("a", "A", "b", "B", "d", "-d", "H", "I", "j", "m", "-m", "M", "p", "S", "y", "Y")


def chat_facts(tokenizer: Any, documents: Sequence[Document]) -> dict[str, str]:
    """For a plan: the template's hash, if a chat is among the documents."""
    if not any(map(is_chat, documents)):
        return {}
    return {"chat_template_sha256": sha256_of([_chat_template(tokenizer)])}


def is_chat(document: Document) -> bool:
    return not isinstance(document, str) and len(document) > 0 and not isinstance(document[0], int)


def chat_text(tokenizer: Any, messages: list[dict[str, Any]]) -> str:
    template = _dated(_chat_template(tokenizer))
    try:
        return tokenizer.apply_chat_template(messages, chat_template=template, tokenize=False)
    except Exception as error:  # a template is a program, and raises what it likes
        raise ValueError(
            f"the tokenizer's chat template refuses a chat, {str(messages)[:200]}: {error}"
        ) from error


def _chat_template(tokenizer: Any) -> str:
    if not getattr(tokenizer, "chat_template", None):
        raise ValueError(
            "the documents are chats, and the tokenizer has no chat template: take the tokenizer of a chat "
            "model, set tokenizer.chat_template, or name another text_column"
        )
    return tokenizer.get_chat_template()


def _dated(template: str) -> str:
    if "strftime_now" not in template:
        return template
    filters = "".join(f"|replace('%{name}', '{_DATE.strftime('%' + name)}')" for name in _DATE_FORMATS)
    # After an expression, unlike after a block, a leading line end of the template is kept.
    return "{% macro strftime_now(format) %}{{ format" + filters + " }}{% endmacro %}{{ '' }}" + template
