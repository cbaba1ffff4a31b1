"""Training on activations as they are made, with no store."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

from saelens_lite.config import from_mapping, takes_fields
from saelens_lite.errors import nearest
from saelens_lite.harvest.config import HarvestConfig
from saelens_lite.misfits import names_misfits
from saelens_lite.train.config import TrainConfig
from saelens_lite.train.presets import with_preset

if TYPE_CHECKING:
    from torch import nn

    from saelens_lite.sae.autoencoder import SparseAutoencoder

_GIVEN_BY_NAME = {"model", "dataset", "hook_point", "hook_points", "tokenizer"}
_OF_STORES = {"store", "store_weights", "max_tokens", "check_space", "baseline"}
"""Fields of either configuration that mean nothing where there is no store."""


@takes_fields(TrainConfig, HarvestConfig, but=_GIVEN_BY_NAME | _OF_STORES)
@names_misfits
def train_streaming(
    model: str | nn.Module, dataset: Any, hook_point: str, *, tokenizer: Any = None, **fields: Any
) -> SparseAutoencoder:
    """Train a sparse autoencoder on a model's activations as they are made, without a store.

        sae = train_streaming(model, texts, "blocks.3.hook_resid_post", n_steps=50_000, kind="topk", k=32)

    The rows are those that a harvest of the dataset would store, in its order, mixed within buffers of
    buffer_rows: less widely than those of a store. Every run and epoch costs the forward passes again. An
    accelerator makes the next buffer while it trains on one (`prefetch`); a CPU takes turns. The scale of
    inputs is that of the first buffer, which is trained on as well; held-out rows come from its shards.

    If it is interrupted, repeat the call: it refills the buffer it had reached and, on a CPU, ends
    bit-identical. The model must not be used for anything else meanwhile. `matmul_precision` holds for its
    float32 forward passes too, which an accelerator makes at the same time as the steps.

    model, dataset, hook_point, tokenizer: as in `harvest_activations`, with one hook point
    fields: of TrainConfig, n_steps among them, and of HarvestConfig, such as context_length, text_column or
        dtype; `seed` and `device` are those of both. A dataset that ends before n_steps begins again
    returns: the SAE, as `train_sae` does
    raises: as `harvest_activations` and `train_sae`; ValueError for several processes, max_norm_ratio,
        end_to_end, or a dataset of less than a batch
    """
    from saelens_lite.harvest.streaming import activation_stream
    from saelens_lite.train.optimise.precision import matmul_precision, multiplying
    from saelens_lite.train.rows.stream_rows import StreamRows
    from saelens_lite.train.runs.process import device_of
    from saelens_lite.train.single import train_on

    of_training, of_harvest = (
        {field.name for field in dataclasses.fields(cls)} for cls in (TrainConfig, HarvestConfig)
    )
    known = (of_training | of_harvest) - _OF_STORES - _GIVEN_BY_NAME
    for name in fields.keys() - known:
        raise ValueError(
            f"train_streaming has no field {name!r}{nearest(name, known)}; it has {', '.join(sorted(known))}"
        )
    given = with_preset({name: value for name, value in fields.items() if name in of_training})
    config = from_mapping(TrainConfig, given | {"hook_point": hook_point}, "train_streaming")
    if config.end_to_end is not None:
        raise ValueError("end_to_end learns from the contexts of a store: harvest one, and train on it")
    options = {name: value for name, value in fields.items() if name in of_harvest - {"progress"}}
    if not isinstance(model, str):
        options.pop("device", None)  # the model is where it is
    with activation_stream(model, dataset, hook_point, tokenizer=tokenizer, **options) as stream:
        device = device_of(config)
        with multiplying(matmul_precision(config, device)):
            return train_on(StreamRows(stream, config, device), config)
