"""Turns documents into packed shards: tokenises them, and cuts their stream at the shards' edges."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from saelens_lite.store.packing import APART, PackedContexts, pack

from .chat import chat_text, is_chat
from .documents import Cursor, Document, Source

_TOKENIZE_DOCUMENTS = 64


@dataclasses.dataclass(frozen=True, slots=True)
class PackedShard:
    """One shard before the model; n_documents: of its span.

    cursor: for `Source.open(index * documents_per_shard, cursor)`; None if the source has no positions
    """

    index: int
    contexts: PackedContexts
    n_documents: int
    cursor: Cursor | None


def packed_shards(
    source: Source,
    tokenizer: Any,
    plan: dict[str, Any],
    claims: Iterable[int],
    n_embeddings: int,
    start: int = 0,
    cursor: Cursor | None = None,
) -> Iterator[PackedShard]:
    """The claimed shards, up to the first without documents; those between them are skipped, not tokenised.

    claims: ascending indices, taken one at a time, so there may be infinitely many
    n_embeddings: token ids from 0 to n_embeddings - 1 are the model's
    start, cursor: a shard not after the first claim, and the source's cursor before it
    raises: ValueError for a token id without an embedding, or claims that do not ascend from `start`
    """
    per_shard = plan["documents_per_shard"]
    documents = source.open(start * per_shard, cursor)
    at = start
    for index in claims:
        if index < at:
            raise ValueError(f"claims expected ascending shards from {at} on, got {index}")
        documents.skip((index - at) * per_shard)
        position = documents.cursor()
        span = list(itertools.islice(documents, per_shard))
        if not span:
            return
        at, first_doc = index + 1, index * per_shard
        contexts = _packed(_tokenized(span, first_doc, tokenizer, n_embeddings), plan, first_doc)
        largest = int(contexts.input_ids.max(initial=0))
        if largest >= n_embeddings:
            raise ValueError(
                f"the tokenizer gave id {largest}, the model has embeddings for 0 to {n_embeddings - 1}: "
                "they do not belong together"
            )
        yield PackedShard(index, contexts, len(span), position)


def first_contexts(source: Source, tokenizer: Any, plan: dict[str, Any]) -> PackedContexts:
    """The contexts of shard 0 as far as the source's first documents tell them."""
    documents = source.first[: plan["documents_per_shard"]]
    return _packed(enumerate(token_ids(tokenizer, documents)), plan, 0)


def _packed(
    documents: Iterable[tuple[int, list[int]]], plan: dict[str, Any], first_doc: int
) -> PackedContexts:
    return pack(
        documents,
        plan["context_length"],
        plan["bos_id"],
        separator_id=plan["separator_id"],
        special_ids=plan["special_ids"],
        max_rows=plan["max_tokens"],
        first_doc=first_doc,
        apart=plan.get("packing") == APART,
    )


def _tokenized(
    span: list[Document], first_doc: int, tokenizer: Any, n_embeddings: int
) -> Iterator[tuple[int, list[int]]]:
    for start in range(0, len(span), _TOKENIZE_DOCUMENTS):
        part = span[start : start + _TOKENIZE_DOCUMENTS]
        for index, (document, ids) in enumerate(
            zip(part, token_ids(tokenizer, part), strict=True), first_doc + start
        ):
            if not isinstance(document, str) and ids and not 0 <= min(ids) <= max(ids) < n_embeddings:
                wrong = min(ids) if min(ids) < 0 else max(ids)
                raise ValueError(
                    f"document {index} holds id {wrong}, the model has embeddings for 0 to "
                    f"{n_embeddings - 1}: they do not belong together"
                )
            yield index, ids


def token_ids(tokenizer: Any, documents: Sequence[Document]) -> list[list[int]]:
    """The ids of each document, without added special tokens; chats by the tokenizer's template.

    A leading BOS of a template or of given ids is dropped, as packing puts its own.
    raises: ValueError for a chat without a template, or one that the template refuses
    """
    texts = {
        i: chat_text(tokenizer, document) if is_chat(document) else document
        for i, document in enumerate(documents)
        if isinstance(document, str) or is_chat(document)
    }
    tokenized = dict(zip(texts, _encoded(tokenizer, list(texts.values())), strict=True))
    ids = [tokenized.get(i, document) for i, document in enumerate(documents)]
    return [
        each[1:] if not isinstance(document, str) and each[:1] == [tokenizer.bos_token_id] else each
        for document, each in zip(documents, ids, strict=True)
    ]


def _encoded(tokenizer: Any, texts: list[str]) -> list[list[int]]:
    """The ids of texts, straight from a fast tokenizer: building a BatchEncoding takes a third of the time.

    `verbose` would warn of texts longer than a context.
    """
    if not texts:
        return []
    backend = getattr(tokenizer, "backend_tokenizer", None)
    as_it_stands = (
        backend is not None
        and backend.truncation is None
        and backend.padding is None
        and backend.encode_special_tokens == tokenizer.split_special_tokens
    )
    try:
        if as_it_stands:
            return [encoding.ids for encoding in backend.encode_batch_fast(texts, add_special_tokens=False)]
        return tokenizer(texts, add_special_tokens=False, verbose=False)["input_ids"]
    except (TypeError, UnicodeEncodeError):  # half a surrogate pair, as cut JSON escapes leave it
        whole = [text.encode("utf-16", "surrogatepass").decode("utf-16", "replace") for text in texts]
        if whole == texts:
            raise
        return _encoded(tokenizer, whole)
