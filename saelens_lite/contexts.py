"""The contexts of a store through its model: which tokens are scored, and the loss of predicting them under an edit.

Only positions that have rows in the store are replaced, so BOS, special tokens and padding stay as they are.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from saelens_lite.decoder import d_model, evaluation_mode
from saelens_lite.hooks import model_device, run_to
from saelens_lite.splice import splice, token_losses
from saelens_lite.store import ActivationStore
from saelens_lite.tokens import is_held_out

_SAME_MODEL_TOLERANCE = 0.1


@dataclass(frozen=True, slots=True)
class ContextBatch:
    """Contexts of one shard.

    input_ids: int64[batch context]; attended, kept: bool[batch context]
    targets: bool[batch context-1], True where the token after the position counts
    shard, sequences: where the contexts stand in the store
    """

    input_ids: Tensor
    attended: Tensor
    kept: Tensor
    targets: Tensor
    shard: int
    sequences: Tensor


def cross_entropies(
    model: nn.Module,
    store: ActivationStore,
    point: str,
    replacements: Mapping[str, Mapping[str, Any] | None],
    *,
    fraction: float | None,
    max_tokens: int | None,
    batch_size_seqs: int = 8,
) -> tuple[dict[str, float], int, int]:
    """Cross-entropy of the store's tokens under each replacement, in nats a token; predicted tokens; contexts.

    replacements: by name, the arguments of `splice` beside the hook point and the positions; None for the model as it is
    fraction: score only the share of documents that is held out (saelens_lite.tokens.is_held_out); None for all
    max_tokens: stop after about so many predicted tokens; None for all
    raises: ValueError for a model that is not the store's, or where there is nothing to score
    A token counts when it has a row, is of a scored document and is not the first of its context.
    """
    totals = dict.fromkeys(replacements, 0.0)
    n_tokens, n_contexts, device = 0, 0, model_device(model)
    with evaluation_mode(model), torch.no_grad():
        for batch in scored_contexts(store, fraction, max_tokens, batch_size_seqs):
            if n_contexts == 0:
                check_model(model, store, point, batch)

            def total(batch: ContextBatch = batch) -> float:
                losses = token_losses(model, batch.input_ids.to(device), batch.attended.to(device))
                return losses[batch.targets.to(losses.device)].cpu().double().sum().item()

            for name, how in replacements.items():
                if how is None:
                    totals[name] += total()
                    continue
                with splice(model, hook_point=point, positions=batch.kept, **how):
                    totals[name] += total()
            n_tokens += int(batch.targets.sum())
            n_contexts += len(batch.input_ids)
    if n_tokens == 0:
        raise ValueError(
            f"{store.path} has no predicted token in the scored documents; harvest more, or pass held_out=False"
        )
    return {name: sum_ / n_tokens for name, sum_ in totals.items()}, n_tokens, n_contexts


def scored_contexts(
    store: ActivationStore, fraction: float | None, max_tokens: int | None, batch_size_seqs: int
) -> Iterator[ContextBatch]:
    """Batches of the contexts that hold a token to predict, until max_tokens of those have come."""
    left = math.inf if max_tokens is None else max_tokens
    for shard in range(store.n_shards):
        tokens = store.tokens(shard)
        kept = tokens.kept.bool()
        scored = kept if fraction is None else kept & is_held_out(tokens.doc_id.long() + tokens.first_doc, fraction)
        targets = scored[:, 1:]
        with_targets = targets.any(1).nonzero().flatten()
        for sequences in with_targets.split(batch_size_seqs) if len(with_targets) else ():
            if left <= 0:
                return
            yield ContextBatch(
                tokens.input_ids[sequences].long(),
                tokens.attended[sequences].bool(),
                kept[sequences],
                targets[sequences],
                shard,
                sequences,
            )
            left -= int(targets[sequences].sum())


def check_model(model: nn.Module, store: ActivationStore, point: str, batch: ContextBatch) -> None:
    """raises: ValueError when the model's activations on these contexts are not the rows of the store; names can lie."""
    if d_model(model) != store.d_model(point):
        raise ValueError(
            f"{type(model).__name__} has width {d_model(model)}, but {store.path} holds rows of width "
            f"{store.d_model(point)} from {store.model_name}; pass the model that was harvested"
        )
    sequences, _ = store.row_positions(batch.shard)
    places = torch.isin(sequences, batch.sequences).nonzero().flatten() + sum(store.shard_rows[: batch.shard])
    rows = store.gather(places, point)
    acts = run_to(model, [point], input_ids=batch.input_ids, attention_mask=batch.attended)[point].float().cpu()[batch.kept]
    difference = ((acts - rows).norm() / rows.norm()).item()
    if not difference < _SAME_MODEL_TOLERANCE:
        name = getattr(model.config, "name_or_path", "") or type(model).__name__
        raise ValueError(
            f"{name} does not give the activations of {store.path} at {point} (they differ by {difference:.0%}); "
            f"pass the model that was harvested, {store.model_name}"
        )
