"""The rows of a run: which of a store are trained on and held out, in which order, and where one that is broken stands."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from saelens_lite import distributed
from saelens_lite.codecs import STORE_DTYPES
from saelens_lite.shards import data_name
from saelens_lite.store import ActivationStore

from .buffer import RowBuffer
from .config import TrainConfig
from .init import input_scale

log = logging.getLogger(__name__)

_BUFFER_DTYPES = STORE_DTYPES | {"int8": torch.bfloat16}
"""How the buffer keeps rows, by the store's dtype."""


class StoreRows:
    """The rows of one hook point of an activation store, as a run reads them: in the store's units, on the CPU.

    scale: what brings the mean squared norm of rows to d_model, 1 without scale_input; nothing here is multiplied by it
    left_out_share: the share of the training rows that max_norm_ratio leaves out; None where it is off
    steps_per_epoch: batches in one pass over the training rows
    raises: ValueError for too few rows, or a batch that the processes cannot share equally
    """

    def __init__(self, store: ActivationStore, config: TrainConfig) -> None:
        n_processes = distributed.world_size()
        if config.batch_size_rows % n_processes:
            raise ValueError(
                f"batch_size_rows expected a multiple of {n_processes}, the processes that share each batch, got "
                f"{config.batch_size_rows}: choose {-(-config.batch_size_rows // n_processes) * n_processes}"
            )
        self.store, self.hook_point = store, store.hook_point(config.hook_point)
        self.d_model = store.d_model(self.hook_point)
        self._held_out_fraction = config.held_out_fraction
        held_out = store.held_out_rows(config.held_out_fraction)
        self._train_rows, self.left_out_share = self._rows_to_train_on(held_out, config.max_norm_ratio)
        self._held_out_rows = spread(held_out.nonzero().view(-1), config.eval_rows)
        self._buffer = RowBuffer(
            store,
            self._train_rows,
            batch_size_rows=config.batch_size_rows,
            buffer_rows=config.buffer_rows,
            seed=config.seed,
            hook_point=self.hook_point,
            dtype=_BUFFER_DTYPES[store.plan["dtype"]],
            part=(distributed.rank() if n_processes > 1 else 0, n_processes),
        )
        self.steps_per_epoch = self._buffer.steps_per_epoch
        self.scale = input_scale(self._mean_sq_norm(), self.d_model) if config.scale_input else 1.0

    @property
    def identity(self) -> dict[str, Any]:
        """What tells these rows from others, wherever they lie."""
        return {"hook_point": self.hook_point, "store": f"content {self.store.fingerprint}"}

    def batch(self, step: int) -> Tensor:
        """float32[rows d_model] of a step counted from 0; of several processes each gets its share of the batch."""
        return self._buffer.batch(step)

    def sample(self, n_rows: int) -> Tensor:
        """float32[m d_model], at most n_rows of those trained on, evenly spread over them."""
        return self._finite(spread(self._train_rows, n_rows), "a row is not finite")

    def held_out(self) -> Tensor:
        """float32[m d_model], at most eval_rows of held-out documents, evenly spread over them; m may be 0."""
        return self.store.gather(self._held_out_rows, self.hook_point)

    def cross_entropies(
        self, model: nn.Module, replacements: Mapping[str, Mapping[str, Any] | None], max_tokens: int
    ) -> dict[str, float]:
        """Nats a token of held-out documents under each replacement; see contexts.cross_entropies."""
        from saelens_lite.contexts import cross_entropies

        store, fraction = self.store, self._held_out_fraction
        return cross_entropies(model, store, self.hook_point, replacements, fraction=fraction, max_tokens=max_tokens)[0]

    def check_held_out(self) -> None:
        """raises: FloatingPointError with shard and row of the first held-out row that is not finite"""
        self._finite(self._held_out_rows, "a row is not finite")

    def check_steps(self, first: int, end: int, what: str) -> None:
        """Look at the rows of steps first … end − 1. raises: FloatingPointError: `what`, shard and row of one not finite"""
        for step in range(first, end):
            self._finite(self._buffer.rows(step), what)

    def _rows_to_train_on(self, held_out: Tensor, max_norm_ratio: float | None) -> tuple[Tensor, float | None]:
        rows = (~held_out).nonzero().view(-1)
        if max_norm_ratio is None:
            return rows, None
        median = self.store.median_norm(self.hook_point)
        kept = rows[self._norms()[rows] <= max_norm_ratio * median]
        share = 1 - len(kept) / max(1, len(rows))
        what = "%.4f%% of the training rows are left out: norm above %g × the median %.4g"
        log.info(what, 100 * share, max_norm_ratio, median)
        return kept, share

    def _mean_sq_norm(self) -> float:
        """Of the rows trained on where some are left out, else of the store, which has it ready."""
        if self.left_out_share is None:
            return self.store.mean_sq_norm(self.hook_point)
        return float(self._norms()[self._train_rows].double().square().mean())

    def _norms(self) -> Tensor:
        """float32[n_rows] of the store"""
        return torch.cat([self.store.norms(shard, self.hook_point) for shard in range(self.store.n_shards)])

    def _finite(self, rows: Tensor, what: str) -> Tensor:
        """float32[n d_model] of rows int64[n]; raises: FloatingPointError with the first whose scaled norm is not finite."""
        acts = self.store.gather(rows, self.hook_point)
        broken = rows[~(torch.linalg.vecdot(acts, acts) * self.scale**2).isfinite()]
        if not len(broken):
            return acts
        first, ends = int(broken.min()), torch.tensor(self.store.shard_rows).cumsum(0)
        shard = int(torch.searchsorted(ends, first, right=True))
        row = first - int(ends[shard]) + self.store.shard_rows[shard]
        path = self.store.folder.describe(data_name(shard, self.hook_point))
        raise FloatingPointError(
            f"{what}: row {row} of shard {shard} ({path}, both from 0) holds NaN, infinite or too large values. "
            f"`saelens-lite verify {self.store.path}` finds altered files, and with --repair makes them anew; the same "
            "command then goes on at the last checkpoint"
        )


def spread(rows: Tensor, n: int) -> Tensor:
    """At most n of the rows, evenly spread over them."""
    return rows if len(rows) <= n else rows[torch.arange(n) * (len(rows) - 1) // max(1, n - 1)]
