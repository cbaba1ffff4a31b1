"""The text of tokens by id, for pages: as text where a token is whole characters, else as its bytes.

A page joins the bytes of tokens that follow each other, so that a character spread over several is seen.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from saelens_lite.lm.token_text import token_bytes, token_strings

from ..latents.text_windows import visible


class TokenTexts:
    """Looks up texts of one tokenizer, each once. tokenizer: None shows tokens as <id>"""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self._known: dict[int, str | list[int]] = {}

    @property
    def wide(self) -> bool:
        """Whether ids need more than 16 bits."""
        return self._tokenizer is None or len(self._tokenizer) > 0xFFFF

    def of(self, ids: Iterable[int]) -> dict[int, str | list[int]]:
        """The text of each id, on one line with nothing hidden, or its bytes."""
        return {i: self._text(i) for i in ids if i >= 0}

    def _text(self, token_id: int) -> str | list[int]:
        if token_id not in self._known:
            self._known[token_id] = self._looked_up(token_id)
        return self._known[token_id]

    def _looked_up(self, token_id: int) -> str | list[int]:
        if self._tokenizer is None:
            return f"<{token_id}>"
        # twice: alone, a tokenizer may hide its leading space
        text = token_strings(self._tokenizer, [token_id, token_id])[1]
        if text and "�" not in text:
            return visible(text)
        bytes_ = token_bytes(self._tokenizer, token_id)
        if bytes_ is None:
            return f"⟨token {token_id}⟩"
        try:
            return visible(bytes_.decode())
        except UnicodeDecodeError:
            return list(bytes_)
