"""How far the predictions of two models are apart, token by token, on the text of a store.

    KL(p_tuned ‖ p_base) of the next token, in nats

It needs neither SAE nor activations, and finds any change of behaviour that the text calls up. What a
dictionary finds beyond it is what the dictionary is for.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from saelens_lite.arguments import at_most
from saelens_lite.errors import nearest
from saelens_lite.lm.decoder import Decoder, Model, evaluation_mode
from saelens_lite.lm.losses import cross_entropy, kl_divergence
from saelens_lite.lm.store_losses import check_model, scored_contexts, scored_logits
from saelens_lite.misfits import names_misfits
from saelens_lite.store.reader import ActivationStore
from saelens_lite.text_table import Lines, Tabular, number, plain, span

from ..stats.bootstrap import Interval, cluster_bootstrap


@dataclass(frozen=True, slots=True, eq=False)
class TokenDivergence(Tabular):
    """What `token_divergence` found, of each predicted token whose position has a row; `print(found)`.

    rows: int64[n], the row of the position that predicts; documents: int64[n]
    kl: float32[n], KL(p_tuned ‖ p_base); kl_reverse: KL(p_base ‖ p_tuned); in nats
    ce_base, ce_tuned: float32[n], cross-entropy of the token that follows
    """

    rows: Tensor
    documents: Tensor
    kl: Tensor
    kl_reverse: Tensor
    ce_base: Tensor
    ce_tuned: Tensor

    @names_misfits
    def mean(self, name: str) -> Interval:
        """A mean over tokens with its 95 % interval, from drawing documents again.

        name: kl, kl_reverse, ce_base or ce_tuned
        raises: ValueError for another name
        """
        if name not in _COLUMNS:
            hint = nearest(name, _COLUMNS)
            raise ValueError(f"mean expected one of {', '.join(_COLUMNS)}, got {name!r}{hint}")
        return cluster_bootstrap(getattr(self, name), self.documents)

    @names_misfits
    def strongest(self, n: int = 20) -> Tensor:
        """int64[n]: rows of the largest KL(p_tuned ‖ p_base), largest first."""
        return self.rows[self.kl.topk(at_most(n, len(self.kl))).indices]

    def to_dict(self) -> dict[str, Any]:
        """Means with their intervals, for JSON."""
        return plain({"n_tokens": len(self.rows), **{name: self._mean(name) for name in _COLUMNS}})

    def _mean(self, name: str) -> dict[str, float]:
        if len(self.documents.unique()) < 2:  # no interval
            nan = float("nan")
            return {"estimate": float(getattr(self, name).double().mean()), "low": nan, "high": nan}
        return self.mean(name).to_dict()

    def _records(self) -> list[dict[str, Any]]:
        return [{"of": name, **self._mean(name)} for name in _COLUMNS]

    def _tables(self) -> list[tuple[str, Lines]]:
        lines = [
            [_COLUMNS[row["of"]], number(row["estimate"], ".4f"), span(row["low"], row["high"], ".4f")]
            for row in self._records()
        ]
        return [("", [["nats a token", "mean", "95 %"], *lines])]

    def _notes(self) -> list[str]:
        n = len(self.documents.unique())
        return [
            f"over {len(self.rows):,} predicted tokens of {n:,} documents; intervals draw documents again"
        ]

    def __repr__(self) -> str:
        return self.table()


_COLUMNS = {
    "kl": "KL(tuned ‖ base)",
    "kl_reverse": "KL(base ‖ tuned)",
    "ce_base": "cross-entropy, base",
    "ce_tuned": "cross-entropy, tuned",
}


@names_misfits
def token_divergence(
    base: Model,
    tuned: Model,
    store: ActivationStore,
    *,
    tuned_store: ActivationStore | None = None,
    max_tokens: int | None = 50_000,
    batch_size_seqs: int = 8,
) -> TokenDivergence:
    """KL of the two models' predictions at the tokens of a store's text.

    store: of the base model; its text is read, and a context of its rows compared with the model's
    tuned_store: of the tuned model, to have that one checked too
    max_tokens: of documents drawn by hash that have this many rows; None for all
    raises: ValueError for a model that is not the store's, vocabularies of two sizes, or no tokens to score
    """
    models = [Decoder.of(base), Decoder.of(tuned)]
    parts: list[Tensor] = []
    first_rows = [0, *torch.tensor(store.shard_rows).cumsum(0).tolist()]
    with evaluation_mode(models[0]), evaluation_mode(models[1]), torch.no_grad():
        for batch in scored_contexts(store, None, max_tokens, batch_size_seqs):
            if not parts:
                point = store.hook_points[0]
                check_model(models[0], store, point, batch)
                if tuned_store is not None:
                    check_model(models[1], tuned_store, point, batch)
            row_at = _row_of_each(store, batch.shard, first_rows[batch.shard])[batch.sequences]
            both = zip(*(scored_logits(model, batch) for model in models), strict=True)
            assert batch.documents is not None
            for i, (clean, other) in enumerate(both):
                if clean.shape != other.shape:
                    raise ValueError(
                        f"two models of one vocabulary expected, got {clean.shape[-1]:,} and "
                        f"{other.shape[-1]:,} tokens: KL compares predictions of the same tokens"
                    )
                other, targets = other.to(clean.device), batch.targets[i]
                next_ids = batch.input_ids[i, 1:][targets]
                found = [
                    kl_divergence(other, clean), kl_divergence(clean, other),
                    cross_entropy(clean, next_ids), cross_entropy(other, next_ids),
                ]  # fmt: skip
                rows, documents = row_at[i, :-1][targets], batch.documents[i, 1:][targets]
                parts.append(
                    torch.stack([rows.double(), documents.double(), *(of.cpu().double() for of in found)])
                )
    table = torch.cat(parts, dim=1) if parts else torch.empty(6, 0)
    table = table[:, table[0] >= 0]
    if not table.shape[1]:
        raise ValueError(f"{store.path} has no predicted token to compare: harvest more text")
    rows, documents, *columns = table
    return TokenDivergence(rows.long(), documents.long(), *(column.float() for column in columns))


def _row_of_each(store: ActivationStore, shard: int, first_row: int) -> Tensor:
    """int64[n_seqs context]: the row of each position of a shard in the store, -1 for none."""
    kept = store.tokens(shard).kept.bool()
    return torch.where(kept, kept.flatten().cumsum(0).view(kept.shape) - 1 + first_row, -1)
