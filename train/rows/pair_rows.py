"""The rows of two places of one store side by side: what a transcoder reads and what it predicts."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from torch import Tensor

from saelens_lite.sae.config import Target
from saelens_lite.sae.nonlinearity import geometric_median
from saelens_lite.store.common_mean import mean_to_spread
from saelens_lite.store.derived import paired_store
from saelens_lite.store.reader import ActivationStore

from ..run_config import RunConfig
from .input_scale import input_scale
from .joined_stores import JoinedStores
from .protocol import Pair, spread
from .store_rows import StoreRows

_CENTRE_ROWS = 32_768


class PairRows(StoreRows):
    """Rows [s_in · (x − centre), s_out · y], x at config.hook_point and y at target_hook_point; see `Rows`.

    s_in and s_out bring the mean squared distance of each from its mean to its width, 1 without scale_input;
    the centre is the geometric median of rows trained on. Both are functions of the store and the
    configuration, so that these and the two places identify the rows.

    raises: as StoreRows; ValueError where input and target are one place
    """

    pair: Pair

    def __init__(
        self,
        store: ActivationStore,
        config: RunConfig,
        target_hook_point: str,
        skip: bool,
        device: torch.device | str = "cpu",
    ) -> None:
        points = store.hook_point(config.hook_point), store.hook_point(target_hook_point)
        if points[0] == points[1]:
            raise ValueError(
                f"a transcoder expected two hook points, got {points[0]} for both: train_sae trains an SAE, "
                "which writes where it reads"
            )
        widths, moments = [store.d_model(point) for point in points], [store.moments(p) for p in points]
        scales = [input_scale(*of) if config.scale_input else 1.0 for of in moments]
        centre = _centre(store, points[0], config.held_out_fraction)
        both = paired_store([store, store], points, scales, [centre, None])
        super().__init__(both, dataclasses.replace(config, hook_point=None), device)
        places = [store.place(point) for point in points]
        self.hook_point, self.d_model, self.shape = points[0], widths[0], None
        self.hf_module, self.model_name = places[0].module_path, store.model_name or ""
        self.pair = Pair(
            Target(d_model=widths[1], skip=skip, hook_point=points[1], hf_module=places[1].module_path),
            (scales[0], scales[1]),
            centre,
            (mean_to_spread(*moments[0]), mean_to_spread(*moments[1])),
        )
        self.mean_to_spread = self.pair.mean_to_spread[0]
        self._fingerprint = store.fingerprint

    @property
    def identity(self) -> dict[str, Any]:
        return {"hook_point": self.hook_point, "store": f"content {self._fingerprint}"}

    @property
    def record(self) -> dict[str, Any]:
        of_input, of_target = self.pair.mean_to_spread
        return {
            "store": self._fingerprint,
            "mean_to_spread": of_input,
            "target_mean_to_spread": of_target,
        }


def _centre(store: ActivationStore, hook_point: str, held_out_fraction: float) -> Tensor:
    """The geometric median of rows that are not held out, float32[d_model]."""
    joined = JoinedStores([store], hook_point)
    [rows] = joined.other_rows(joined.held_out_rows(held_out_fraction))
    rows = spread(rows, _CENTRE_ROWS)
    acts = joined.gather(rows)
    joined.check_finite(rows, acts, 1.0, "a row is not finite")
    return geometric_median(acts)
