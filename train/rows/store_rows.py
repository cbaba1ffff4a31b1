"""The rows of stores: which are trained on and held out, in which order, and where a broken one stands."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from saelens_lite import distributed
from saelens_lite.store.common_mean import mean_to_spread
from saelens_lite.store.reader import ActivationStore

from ..run_config import RunConfig
from .input_scale import input_scale
from .joined_stores import JoinedStores
from .protocol import BUFFER_DTYPES, Pair, ahead, n_steps, spread
from .row_buffer import RowBuffer
from .row_order import MixedOrder, Order, RowOrder, shares

log = logging.getLogger(__name__)
_PIECE_ROWS = 4096

_SEEN_ROWS = 16_384


class StoreRows:
    """The rows of one hook point of an activation store, or of several that are mixed; see `Rows`.

    Several must agree in hook point and width. store_weights say which share of each batch a store has; None
    takes the stores' training rows, so that an epoch shows each once. Held-out rows are those of all stores.
    They and a sample stay in memory between batches, so that runs which share this read them once.

    raises: ValueError for stores that do not go together, too few rows, or a batch that the processes cannot
        share equally
    """

    pair: Pair | None = None

    def __init__(
        self,
        stores: ActivationStore | Sequence[ActivationStore],
        config: RunConfig,
        device: torch.device | str = "cpu",
    ) -> None:
        n_processes = distributed.world_size("data")
        if config.batch_size_rows % n_processes:
            next_multiple = -(-config.batch_size_rows // n_processes) * n_processes
            raise ValueError(
                f"batch_size_rows expected a multiple of {n_processes}, the processes that share each batch, "
                f"got {config.batch_size_rows}: choose {next_multiple}"
            )
        stores = [stores] if isinstance(stores, ActivationStore) else list(stores)
        self._joined = joined = JoinedStores(stores, config.hook_point)
        self.hook_point, self.d_model, self.hf_module = joined.hook_point, joined.d_model, joined.hf_module
        self.shape = joined.shape
        self.model_name, self.context_length = joined.model_name, joined.context_length
        self._held_out_fraction = config.held_out_fraction
        held_out = joined.held_out_rows(config.held_out_fraction)
        self._massive: list[Tensor] = []  # of each store, where max_norm_ratio leaves them out
        self._train_rows, self.left_out_share = self._rows_to_train_on(held_out, config.max_norm_ratio)
        self._held_out_rows = spread(torch.cat(held_out), config.eval_rows)
        weights = config.store_weights or [len(rows) for rows in self._train_rows]
        if len(weights) != len(stores):
            raise ValueError(
                f"store_weights expected {len(stores)} numbers, one for each store, got {len(weights)}"
            )
        size = {"batch_size_rows": config.batch_size_rows, "buffer_rows": config.buffer_rows}
        size["seed"] = config.row_seed
        if len(stores) == 1:
            order: Order = RowOrder(self._train_rows[0], **size)
        else:
            joined.check_filled(self._train_rows)
            order = MixedOrder(self._train_rows, weights, **size)
        self._shares = [weight / sum(weights) for weight in weights]
        dtypes = {BUFFER_DTYPES[store.plan["dtype"]] for store in stores}
        self._buffer = RowBuffer(
            joined,
            order,
            d_model=self.d_model,
            dtype=dtypes.pop() if len(dtypes) == 1 else torch.float32,
            part=(distributed.rank("data"), n_processes),
            device=device,
            ahead_to=n_steps(config, order.steps_per_epoch) if ahead(config, device) else 0,
        )
        self.steps_per_epoch = order.steps_per_epoch
        self._at_hand: dict[str, Tensor] = {}
        moments = self._moments()
        self.scale = input_scale(*moments) if config.scale_input else 1.0
        self.mean_to_spread = mean_to_spread(*moments)

    @property
    def identity(self) -> dict[str, Any]:
        contents = [f"content {store.fingerprint}" for store in self._joined.stores]
        return {"hook_point": self.hook_point, "store": contents[0] if len(contents) == 1 else contents}

    @property
    def record(self) -> dict[str, Any]:
        stores = self._joined.stores
        spread = {"mean_to_spread": self.mean_to_spread}
        if len(stores) == 1:
            return {"store": stores[0].fingerprint, **spread}
        shares = zip(stores, self._shares, strict=True)
        return {"stores": [{"store": store.fingerprint, "share": share} for store, share in shares], **spread}

    def begin(self, position: dict[str, Any] | None) -> None:
        pass  # order and scale are functions of the stores and the configuration

    def position(self, step: int) -> dict[str, Any]:
        return {}

    def batch(self, step: int) -> Tensor:
        self._at_hand.clear()
        return self._buffer.batch(step)

    def sample(self, n_rows: int) -> Tensor:
        if (name := f"sample of {n_rows}") not in self._at_hand:
            of_each = shares(n_rows, self._shares)
            rows = torch.cat([spread(rows, n) for rows, n in zip(self._train_rows, of_each, strict=True)])
            self._at_hand[name] = self._finite(rows, "a row is not finite")
        return self._at_hand[name]

    def held_out(self) -> Tensor:
        if "held out" not in self._at_hand:
            self._at_hand["held out"] = self._joined.gather(self._held_out_rows)
        return self._at_hand["held out"]

    def seen(self, step: int) -> Tensor:
        return self.sample(_SEEN_ROWS)

    def cross_entropies(
        self, model: nn.Module, replacements: Mapping[str, Mapping[str, Any] | None], max_tokens: int
    ) -> dict[str, float]:
        from saelens_lite.lm.store_losses import cross_entropies

        totals = dict.fromkeys(replacements, 0.0)
        for store, share in zip(self._joined.stores, self._shares, strict=True):
            some = {"fraction": self._held_out_fraction, "max_tokens": math.ceil(share * max_tokens)}
            found = cross_entropies(model, store, self.hook_point, replacements, **some).ce
            totals = {name: total + share * found[name] for name, total in totals.items()}
        return totals

    def check_held_out(self) -> None:
        if "held out" not in self._at_hand:
            self._at_hand["held out"] = self._finite(self._held_out_rows, "a row is not finite")

    def check_steps(self, first: int, end: int, what: str) -> None:
        for step in range(first, end):
            self._finite(self._buffer.rows(step), what)

    def close(self) -> None:
        self._at_hand.clear()
        self._buffer.close()

    def _rows_to_train_on(
        self, held_out: Sequence[Tensor], max_norm_ratio: float | None
    ) -> tuple[list[Tensor], float | None]:
        """Of each store; norms are compared within it."""
        joined, rows = self._joined, self._joined.other_rows(held_out)
        if max_norm_ratio is None:
            return rows, None
        kept = []
        for number, of_store in enumerate(rows):
            median = joined.stores[number].median_norm(self.hook_point)
            self._massive.append(joined.rows_above(number, max_norm_ratio * median))
            kept.append(of_store[~torch.isin(of_store, self._massive[-1])])
            what = "%.4f%% of the training rows%s are left out: norm above %g × the median %.4g"
            of = f" of {joined.stores[number].path}" if len(rows) > 1 else ""
            log.info(what, 100 * (1 - len(kept[-1]) / max(1, len(of_store))), of, max_norm_ratio, median)
        return kept, 1 - sum(map(len, kept)) / max(1, sum(map(len, rows)))

    def _moments(self) -> tuple[float, Tensor]:
        """Mean squared norm and mean float64[d_model] of the rows, mixed as in a batch."""
        mean_sq_norm, mean = 0.0, torch.zeros(self.d_model, dtype=torch.float64)
        for number, (store, share) in enumerate(zip(self._joined.stores, self._shares, strict=True)):
            n, (sq_norms, total) = store.n_rows, store.moments(self.hook_point)
            sq_norms, total = n * sq_norms, n * total
            for rows in self._massive[number].split(_PIECE_ROWS) if self._massive else ():
                acts, n = self._joined.gather(rows).double(), n - len(rows)
                sq_norms, total = sq_norms - float(acts.square().sum()), total - acts.sum(0)
            mean_sq_norm, mean = mean_sq_norm + share * sq_norms / n, mean + share * total / n
        return mean_sq_norm, mean

    def _finite(self, rows: Tensor, what: str) -> Tensor:
        """float32[n d_model] of rows int64[n]. raises: as `JoinedStores.check_finite`"""
        acts = self._joined.gather(rows)
        self._joined.check_finite(rows, acts, self.scale, what)
        return acts
