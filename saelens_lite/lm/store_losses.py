"""The contexts of a store through its model: which tokens are scored, and their loss under an edit.

Only positions that have rows in the store are replaced: BOS, special tokens and padding stay as they are.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from saelens_lite.device import in_float64
from saelens_lite.lm.decoder import Decoder, Model, evaluation_mode
from saelens_lite.lm.forward_state import placed_inputs
from saelens_lite.lm.hooks import run_to
from saelens_lite.lm.losses import cross_entropy, kl_divergence
from saelens_lite.lm.replacement import splice
from saelens_lite.progress import bar
from saelens_lite.store.document_sample import sampled_rows
from saelens_lite.store.reader import ActivationStore

_SAME_MODEL_TOLERANCE = 0.1


@dataclass(frozen=True, slots=True)
class ContextBatch:
    """Contexts of one shard, where they stand at `sequences`.

    input_ids: int64[batch context]; attended, kept: bool[batch context]
    targets: bool[batch context-1], True where the token after the position counts
    documents: int64[batch context], global index of each token's document; None where it is not known
    """

    input_ids: Tensor
    attended: Tensor
    kept: Tensor
    targets: Tensor
    shard: int
    sequences: Tensor
    documents: Tensor | None = None


@dataclass(frozen=True, slots=True)
class DocumentSums:
    """Sums over the tokens of each document, for intervals; n_tokens and each sum: float64[n_documents]."""

    n_tokens: Tensor
    sums: dict[str, Tensor]


class ByDocument:
    """Adds up values by document, a batch at a time."""

    def __init__(self) -> None:
        self._docs: list[Tensor] = []
        self._sums: list[Tensor] = []

    def add(self, docs: Tensor, values: Tensor) -> None:
        """docs: int64[n]; values: float64[n m]"""
        docs, inverse = docs.unique(return_inverse=True)
        self._docs.append(docs)
        self._sums.append(values.new_zeros(len(docs), values.shape[1]).index_add_(0, inverse, values))

    def total(self) -> Tensor:
        """float64[n_documents m]"""
        docs, inverse = torch.cat(self._docs).unique(return_inverse=True)
        sums = torch.cat(self._sums)
        return sums.new_zeros(len(docs), sums.shape[1]).index_add_(0, inverse, sums)


@dataclass(frozen=True, slots=True)
class Losses:
    """What `cross_entropies` found, in nats a predicted token, by replacement.

    by_document: cross-entropies of each document, by replacement
    kl: KL(p_clean ‖ p) at the positions that ce rests on; empty where it was not asked for
    n_tokens, n_contexts: predicted tokens scored; contexts run
    """

    ce: dict[str, float]
    kl: dict[str, float]
    n_tokens: int
    n_contexts: int
    by_document: DocumentSums


def cross_entropies(
    model: Model,
    store: ActivationStore,
    point: str,
    replacements: Mapping[str, Mapping[str, Any] | None],
    *,
    fraction: float | None,
    max_tokens: int | None,
    batch_size_seqs: int = 8,
    kl: bool = False,
    progress: bool = False,
) -> Losses:
    """Cross-entropy of the store's tokens under each replacement and, with kl, the divergence from the model.

    A token counts when it has a row, is of a scored document and is not the first of its context.

    replacements: by name, the arguments of `splice` beside the hook point and the positions; None for the
        model as it is
    fraction: score only the documents held out (hashing.is_held_out); None for all
    max_tokens: of documents drawn by hash that have this many rows (store/document_sample.py); None for all
    progress: show a bar
    raises: ValueError for another model than the store's, losses that are not finite, or nothing to score
    """
    decoder = Decoder.of(model)
    ce, divergence = dict.fromkeys(replacements, 0.0), dict.fromkeys(replacements if kl else (), 0.0)
    n_tokens, n_contexts, documents = 0, 0, ByDocument()
    with evaluation_mode(decoder), torch.no_grad():
        batches = scored_contexts(store, fraction, max_tokens, batch_size_seqs)
        for batch in bar(batches, f"cross-entropy of {len(replacements)}", "batch") if progress else batches:
            if n_contexts == 0:
                check_model(decoder, store, point, batch)
            clean = scored_logits(decoder, batch) if kl or None in replacements.values() else []
            of_tokens: list[Tensor] = []
            for name, how in replacements.items():
                logits, nats = clean, []
                if how is not None:
                    with splice(decoder, hook_point=point, positions=batch.kept, **how):
                        logits = scored_logits(decoder, batch)
                for i, next_ids in enumerate(_next_ids(batch)):
                    nats.append(cross_entropy(logits[i], next_ids).cpu().double())
                    if kl and how is not None:
                        divergence[name] += in_float64(kl_divergence(clean[i], logits[i])).sum().item()
                of_tokens.append(torch.cat(nats))
                ce[name] += sum(part.sum().item() for part in nats)
            assert batch.documents is not None
            values = torch.stack([torch.ones_like(of_tokens[0]), *of_tokens], dim=1)
            documents.add(batch.documents[:, 1:][batch.targets], values)
            n_tokens += int(batch.targets.sum())
            n_contexts += len(batch.input_ids)
    if n_tokens == 0:
        raise ValueError(
            f"{store.path} has no predicted token in the scored documents; harvest more, or pass "
            "held_out=False"
        )
    for name, how in replacements.items():
        if how is None and not math.isfinite(ce[name]):
            raise ValueError(
                f"the unedited model gives losses that are not finite on {store.path}: load it in float32 or "
                "bfloat16"
            )
    per_token = [{name: sum_ / n_tokens for name, sum_ in sums.items()} for sums in (ce, divergence)]
    tokens, *sums = documents.total().unbind(1)
    return Losses(*per_token, n_tokens, n_contexts, DocumentSums(tokens, dict(zip(replacements, sums))))


def scored_logits(decoder: Decoder, batch: ContextBatch) -> list[Tensor]:
    """Of each context the logits before its scored tokens, float[n_scored vocab], in the model's dtype."""
    inputs = {"input_ids": batch.input_ids, "attention_mask": batch.attended}
    logits = decoder.given(**placed_inputs(decoder, inputs)).logits
    return [row[:-1][scored] for row, scored in zip(logits, batch.targets.to(logits.device), strict=True)]


def _next_ids(batch: ContextBatch) -> list[Tensor]:
    return [ids[1:][scored] for ids, scored in zip(batch.input_ids, batch.targets, strict=True)]


def scored_contexts(
    store: ActivationStore, fraction: float | None, max_tokens: int | None, batch_size_seqs: int
) -> Iterator[ContextBatch]:
    """Batches of the contexts that hold a token to predict, of the rows that are scored."""
    for shard, scored in enumerate(sampled_rows(store, fraction, max_tokens)):
        if not scored.any():
            continue
        tokens = store.tokens(shard)
        kept = tokens.kept.bool()
        doc_ids = tokens.doc_id.long() + tokens.first_doc
        targets = torch.zeros_like(kept).masked_scatter_(kept, scored)[:, 1:]
        with_targets = targets.any(1).nonzero().flatten()
        for sequences in with_targets.split(batch_size_seqs) if len(with_targets) else ():
            ids, attended = tokens.input_ids[sequences].long(), tokens.attended[sequences].bool()
            there = kept[sequences], targets[sequences]
            yield ContextBatch(ids, attended, *there, shard, sequences, doc_ids[sequences])


def check_model(model: Model, store: ActivationStore, point: str, batch: ContextBatch) -> None:
    """raises: ValueError when the model's activations on these contexts are not the rows of the store"""
    decoder, width = Decoder.of(model), store.d_model(point)
    sequences, _ = store.row_positions(batch.shard)
    places = torch.isin(sequences, batch.sequences).nonzero().flatten() + sum(store.shard_rows[: batch.shard])
    rows = store.gather(places, point)
    found = run_to(decoder, [point], input_ids=batch.input_ids, attention_mask=batch.attended)[point]
    if found.shape[-1] != width:
        raise ValueError(
            f"{decoder.class_name} has width {found.shape[-1]} at {point}, but {store.path} holds rows of "
            "width "
            f"{width} from {store.model_name}; pass the model that was harvested"
        )
    difference = ((found.float().cpu()[batch.kept] - rows).norm() / rows.norm()).item()
    if not difference < _SAME_MODEL_TOLERANCE:
        raise ValueError(
            f"{decoder.name or decoder.class_name} does not give the activations of {store.path} at {point} "
            f"(they differ by {difference:.0%}); pass the model that was harvested, {store.model_name}"
        )
