"""train_crosscoder: rows of several models, or of several places, side by side in, a saved crosscoder out.

A crosscoder is an SAE of the rows side by side, each side in its own scale, so that it trains by the sparse
step as any SAE does: kinds, checkpoints, resuming, processes and metrics.jsonl are those of train_sae, whose
run stands in the folder training of the output. A latent's row has norm 1 over all sides together; how the
norm is divided among them tells whose latent it is.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from saelens_lite.config import takes_fields
from saelens_lite.misfits import names_misfits
from saelens_lite.sae.config import Side
from saelens_lite.sae.crosscoder import Crosscoder
from saelens_lite.store.derived import paired_store
from saelens_lite.store.reader import ActivationStore

from .config import TrainConfig
from .rows.input_scale import input_scale
from .runs.process import writes
from .single import Store, opened, train_sae

RUN = "training"
"""The folder of the run, below the output."""


@takes_fields(TrainConfig)
@names_misfits
def train_crosscoder(
    stores: Sequence[Store],
    hook_points: Sequence[str | None] | None = None,
    *,
    output: str,
    kind: str = "batchtopk",
    **fields: Any,
) -> Crosscoder:
    """Train a crosscoder and save it; the same call resumes, and returns it once it is finished.

        crosscoder = train_crosscoder(["base/", "tuned/"], k=32, d_sae=8192, output="runs/crosscoder")
        crosscoder.lean()  # 0: of the first model alone; 1: of the second alone

    stores: open ones or their folders, one a side: two models that read one text; or one store several times
    hook_points: of each side; None means the only one that a store holds
    output: receives the crosscoder, in the units of each side; the run is in its folder `training`
    kind, fields: of TrainConfig, as for train_sae
    returns: on the training device; sides have their scales, by which decoder norms compare
    raises: as train_sae, and ValueError for fewer than two sides, or stores of different texts
    source: Lindsey et al. 2024, "Sparse Crosscoders"; Minder et al. 2025, arXiv:2504.02922 (BatchTopK)
    """
    open_stores = opened(stores)
    points = [None] * len(open_stores) if hook_points is None else list(hook_points)
    sides = tuple(map(side_of, open_stores, points))
    rows = paired_store(open_stores, points, [side.scale for side in sides])
    sae = train_sae(rows, kind=kind, output=str(Path(output) / RUN), **fields)
    crosscoder = Crosscoder.of_scaled(sae, sides)
    if writes():
        crosscoder.save(output)
    return crosscoder


def side_of(store: ActivationStore, hook_point: str | None) -> Side:
    """A place of a store as a side, scaled so that the mean squared distance of its rows is d_model."""
    point = store.hook_point(hook_point)
    return Side(
        d_model=store.d_model(point),
        scale=input_scale(*store.moments(point)),
        hook_point=point,
        hf_module=store.place(point).module_path,
        model_name=store.model_name or "",
    )
