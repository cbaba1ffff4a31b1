"""Documents to packed shards: tokenising, and cutting the stream of documents at the shards' edges."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Collection, Iterator
from typing import Any

from saelens_lite.tokens import PackedContexts, pack

from .source import Source

_TOKENIZE_DOCUMENTS = 64


@dataclasses.dataclass(frozen=True, slots=True)
class PackedShard:
    """What one shard needs before the model: its contexts, and how many documents its span has."""

    index: int
    contexts: PackedContexts
    n_documents: int


def packed_shards(
    source: Source, tokenizer: Any, plan: dict[str, Any], finished: Collection[int], n_embeddings: int
) -> Iterator[PackedShard]:
    """The shards that are not finished, in order; the documents of finished ones are read past, not tokenised.

    raises: ValueError for a token id that the model has no embedding for
    """
    documents = enumerate(source.texts)
    for index in itertools.count():
        span = list(itertools.islice(documents, plan["documents_per_shard"]))
        if not span:
            return
        if index in finished:
            continue
        contexts = pack(
            _tokenized(span, tokenizer),
            plan["context_length"],
            plan["bos_id"],
            separator_id=plan["separator_id"],
            special_ids=plan["special_ids"],
            max_rows=plan["max_tokens"],
            first_doc=span[0][0],
        )
        largest = int(contexts.input_ids.max(initial=0))
        if largest >= n_embeddings:
            raise ValueError(
                f"the tokenizer gave id {largest}, the model has embeddings for 0 to {n_embeddings - 1}: "
                "they do not belong together"
            )
        yield PackedShard(index, contexts, len(span))


def _tokenized(span: list[tuple[int, str]], tokenizer: Any) -> Iterator[tuple[int, list[int]]]:
    for start in range(0, len(span), _TOKENIZE_DOCUMENTS):
        part = span[start : start + _TOKENIZE_DOCUMENTS]
        yield from zip((index for index, _ in part), token_ids(tokenizer, [text for _, text in part]), strict=True)


def token_ids(tokenizer: Any, texts: list[str]) -> list[list[int]]:
    """The ids of each text, without added special tokens; `verbose` would warn of texts longer than a context."""
    return tokenizer(texts, add_special_tokens=False, verbose=False)["input_ids"]


def special_ids(tokenizer: Any) -> list[int]:
    """Ids of the tokens that are no text: those with a role, and those the tokenizer marks as special."""
    marked = [i for i, token in getattr(tokenizer, "added_tokens_decoder", {}).items() if token.special]
    return sorted({*tokenizer.all_special_ids, *marked})
