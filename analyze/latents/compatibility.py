"""Whether an SAE fits the model or store, and the place in it, where it is used."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from saelens_lite.autoencoders.autoencoder import Autoencoder
from saelens_lite.errors import with_option
from saelens_lite.lm.decoder import Decoder, Model
from saelens_lite.lm.hooks import resolve
from saelens_lite.misfits import names_misfits
from saelens_lite.sae.autoencoder import SparseAutoencoder
from saelens_lite.store.places import Place, place_among, same_place
from saelens_lite.store.reader import ActivationStore

Coder = SparseAutoencoder | Autoencoder
"""An SAE, or a relative of it."""

_OTHER_NAMES = {"gpt2-small": "gpt2"}
"""Names of one model that differ beyond the owner: SAELens writes those of TransformerLens."""


@names_misfits
def fits(
    sae: Coder,
    source: Model | ActivationStore,
    hook_point: str | None = None,
    *,
    vouched: bool | None = None,
    name: str = "the SAE",
) -> str:
    """The hook point of a model or store that the SAE, or a relative of it, reads.

    hook_point: by default where the SAE was trained
    vouched: whether the caller vouches that the SAE may be used there, as when naming a hook point (the
        default); then only its width is checked, else also its model and hook point
    name: of the SAE in errors
    raises: ValueError naming both sides when they do not fit, for an SAE that does not say where it was
        trained, or for a store and an SAE whose weights are not finite; HookError for a point that the model
        lacks
    """
    vouched = hook_point is not None if vouched is None else vouched
    if not isinstance(source, (nn.Module, Decoder)):
        return _fits_store(sae, source, hook_point, vouched, name)
    decoder, point = Decoder.of(source), hook_point or place_of(sae).name
    if not point:
        raise with_option(
            ValueError(f"{name} does not say where it was trained: pass hook_point="), "hook_point"
        )
    there = resolve(decoder, point)
    place = Place(point, there.module_path)
    _check(sae, place, decoder.class_name, decoder.name, there.width(decoder), vouched, name)
    return point


def fits_edit(sae: SparseAutoencoder, model: Model, point: str, *, vouched: bool) -> None:
    """Whether an edit of the SAE's latents may be written at a point.

    raises: as `fits`; ValueError for a transcoder and a point of another width than it writes
    """
    if sae.config.target is None:
        fits(sae, model, point, vouched=vouched)
        return
    fits(sae, model, name="the transcoder")
    width = resolve(model, point).width(model)
    if width not in (None, sae.config.d_out):
        raise with_option(
            ValueError(
                f"the transcoder expected a place of width {sae.config.d_out} to write to, such as "
                f"{sae.config.writes_at}, got {point} of width {width}: leave out hook_point="
            ),
            "hook_point",
        )


def output_place(sae: SparseAutoencoder, point: str) -> str:
    """What the output stands for: `point`, which an SAE reads, or the target of a transcoder; "" of one that
    does not say."""
    return point if sae.config.target is None else sae.config.writes_at


def written_at(sae: SparseAutoencoder, model: Model, point: str) -> str:
    """The `output_place`, shown to be one of the model.

    raises: ValueError for a transcoder that does not say where it writes, or a place of another width
    """
    place = output_place(sae, point)
    if sae.config.target is not None:
        if not place:
            raise ValueError(
                "the transcoder does not say where it writes: set hook_point of its config's target"
            )
        fits_edit(sae, model, place, vouched=False)
    return place


def places_in_store(
    sae: SparseAutoencoder, store: ActivationStore, hook_point: str | None, name: str = "the SAE"
) -> tuple[str, str]:
    """The hook points of a store that the SAE reads and that its output stands for: two of a transcoder.

    hook_point: of an SAE, as for `fits`; a transcoder says where it reads and writes
    raises: as `fits`; ValueError for a store without the target of a transcoder, or with another width there
    """
    target = sae.config.target
    if target is None:
        point = fits(sae, store, hook_point, name=name)
        return point, point
    writes = place_among(Place(sae.config.writes_at, target.hf_module), store.plan["hook_points"])
    if writes is None or store.d_model(writes) != target.d_model:
        there = ", ".join(f"{point} ({store.d_model(point)})" for point in store.hook_points)
        raise ValueError(
            f"{name}, a transcoder, expected a store with rows of width {target.d_model} at "
            f"{sae.config.writes_at}, got {store.path} with {there}: harvest both places"
        )
    return fits(sae, store, name=name), writes


def _fits_store(sae: Coder, store: ActivationStore, hook_point: str | None, vouched: bool, name: str) -> str:
    trained_at = None
    if place_of(sae).name:
        trained_at = place_among(place_of(sae), store.plan["hook_points"])
    if hook_point is None and place_of(sae).name and trained_at is None:
        raise _misfit(
            sae, name, str(store.path), ", ".join(store.hook_points),
            "harvest that hook point, or pass hook_point= to use the SAE on another one",
        )  # fmt: skip
    check_finite_weights(sae)
    point = store.hook_point(hook_point or trained_at)
    _check(sae, store.place(point), str(store.path), store.model_name, store.d_model(point), vouched, name)
    return point


def place_of(sae: Coder) -> Place:
    """Where the SAE, or a relative of it, was trained, as it records it."""
    if isinstance(sae, Autoencoder):
        return Place(sae.hook_point)
    return Place(sae.config.trained_at, sae.config.hf_module)


def _model_name(sae: Coder) -> str:
    return sae.metadata.get("model_name", "") if isinstance(sae, Autoencoder) else sae.config.model_name


def _check(
    sae: Coder, at: Place, source: str, model: str, width: int | None, vouched: bool, name: str
) -> None:
    """raises: ValueError for another width or, unless vouched, another model or hook point"""
    point, trained_on = at.name, _model_name(sae)
    place = f"{point} of {source}"
    way_out = f"pass hook_point={point!r} if the two are one, or the SAE is to be transferred"
    if width not in (None, sae.d_model):
        raise _misfit(sae, name, place, f"d_model={width}", "choose an SAE of this model")
    if vouched:
        return
    if model and trained_on not in ("", source) and not _one_model(trained_on, model):
        raise _misfit(sae, name, place, model, way_out)
    if place_of(sae).name and not same_place(place_of(sae), at):
        raise _misfit(sae, name, place, point, way_out)


def _misfit(sae: Coder, name: str, place: str, expected: str, way_out: str) -> ValueError:
    trained_on = f"rows of {sae.hook_point}" if isinstance(sae, Autoencoder) else sae.config.trained_on
    error = ValueError(
        f"{name} does not fit {place}: expected one of {expected}, got one of d_model={sae.d_model}, trained "
        f"on {trained_on}; {way_out}"
    )
    return with_option(error, "hook_point")


def bare_model_name(model_name: str) -> str:
    """A model's name without owner or folder."""
    name = model_name.rstrip("/").replace("\\", "/").rsplit("/", 1)[-1].lower()
    return _OTHER_NAMES.get(name, name)


def _one_model(one: str, other: str) -> bool:
    """Whether the name in one is part of the other: an owner, a folder or the hub's cache may stand around
    it."""

    def parts(name: str) -> set[str]:
        return {bare_model_name(part) for part in re.split(r"[/\\]+|--", name) if part}

    return bare_model_name(one) in parts(other) or bare_model_name(other) in parts(one)


def check_finite_weights(sae: Coder) -> None:
    """raises: ValueError for one that holds nan or infinity"""
    for name, parameter in sae.state_dict().items():
        if not parameter.isfinite().all():
            raise ValueError(
                f"expected an SAE with finite weights, {name} holds nan or infinity: load another checkpoint"
            )


def checked_latents(sae: SparseAutoencoder, latents: int | Sequence[int] | Tensor | None) -> Tensor:
    """int64[m] of valid latents; None gives all. raises: ValueError for one out of range, or what is no
    index."""
    if latents is None:
        return torch.arange(sae.d_sae)
    try:
        given = torch.as_tensor(latents).reshape(-1).cpu()
    except (TypeError, ValueError, RuntimeError) as error:
        raise TypeError(f"latents expected indices, got {latents!r}") from error
    if len(given) and (given.is_floating_point() or given.dtype == torch.bool):
        raise ValueError(f"latents expected indices, got {given.dtype}; of a mask, mask.nonzero() gives them")
    chosen = given.long()
    if (beyond := (chosen < 0) | (chosen >= sae.d_sae)).any():
        raise ValueError(
            f"latents expected indices from 0 to {sae.d_sae - 1}, got {chosen[beyond].tolist()[:8]}"
        )
    return chosen


def training_record(sae: Coder) -> dict[str, Any]:
    """What our training wrote into the metadata; empty for an SAE from elsewhere."""
    if isinstance(sae, Autoencoder):
        return sae.metadata
    return sae.config.metadata.get("saelens_lite") or {}


def recorded_fraction(saes: Iterable[Coder]) -> float:
    """The share that none was trained on, by their records: a smaller share is part of a larger one."""
    trained = [training_record(sae).get("train", {}).get("held_out_fraction") for sae in saes]
    return min((fraction for fraction in trained if fraction is not None), default=0.05)
