"""Whole contexts of a store, for training through the language model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from saelens_lite import distributed
from saelens_lite.hashing import is_held_out
from saelens_lite.lm.decoder import evaluation_mode
from saelens_lite.lm.store_losses import ContextBatch, check_model
from saelens_lite.store.reader import ActivationStore

from ..config import TrainConfig
from ..random_streams import generator
from .store_rows import StoreRows


@dataclass(frozen=True, slots=True)
class Contexts:
    """A batch of contexts.

    input_ids: int64[batch context]; attended, kept: bool[batch context], real tokens and those with rows to
        learn from
    targets: bool[batch context-1], True where the prediction of the token after the position counts
    """

    input_ids: Tensor
    attended: Tensor
    kept: Tensor
    targets: Tensor

    def __len__(self) -> int:
        """Rows that the SAE sees."""
        return int(self.kept.sum())


class StoreContexts(StoreRows):
    """The contexts of one or several stores instead of their rows.

    The model also reads held-out documents that share a context; their activations stay as they are, and
    nothing is learned from their tokens. All tokens are in memory, about 10 bytes each. Order is a function
    of (seed, step).
    raises: ValueError for several processes, fewer contexts than one batch, stores of contexts that differ in
        length; ShardError for a store without tokens
    """

    def __init__(self, stores: ActivationStore | Sequence[ActivationStore], config: TrainConfig) -> None:
        stores = [stores] if isinstance(stores, ActivationStore) else list(stores)
        super().__init__(stores, config)
        if distributed.world_size() > 1:
            raise ValueError("end_to_end expected one process, got several: start it without torchrun")
        lengths = {store.context_length for store in stores}
        if len(lengths) > 1:
            raise ValueError(
                f"end_to_end expected stores of contexts of one length, got {sorted(lengths)} tokens"
            )
        shards = [store.tokens(shard) for store in stores for shard in range(store.n_shards)]
        self._store = stores[0]
        self._ids = torch.cat([tokens.input_ids for tokens in shards])
        self._attended = torch.cat([tokens.attended.bool() for tokens in shards])
        self._kept = torch.cat([tokens.kept.bool() for tokens in shards])
        held_out = torch.cat(
            [is_held_out(t.doc_id.long() + t.first_doc, config.held_out_fraction) for t in shards]
        )
        self._trained = self._kept & ~held_out
        self._learned_from = self._trained[:, 1:].any(1).nonzero().view(-1)
        [context_length] = lengths
        self._n_seqs = max(1, config.batch_size_rows // context_length)
        self._seed = config.row_seed
        self._epoch, self._order = -1, self._learned_from  # of the epoch that was asked for last
        self.steps_per_epoch = len(self._learned_from) // self._n_seqs
        if not self.steps_per_epoch:
            raise ValueError(
                f"end_to_end expected at least {self._n_seqs} contexts, batch_size_rows / {context_length}, "
                f"got {len(self._learned_from)} outside the held-out documents: harvest more or lower "
                "batch_size_rows"
            )

    def batch(self, step: int) -> Contexts:  # type: ignore[override]
        self._at_hand.clear()
        epoch, within = divmod(step, self.steps_per_epoch)
        if epoch != self._epoch:
            order = torch.randperm(len(self._learned_from), generator=generator(self._seed, epoch))
            self._epoch, self._order = epoch, self._learned_from[order]
        chosen = self._order[within * self._n_seqs : (within + 1) * self._n_seqs]
        kept = self._trained[chosen]
        return Contexts(self._ids[chosen].long(), self._attended[chosen], kept, kept[:, 1:])

    def check_model(self, model: nn.Module) -> None:
        """raises: ValueError for a model that does not give the rows of this store"""
        first = torch.arange(min(4, len(self._store.tokens(0).input_ids)))
        kept = self._kept[first]
        batch = ContextBatch(self._ids[first].long(), self._attended[first], kept, kept[:, 1:], 0, first)
        with evaluation_mode(model), torch.no_grad():
            check_model(model, self._store, self.hook_point, batch)

    def check_steps(self, first: int, end: int, what: str) -> None:
        """Rows come from the model here: the store has none to blame."""
