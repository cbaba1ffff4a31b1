"""train_autoencoder: an activation store in, a saved relative of the SAE out."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from saelens_lite import distributed
from saelens_lite.atomic import temporary_folder
from saelens_lite.autoencoders.autoencoder import Autoencoder
from saelens_lite.config import from_mapping, takes_fields, to_mapping
from saelens_lite.misfits import names_misfits
from saelens_lite.store.reader import ActivationStore

from ..rows.store_rows import StoreRows
from ..runs.identity import finished
from ..runs.process import device_of
from ..runs.run import Run
from ..runs.side_by_side import train_runs
from .config import AutoencoderConfig
from .deep_belief import DeepBeliefLearner
from .learner import AutoencoderLearner
from .pca import PCALearner

log = logging.getLogger(__name__)

LEARNERS = {"pca": PCALearner, "deep_belief": DeepBeliefLearner}
"""Of the kinds that are not trained by gradients of their loss alone."""

Source = ActivationStore | str | Path | np.ndarray | Tensor


@takes_fields(AutoencoderConfig)
@names_misfits
def train_autoencoder(
    source: Source | Sequence[ActivationStore | str | Path],
    config: AutoencoderConfig | None = None,
    **fields: Any,
) -> Autoencoder:
    """Train a relative of the sparse autoencoder on the rows of an activation store and save it.

        pca = train_autoencoder("store/", kind="pca", code_size=32, output="runs/pca")
        vae = train_autoencoder(images, kind="variational", n_epochs=50, output="runs/vae")  # [n, c, h, w]

    Rows, row order, checkpoints and resume are those of `train_sae`: after a stop or a kill, make the same
    call again. It runs in one process.

    source: an open store or its folder, or several; or the rows, as ActivationStore.from_arrays takes them,
        which are kept in a temporary store
    config: an AutoencoderConfig; `fields` replace single fields of it (or of the defaults)
    returns: the relative, on the training device; also saved to config.output
    raises: as `train_sae`; ValueError for a kind that needs a shape which the rows do not have, a code larger
        than the kind allows, or rows outside [0, 1] with the output sigmoid
    """
    with ExitStack() as stack:
        if isinstance(source, np.ndarray | Tensor):
            folder = stack.enter_context(temporary_folder())
            source = ActivationStore.from_arrays(folder / "store", source)
        given = [source] if isinstance(source, ActivationStore | str | Path) else source
        stores = [store if isinstance(store, ActivationStore) else ActivationStore(store) for store in given]
        paths = tuple(str(store.path) for store in stores)
        base = to_mapping(config) if config else {}
        store = paths[0] if len(paths) == 1 else paths
        config = from_mapping(AutoencoderConfig, {**base, **fields, "store": store}, "train_autoencoder")
        learns = LEARNERS.get(config.kind, AutoencoderLearner)
        with distributed.joined(device_of(config)):
            rows = StoreRows(stores, config, device_of(config))
            if (trained := finished(rows, config, learns)) is not None:
                log.info("finished already: %s", config.output)
                return trained
            [outcome] = train_runs([Run(rows, config, learns=learns)])
    if isinstance(outcome, FloatingPointError):
        raise outcome
    return outcome
