"""Meta-SAEs: how far an SAE's decoder directions are sums of few shared ones."""

from __future__ import annotations

from collections.abc import Sequence
from operator import index
from typing import TYPE_CHECKING, Any

import torch

from saelens_lite.atomic import temporary_folder
from saelens_lite.config import takes_fields
from saelens_lite.misfits import names_misfits
from saelens_lite.train.config import TrainConfig

if TYPE_CHECKING:
    from torch import Tensor

    from saelens_lite.analyze.evaluation.meta import Decomposition, MetaScores
    from saelens_lite.sae.autoencoder import SparseAutoencoder


_LEAST_META_ROWS = 40


@takes_fields(TrainConfig, but=("seed", "store"))
@names_misfits
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
    """How far an SAE's decoder directions are sums of few shared ones: what SAEs of them explain.

        print(meta_sae(sae))

    k, d_meta: latents a row of the meta-SAE, and in all; None: a quarter of the rows
    latents: those whose decoder rows count, such as all that fire, each once; None: all. Rows come to norm 1
    seeds: a training each; they give the seed noise, and the random rows of the control
    control: train on as many random unit vectors too, which is what the numbers are to be compared with
    held_out_fraction: share of the rows that are scored and not trained on, the same for every seed
    fields: of TrainConfig, by default kind="batchtopk", n_steps=1000 and batch_size_rows=512
    returns: explained variance of rows held out and trained on, for both; see analyze/evaluation/meta.py
    raises: ValueError for fewer than 40 rows, none held out, a latent out of range, a decoder row of zeros,
        no seeds, or a wrong field
    source: SAEBench: BatchTopK, a quarter of the width, k = 4, there scored on the rows it was trained on
    """
    from saelens_lite.analyze.evaluation.meta import Decomposition
    from saelens_lite.analyze.latents.compatibility import checked_latents

    rows = sae.W_dec.detach().cpu().float()[checked_latents(sae, latents).unique()]
    if len(rows) < _LEAST_META_ROWS or not seeds:
        raise ValueError(
            f"meta_sae expected {_LEAST_META_ROWS} rows and a seed or more, got {len(rows)} and {len(seeds)}"
        )
    if not (rows.norm(dim=1) > 0).all():
        raise ValueError(
            "meta_sae expected decoder rows with a length, got one of zeros or nan: leave it out of latents="
        )
    rows = torch.nn.functional.normalize(rows, dim=1)
    held_out = int(_held_out_rows(rows, held_out_fraction).sum())
    if not 0 < held_out < len(rows):
        raise ValueError(
            f"held_out_fraction expected a share that leaves rows on both sides, got {held_out_fraction}"
        )
    width = d_meta or max(k, len(rows) // 4)
    options = {"kind": "batchtopk", "n_steps": 1000, "batch_size_rows": min(512, len(rows) // 2)}
    options |= {"progress": False, **fields, "k": k, "d_sae": width, "held_out_fraction": held_out_fraction}
    decoder, saes = _meta_scores([rows for _ in seeds], seeds, options)
    random = None
    if control:
        draws = [torch.randn(rows.shape, generator=torch.Generator().manual_seed(index(s))) for s in seeds]
        draws = [torch.nn.functional.normalize(drawn, dim=1) for drawn in draws]
        random = _meta_scores(draws, seeds, options)[0]
    sizes = {"k": k, "d_meta": width, "n_rows": len(rows) - held_out, "n_held_out": held_out}
    return Decomposition(**sizes, decoder=decoder, random=random, saes=saes)


def _meta_scores(
    directions: Sequence[Tensor], seeds: Sequence[int], options: dict[str, Any]
) -> tuple[MetaScores, tuple[SparseAutoencoder, ...]]:
    from saelens_lite.analyze.evaluation.meta import MetaScores, explained
    from saelens_lite.store.reader import ActivationStore
    from saelens_lite.train.single import train_sae

    saes, held_out, trained_on = [], [], []
    for rows, seed in zip(directions, seeds, strict=True):
        with temporary_folder() as folder:
            store = ActivationStore.from_arrays(f"{folder}/store", rows, hook_point="W_dec")
            saes.append(train_sae(store, seed=seed, output=f"{folder}/sae", **options))
        held = _held_out_rows(rows, options["held_out_fraction"])
        held_out.append(explained(saes[-1], rows[held]))
        trained_on.append(explained(saes[-1], rows[~held])[0])
    variances, l0s = zip(*held_out, strict=True)
    return MetaScores(held_out=variances, trained_on=tuple(trained_on), held_out_l0=l0s), tuple(saes)


def _held_out_rows(rows: Tensor, fraction: float) -> Tensor:
    """bool[n], each row a document of its own."""
    from saelens_lite.hashing import is_held_out

    return is_held_out(torch.arange(len(rows)), fraction)
