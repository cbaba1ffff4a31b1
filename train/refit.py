"""refit_sae: the refit phase for a relu SAE that exists, whoever trained it.

An SAE under an L1 penalty selects well and reconstructs too weakly (kinds/refit.py). Its firings stay as they
are; magnitudes, decoder rows and b_dec are fitted to the rows of a store without the penalty.
"""

from __future__ import annotations

import copy
import dataclasses
import logging
from contextlib import closing
from typing import Annotated, Any

import torch
from torch import Tensor, nn

import saelens_lite
from saelens_lite.arguments import takes_folders
from saelens_lite.config import AtLeast
from saelens_lite.errors import with_option
from saelens_lite.misfits import names_misfits
from saelens_lite.sae.autoencoder import SparseAutoencoder
from saelens_lite.store.reader import ActivationStore

from .config import TrainConfig
from .kinds.refit import Refit
from .optimise.fold import fold_scale
from .optimise.initial import in_training
from .optimise.schedules import Schedule, default_lr
from .optimise.trainer import Trainer
from .rows.store_rows import StoreRows
from .runs.finite import Finite
from .runs.scores import HeldOutScores

log = logging.getLogger(__name__)

_PIECE_ROWS = 1024
_REFUSED = {
    "topk": "it was not shrunk, and new magnitudes would change which latents are the k largest",
    "jumprelu": "it was not shrunk, as its penalty counts latents (batchtopk and matryoshka have none)",
    "gated": "it was not shrunk, as its penalty acts on gates and not on magnitudes",
}


@takes_folders
@names_misfits
def refit_sae(
    sae: SparseAutoencoder,
    store: ActivationStore,
    *,
    decoder: bool = True,
    model: nn.Module | None = None,
    n_steps: Annotated[int, AtLeast(1)] = 400,
    batch_size_rows: Annotated[int, AtLeast(1)] = 4096,
    hook_point: str | None = None,
    held_out_fraction: float | None = None,
    seed: int = 0,
    progress: bool = False,
) -> SparseAutoencoder:
    """A relu SAE whose magnitudes, decoder rows and b_dec are fitted again, while every firing stays.

        better = refit_sae("sae/", "store/")
        better.save("refitted/")

    For SAEs trained under an L1 penalty, such as SAELens' `standard`. The result has decoder rows of norm 1
    and float32 weights; a latent without a firing stays as it is.

    sae: an SAE or its folder, ours or SAELens'; it stays as it is
    store: activations of the place that it was trained on, or their folder
    decoder: False leaves every decoder row's direction as it is; one magnitude a latent and b_dec learn
    model: the language model that was harvested, for the cost in cross-entropy before and after
    n_steps, batch_size_rows, seed: of the fit, and the seed of its row order
    hook_point: of the store; None takes the one that the SAE was trained on
    held_out_fraction: share of documents to score on; None: as the SAE records, else 0.05
    progress: whether a bar shows the steps
    returns: the SAE, on the device of the given one, in the units of the store. What the fit did stands in
        config.metadata["saelens_lite"]["refit"], see `_record`
    raises: ValueError for an SAE of another kind or width, one that normalises its inputs row by row, or a
        store without its hook point; FloatingPointError for rows or weights that are not finite
    source: Wright & Sharkey 2024, "Addressing Feature Suppression in SAEs"; Meinshausen 2007, "Relaxed Lasso"
    """
    check_kind(sae)
    facts: dict[str, Any] = dict(sae.config.metadata.get("saelens_lite") or {})
    point = _hook_point(sae, store, hook_point)
    if held_out_fraction is None:
        held_out_fraction = (facts.get("train") or {}).get("held_out_fraction", 0.05)
    config = TrainConfig(
        kind="relu",
        hook_point=point,
        batch_size_rows=batch_size_rows,
        n_steps=n_steps,
        held_out_fraction=held_out_fraction,
        seed=seed,
        freeze_decoder=not decoder,
        device=str(sae.device),
    )
    with closing(StoreRows(store, config, sae.device)) as rows:
        rows.check_held_out()
        trainer = _trainer(sae, rows, config)
        began = trainer.sae.W_dec.detach().clone()
        finite = Finite(trainer, rows)
        scores = HeldOutScores(trainer, rows, finite, model)
        before = scores.update()
        _fit(trainer, rows, finite, progress)
        after = scores.update()
        refitted = fold_scale(trainer.kind.folded(), trainer.scale)
        record = {
            **rows.record,
            "hook_point": point,
            "decoder": decoder,
            "steps": n_steps,
            "rows": n_steps * batch_size_rows,
            "seed": seed,
            **_record(before, after, began, trainer),
            **_firings(sae, refitted, rows.held_out()),
        }
    facts |= {"version": saelens_lite.__version__, **after, "refit": record}
    metadata = {**sae.config.metadata, "saelens_lite": facts}
    kept = {"dtype": "float32", "apply_b_dec_to_input": True, "metadata": metadata}
    refitted.config = dataclasses.replace(sae.config, **kept)
    _warn(before["held_out_fvu"], after["held_out_fvu"])
    return refitted


def check_kind(sae: SparseAutoencoder) -> None:
    """raises: ValueError for an SAE that has nothing to refit"""
    if sae.kind != "relu":
        raise ValueError(
            f"refit expected a relu SAE (SAELens' standard), got {sae.kind}: {_REFUSED[sae.kind]}. Train it "
            "on with init_from"
        )
    if sae.config.normalize_activations != "none":
        raise ValueError(
            "refit expected an SAE that takes rows as they are, got normalize_activations="
            f"{sae.config.normalize_activations!r}: it scales rows one by one, and a fit all by one number"
        )


def _hook_point(sae: SparseAutoencoder, store: ActivationStore, hook_point: str | None) -> str:
    wanted = hook_point or sae.config.hook_point or None
    if hook_point is None and wanted is not None and wanted not in store.hook_points:
        raise with_option(
            ValueError(
                f"refit expected a store with rows of {wanted}, on which the SAE was trained, got one of "
                f"{', '.join(store.hook_points)}: harvest that hook point, or name another as hook_point="
            ),
            "hook_point",
        )
    point = store.hook_point(wanted)
    if (width := store.d_model(point)) != sae.d_model:
        raise ValueError(
            f"refit expected rows of the SAE's width, d_model={sae.d_model}, got {width} at {point} of "
            f"{store.path}: they are another model's"
        )
    return point


def _trainer(sae: SparseAutoencoder, rows: StoreRows, config: TrainConfig) -> Trainer:
    """Of a copy of the SAE, all of whose steps are of the refit phase."""
    assert config.n_steps is not None
    own = in_training(copy.deepcopy(sae).float(), rows.scale, True, "refit")
    schedule = Schedule(
        learning_steps=0,
        refit_steps=config.n_steps,
        lr=default_lr(sae.d_sae, config.n_steps),
        warm_up_steps=0,
        decay_steps=0,
        ramp_steps=0,
    )
    kind = Refit(own, config, n_steps=config.n_steps, train_decoder=not config.freeze_decoder)
    return Trainer(own, config, config.n_steps, kind, schedule, rows.scale)


def _fit(trainer: Trainer, rows: StoreRows, finite: Finite, progress: bool) -> None:
    from tqdm import tqdm

    for step in tqdm(range(trainer.n_steps), desc="refit", unit="step", disable=not progress):
        stats = trainer.update(trainer.kind.scaled(rows.batch(step), trainer.scale))
        if step % trainer.config.log_every_steps == 0:
            finite.check_loss(float(stats.reconstruction))
    finite.check_weights()


def _record(
    before: dict[str, float | None], after: dict[str, float | None], began: Tensor, trainer: Trainer
) -> dict[str, Any]:
    """What the fit did, of the metadata.

    before, after: held-out fvu, l0, and ΔCE in nats where a model was given
    cosine: between each decoder row before and after; magnitude: what each latent was multiplied by. Of those
        latents that fired while fitting: mean or median, and the least
    """
    assert isinstance(trainer.kind, Refit)
    fired = trainer.dead_tracker.tokens_since_fired < trainer.n_steps * trainer.config.batch_size_rows
    cosine = torch.nn.functional.cosine_similarity(began, trainer.sae.W_dec.detach())[fired]
    magnitude = trainer.kind.log_magnitude.detach().exp()[fired]
    found: dict[str, Any] = {"before": before, "after": after, "latents": int(fired.sum())}
    if len(cosine):
        found |= {
            "cosine_mean": float(cosine.mean()),
            "cosine_least": float(cosine.min()),
            "magnitude_median": float(magnitude.median()),
        }
    return found


@torch.no_grad()
def _firings(sae: SparseAutoencoder, refitted: SparseAutoencoder, held_out: Tensor) -> dict[str, int]:
    """Firings on the held-out rows, and how many of them are new or gone, by rounding near 0."""
    n_firings = n_changed = 0
    for rows in held_out.split(_PIECE_ROWS):
        acts = rows.to(sae.device)
        on, now = sae.encode_dense(acts) > 0, refitted.encode_dense(acts) > 0
        n_firings, n_changed = n_firings + int(on.sum()), n_changed + int((on != now).sum())
    return {"firings": n_firings, "changed_firings": n_changed}


def _warn(before: float | None, after: float | None) -> None:
    if before is not None and after is not None and after >= before:
        log.warning(
            "the refit left held-out fvu at %.4f, from %.4f: this SAE was not shrunk on these rows, or they "
            "are too few",
            after,
            before,
        )
