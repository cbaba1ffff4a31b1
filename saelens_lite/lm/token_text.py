"""Token ids as readable pieces, which joined give the decoded text."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from saelens_lite.misfits import names_misfits

LONGEST_RUN_TOKENS = 8
"""Longest run of tokens that `token_strings` joins; a UTF-8 character has at most four bytes."""


def special_token_ids(tokenizer: Any) -> list[int]:
    """Ids of the tokens that are no text: those with a role, and those the tokenizer marks as special."""
    marked = [i for i, token in getattr(tokenizer, "added_tokens_decoder", {}).items() if token.special]
    return sorted({*tokenizer.all_special_ids, *marked})


def token_strings(tokenizer: Any, ids: Sequence[int]) -> list[str]:
    """The text of each token, such that the pieces joined give the decoded text.

    A character whose bytes are spread over several tokens (an emoji, a Chinese character) is the piece of the
    first; the others are "". A space that a tokenizer hides at the start of a text is shown where the text
    has one. Bytes that never become a character stay U+FFFD on the token where they begin.
    """

    def decode(start: int, end: int) -> str:
        return tokenizer.decode(ids[start:end], skip_special_tokens=False, clean_up_tokenization_spaces=False)

    ids = [int(i) for i in ids]
    pieces = [""] * len(ids)
    context = start = 0  # ids[context:start] are settled; what follows them may depend on them
    known = ""  # decode(context, start)
    pending = ""  # what the unsettled tokens ids[start:end] gave before the current one
    for end in range(1, len(ids) + 1):
        text = decode(context, end)
        # byte fallback gives up a whole run of bytes for one that begins no character: what was settled stays
        new = text[len(known) :] if text.startswith(known) else decode(start, end)
        if new.endswith("�") and end - start < LONGEST_RUN_TOKENS and end < len(ids):
            pending = new
            continue
        if pending and new.startswith(pending) and end - start > 1:  # the last token repaired nothing
            pieces[start], pieces[end - 1] = pending, new[len(pending) :]
        else:
            pieces[start] = new
        context, start, pending = start, end, ""
        known = decode(context, start)
    return pieces


def spelled(tokenizer: Any, token_id: int, piece: str) -> str:
    """A piece of `token_strings`, or where it shows nothing of its token, which is part of a character, the
    token's bytes: "⟨0xE2⟩"."""
    if piece and "�" not in piece:
        return piece
    if (bytes_ := token_bytes(tokenizer, token_id)) is None:
        return f"⟨token {token_id}⟩"
    text = bytes_.decode("utf-8", "surrogateescape")
    return re.sub(r"[\udc80-\udcff]", lambda found: f"⟨0x{ord(found[0]) - 0xDC00:02X}⟩", text)


def token_bytes(tokenizer: Any, token_id: int) -> bytes | None:
    """A token's bytes, as vocabularies name them: <0xE2> (SentencePiece), or GPT-2's letters for bytes."""
    name = getattr(tokenizer, "convert_ids_to_tokens", lambda _: None)(token_id)
    if not isinstance(name, str) or not name:
        return None
    if found := re.fullmatch(r"<0x([0-9A-Fa-f]{2})>", name):
        return bytes.fromhex(found[1])
    letters = [_BYTES.get(letter) for letter in name]
    return None if None in letters else bytes(letters)  # type: ignore[arg-type]


def _byte_letters() -> dict[str, int]:
    """The byte that each letter of a byte-level vocabulary stands for (GPT-2): itself where it can be seen,
    else the next letters from U+0100."""
    seen = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    hidden = [byte for byte in range(256) if byte not in seen]
    return {chr(byte): byte for byte in seen} | {chr(0x100 + i): byte for i, byte in enumerate(hidden)}


_BYTES = _byte_letters()


def text_ids(tokenizer: Any, text: str) -> list[int]:
    """A text as a harvest reads it: after one BOS, where the tokenizer has one."""
    ids, bos = list(tokenizer(text, add_special_tokens=False).input_ids), tokenizer.bos_token_id
    return ids if bos is None or ids[:1] == [bos] else [bos, *ids]


@names_misfits
def token_of(tokenizer: Any, word: str) -> int:
    """The id of the token that reads `word`, its space included, inside a text: token_of(tokenizer, " Lily").

    What a tokenizer makes of a word alone may begin with a piece of its own (SentencePiece: "▁"), so
    `tokenizer(word).input_ids[0]` may be another token.
    raises: ValueError for a word of no token or of several
    """
    if (found := id_reading(tokenizer, word)) is not None:
        return found
    if word and id_reading(tokenizer, spaced := f" {word}") is not None:
        raise ValueError(f"expected the text of one token, {word!r} is none but {spaced!r} is: take that")
    pieces = token_strings(tokenizer, tokenizer(word, add_special_tokens=False).input_ids)
    raise ValueError(f"expected the text of one token, {word!r} is {len(pieces)}: {pieces}; take one of them")


def id_reading(tokenizer: Any, token: str) -> int | None:
    """The id of the token that reads so inside a text, or None.

    What a tokenizer makes of the token alone may begin with a space of its own (Llama), so its last piece is
    asked how it reads, and so are the vocabulary's entries by name.
    """
    vocabulary = tokenizer.get_vocab()
    named = [vocabulary[name] for name in (token, token.replace(" ", "▁")) if name in vocabulary]
    candidates: list[int] = [*tokenizer(token, add_special_tokens=False).input_ids[-1:], *named]
    # twice: alone, a tokenizer may hide its leading space
    return next((i for i in candidates if token and token_strings(tokenizer, [i, i])[1] == token), None)
