"""What needs several rooms at once: training on activations as they are made, with no store; SAEs of SAEs."""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch

from saelens_lite.config import from_mapping
from saelens_lite.errors import nearest

if TYPE_CHECKING:
    from torch import Tensor, nn

    from saelens_lite.analyze.metasae import Decomposition, MetaScores
    from saelens_lite.sae import SparseAutoencoder

_GIVEN_BY_NAME = {"model", "dataset", "hook_point", "hook_points", "tokenizer"}
_OF_STORES = {"store", "store_weights", "max_tokens", "check_space", "baseline"}
"""Fields of either configuration that mean nothing where there is no store."""

_LEAST_META_ROWS = 40


def train_streaming(
    model: str | nn.Module, dataset: Any, hook_point: str, *, tokenizer: Any = None, **fields: Any
) -> SparseAutoencoder:
    """Train a sparse autoencoder on a model's activations as they are made: no store, no disk but for the SAE.

        sae = train_streaming(model, texts, "blocks.3.hook_resid_post", n_steps=50_000, kind="topk", k=32)

    The rows are those that a harvest of the dataset would store, in its order, mixed within buffers of buffer_rows: less
    widely than those of a store. Every run, and every further epoch, costs the forward passes again. On an accelerator the
    next buffer is made while one is trained on (`prefetch`), on a CPU in turn. The scale of inputs is that of the first
    buffer, which is trained on as well; held-out rows come from its shards. Stopped or killed, the same call goes on: it
    makes the buffer that it was at once more, and on a CPU ends with the same bits. Meanwhile the model is in use.

    model, dataset, hook_point, tokenizer: as in `harvest_activations`, with one hook point
    fields: of TrainConfig, n_steps among them, and of HarvestConfig, such as context_length, text_column or dtype; `seed`
        and `device` are those of both. When the dataset ends before n_steps, it begins again
    returns: the SAE, as `train_sae` does
    raises: as `harvest_activations` and `train_sae`; ValueError for several processes, max_norm_ratio, matmul_precision,
        end_to_end, or a dataset of less than a batch
    """
    from saelens_lite.harvest import HarvestConfig
    from saelens_lite.harvest.stream import activation_stream
    from saelens_lite.train import TrainConfig
    from saelens_lite.train.loop import train_on
    from saelens_lite.train.presets import with_preset
    from saelens_lite.train.run import device_of
    from saelens_lite.train.streamed import StreamRows

    of_training, of_harvest = ({field.name for field in dataclasses.fields(cls)} for cls in (TrainConfig, HarvestConfig))
    known = (of_training | of_harvest) - _OF_STORES - _GIVEN_BY_NAME
    for name in fields.keys() - known:
        raise ValueError(f"train_streaming has no field {name!r}{nearest(name, known)}; it has {', '.join(sorted(known))}")
    given = with_preset({name: value for name, value in fields.items() if name in of_training})
    config = from_mapping(TrainConfig, given | {"hook_point": hook_point}, "train_streaming")
    if config.end_to_end is not None:
        raise ValueError("end_to_end learns from the contexts of a store: harvest one, and train on it")
    options = {name: value for name, value in fields.items() if name in of_harvest - {"progress"}}
    if not isinstance(model, str):
        options.pop("device", None)  # the model is where it is
    with activation_stream(model, dataset, hook_point, tokenizer=tokenizer, **options) as stream:
        return train_on(StreamRows(stream, config, device_of(config)), config)


def meta_sae(
    sae: SparseAutoencoder,
    *,
    k: int = 4,
    d_meta: int | None = None,
    latents: Sequence[int] | Tensor | None = None,
    seeds: Sequence[int] = (0, 1, 2),
    control: bool = True,
    held_out_fraction: float = 0.1,
    **fields: Any,
) -> Decomposition:
    """How far an SAE's decoder directions are sums of few shared ones: the explained variance of SAEs trained on them.

        print(meta_sae(sae))

    k, d_meta: latents a row of the meta-SAE, and in all; None: a quarter of the rows
    latents: those whose decoder rows count, such as all that fire, each once; None: all. Rows come to norm 1
    seeds: a training each; they give the seed noise, and the random rows of the control
    control: train on as many random unit vectors too, which is what the numbers are to be compared with
    held_out_fraction: share of the rows that are scored and not trained on, the same for every seed
    fields: of TrainConfig, by default kind="batchtopk", n_steps=1000 and batch_size_rows=512
    returns: explained variance of rows held out and trained on, for both; see analyze/metasae.py
    raises: ValueError for fewer than 40 rows, none held out, a latent out of range, a decoder row of zeros, no seeds, or a
        wrong field
    source: SAEBench: BatchTopK, a quarter of the width, k = 4, there scored on the rows that it was trained on
    """
    from saelens_lite.analyze.metasae import Decomposition
    from saelens_lite.analyze.stream import checked_latents

    rows = sae.W_dec.detach().cpu().float()[checked_latents(sae, latents).unique()]
    if len(rows) < _LEAST_META_ROWS or not seeds:
        raise ValueError(f"meta_sae expected {_LEAST_META_ROWS} rows and a seed or more, got {len(rows)} and {len(seeds)}")
    if not (rows.norm(dim=1) > 0).all():
        raise ValueError("meta_sae expected decoder rows with a length, got one of zeros or nan: leave it out of latents=")
    rows = torch.nn.functional.normalize(rows, dim=1)
    held_out = int(_held_out_rows(rows, held_out_fraction).sum())
    if not 0 < held_out < len(rows):
        raise ValueError(f"held_out_fraction expected a share that leaves rows on both sides, got {held_out_fraction}")
    width = d_meta or max(k, len(rows) // 4)
    defaults = {"kind": "batchtopk", "n_steps": 1000, "batch_size_rows": min(512, len(rows) // 2), "progress": False}
    options = defaults | fields | {"k": k, "d_sae": width, "held_out_fraction": held_out_fraction}
    decoder, saes = _meta_scores([rows for _ in seeds], seeds, options)
    random = None
    if control:
        draws = [torch.randn(rows.shape, generator=torch.Generator().manual_seed(seed)) for seed in seeds]
        random = _meta_scores([torch.nn.functional.normalize(drawn, dim=1) for drawn in draws], seeds, options)[0]
    return Decomposition(
        k=k,
        d_meta=width,
        n_rows=len(rows) - held_out,
        n_held_out=held_out,
        decoder=decoder,
        random=random,
        saes=saes,
    )


def _meta_scores(
    directions: Sequence[Tensor], seeds: Sequence[int], options: dict[str, Any]
) -> tuple[MetaScores, tuple[SparseAutoencoder, ...]]:
    """A meta-SAE trained on the directions of each seed, and its scores."""
    from saelens_lite.analyze.metasae import MetaScores, explained
    from saelens_lite.store import ActivationStore
    from saelens_lite.train import train_sae

    saes, held_out, trained_on = [], [], []
    for rows, seed in zip(directions, seeds, strict=True):
        with tempfile.TemporaryDirectory() as folder:
            store = ActivationStore.from_arrays(f"{folder}/store", rows, hook_point="W_dec")
            saes.append(train_sae(store, seed=seed, output=f"{folder}/sae", **options))
        held = _held_out_rows(rows, options["held_out_fraction"])
        held_out.append(explained(saes[-1], rows[held]))
        trained_on.append(explained(saes[-1], rows[~held])[0])
    variances, l0s = zip(*held_out, strict=True)
    return MetaScores(held_out=variances, trained_on=tuple(trained_on), held_out_l0=l0s), tuple(saes)


def _held_out_rows(rows: Tensor, fraction: float) -> Tensor:
    """Which rows training leaves out, each row a document of its own: bool[n]."""
    from saelens_lite.tokens import is_held_out

    return is_held_out(torch.arange(len(rows)), fraction)
