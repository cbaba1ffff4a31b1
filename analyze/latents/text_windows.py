"""What stands around a row: its token, the text on either side in its context, and its document."""

from __future__ import annotations

import logging
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from itertools import accumulate
from typing import Any, Protocol

import torch
from torch import Tensor

from saelens_lite.lm.token_text import spelled, token_strings
from saelens_lite.store.reader import ShardTokens

logger = logging.getLogger(__name__)

LEAD_TOKENS = 4
"""Tokens decoded before and behind a window and dropped: its ends may read by their bytes."""

_INVISIBLE = re.compile(
    r"[\x00-\x1f\x7f-\x9f\u00ad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180b-\u180f\u200b\u200e\u200f"
    r"\u2028-\u202e\u2060-\u206f\u2800\u3164\ud800-\udfff\ufe00-\ufe0f\ufeff\uffa0\ufff0-\ufffb"
    r"\U0001bca0-\U0001bca3\U0001d173-\U0001d17a\U000e0000-\U000e0fff]"
)
"""Control and direction characters, what Unicode says to draw as nothing (fillers, variation selectors,
tags), lone surrogates; not the joiners, which scripts and emoji need."""
_SIGNS = {"\n": "↵", "\r": "⇤", "\t": "⇥"}


class HasTokens(Protocol):
    """A store, or the tokens that an index kept of one."""

    path: Any
    plan: dict[str, Any]
    shard_rows: Sequence[int]
    tokenizer_name: str

    @property
    def has_tokens(self) -> bool: ...

    def tokens(self, shard: int) -> ShardTokens: ...

    def row_docs(self, shard: int) -> Tensor: ...


@dataclass(frozen=True, slots=True)
class Context:
    """A row of the store and the tokens around it.

    document: global index
    tokens: text of each token of the window, and `positions` in its context; empty for a store without tokens
    at: the place of the row's own token among them
    """

    row: int
    document: int
    shard: int
    sequence: int
    position: int
    tokens: tuple[str, ...] = ()
    at: int = 0
    positions: tuple[int, ...] = ()

    @property
    def token(self) -> str:
        return self.tokens[self.at] if self.tokens else ""

    @property
    def before(self) -> str:
        return "".join(self.tokens[: self.at])

    @property
    def after(self) -> str:
        return "".join(self.tokens[self.at + 1 :])


class Contexts:
    """Looks up the contexts of rows, of a store or an index. It reads a shard when it first needs it.

    tokenizer: None loads the store's own when first needed; when that fails, tokens are shown as <id>
    before_tokens, after_tokens: size of the window, which never leaves the row's context
    """

    def __init__(
        self, store: HasTokens, tokenizer: Any = None, before_tokens: int = 16, after_tokens: int = 8
    ) -> None:
        self.store = store
        self.before_tokens, self.after_tokens = before_tokens, after_tokens
        self._given = tokenizer
        self._first_rows = [0, *accumulate(store.shard_rows)]
        self.shard = lru_cache(maxsize=64)(self._read_shard)

    @cached_property
    def tokenizer(self) -> Any:
        """The tokenizer, or None when it cannot be loaded."""
        if self._given is not None or not self.store.tokenizer_name:  # rows from elsewhere name none
            return self._given
        try:
            from transformers import AutoTokenizer

            return AutoTokenizer.from_pretrained(self.store.tokenizer_name, trust_remote_code=False)
        except Exception as error:  # offline, moved, gated, remote code: many unrelated types
            logger.warning(
                "the tokenizer %r of %s cannot be loaded (%s): tokens are shown as ids; pass tokenizer=",
                self.store.tokenizer_name, self.store.path, error,
            )  # fmt: skip
            return None

    @cached_property
    def has_tokens(self) -> bool:
        return self.store.has_tokens

    def at(self, row: int) -> Context:
        if not 0 <= row < self._first_rows[-1]:
            raise ValueError(f"{self.store.path} has rows 0 to {self._first_rows[-1] - 1}, got {row}")
        shard = int(torch.searchsorted(torch.tensor(self._first_rows), row, right=True)) - 1
        if not self.has_tokens:
            return Context(row, int(self.store.row_docs(shard)[row - self._first_rows[shard]]), shard, -1, -1)
        tokens, sequences, positions, _ = self.shard(shard)
        local = row - self._first_rows[shard]
        sequence, position = int(sequences[local]), int(positions[local])
        attended = int(tokens.attended[sequence].sum())
        start, stop = max(0, position - self.before_tokens), min(attended, position + self.after_tokens + 1)
        document = int(tokens.doc_id[sequence, position]) + tokens.first_doc
        lead, end = max(0, start - LEAD_TOKENS), min(attended, stop + LEAD_TOKENS)
        pieces, window = self._pieces(tokens, sequence, lead, end), tuple(range(start, stop))
        pieces[position] = self.spelled(int(tokens.input_ids[sequence, position]), pieces[position])
        shown = tuple(pieces[place] for place in window)
        return Context(row, document, shard, sequence, position, shown, position - start, window)

    def _pieces(self, tokens: ShardTokens, sequence: int, start: int, stop: int) -> dict[int, str]:
        """The text of the tokens at positions start to stop of a sequence, by position.

        At an edge of the context the document's tokens in the neighbouring context are decoded too, without
        the BOS in between: a character whose bytes the edge cuts is whole, as the piece of its first token.
        """

        def ids_at(sequence: int, positions: range) -> list[int]:
            return tokens.input_ids[sequence, positions.start : positions.stop].tolist()

        def same_document(neighbour: int, place: int, own: int) -> bool:
            return bool(tokens.doc_id[neighbour, place] == tokens.doc_id[sequence, own])

        attended = int(tokens.attended[sequence].sum())
        bos = int(self.store.plan.get("bos_id") is not None and attended > 0)
        pieces: dict[int, str] = {}
        if start < bos:
            pieces = dict(zip(range(start, bos), self.strings(ids_at(sequence, range(start, bos)))))
        start = max(start, bos)
        before: list[int] = []
        after: list[int] = []
        if start == bos < attended and sequence > 0 and same_document(sequence - 1, -1, bos):
            length = tokens.input_ids.shape[1]
            before = ids_at(sequence - 1, range(max(bos, length - LEAD_TOKENS), length))
        has_next = stop == attended and sequence + 1 < len(tokens.input_ids)
        if has_next and same_document(sequence + 1, bos, stop - 1):
            after = ids_at(sequence + 1, range(bos, bos + LEAD_TOKENS))
        strings = self.strings([*before, *ids_at(sequence, range(start, stop)), *after])
        return pieces | dict(zip(range(start, stop), strings[len(before) :]))

    def rows_of(self, context: Context) -> list[int]:
        """The row of each token of a window, -1 where a token has none (BOS, special tokens)."""
        if not context.positions:
            return []
        *_, row_at = self.shard(context.shard)
        rows = row_at[context.sequence, context.positions[0] : context.positions[-1] + 1]
        return [-1 if row < 0 else row + self._first_rows[context.shard] for row in rows.tolist()]

    def ids_of(self, context: Context) -> list[int]:
        if not context.positions:
            return []
        tokens = self.shard(context.shard)[0]
        return tokens.input_ids[context.sequence, context.positions[0] : context.positions[-1] + 1].tolist()

    def _read_shard(self, shard: int) -> tuple:
        """(tokens, sequence of each row, position of each row, row of each position or -1)."""
        tokens = self.store.tokens(shard)
        sequences, positions = tokens.kept.nonzero(as_tuple=True)
        row_at = torch.full(tokens.input_ids.shape, -1, dtype=torch.int64)
        row_at[sequences, positions] = torch.arange(len(sequences))
        return tokens, sequences, positions, row_at

    def spelled(self, token_id: int, piece: str) -> str:
        """A token's text by itself: its bytes where the window shows it as part of an earlier token's."""
        return piece if self.tokenizer is None else spelled(self.tokenizer, token_id, piece)

    def strings(self, ids: Sequence[int]) -> list[str]:
        return [f"<{i}>" for i in ids] if self.tokenizer is None else token_strings(self.tokenizer, ids)


def token_text(tokenizer: Any, token_id: int) -> str:
    """The text of one token inside a text: alone, a tokenizer may hide its leading space."""
    if tokenizer is None:
        return f"<{token_id}>"
    return spelled(tokenizer, token_id, token_strings(tokenizer, [token_id, token_id])[1])


def invisible_in_js() -> str:
    """The characters that `visible` shows, as a regular expression of JavaScript (with the flag u)."""
    return re.sub(r"\\U0*([0-9a-f]+)", r"\\u{\1}", _INVISIBLE.pattern)


def visible(text: str) -> str:
    """`text` on one line with nothing hidden: line ends and tabs as signs, other characters by number."""
    return _INVISIBLE.sub(lambda found: _SIGNS.get(found[0]) or f"⟨U+{ord(found[0]):04X}⟩", text)
