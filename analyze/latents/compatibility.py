"""Whether an SAE belongs to the model, and the place in it, where it is used."""

from __future__ import annotations

import re
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from saelens_lite.lm.decoder import d_model, unwrap
from saelens_lite.lm.hooks import resolve
from saelens_lite.sae.autoencoder import SparseAutoencoder
from saelens_lite.store.reader import ActivationStore

_OTHER_NAMES = {"gpt2-small": "gpt2"}
"""Names of one model that differ beyond the owner: SAELens writes those of TransformerLens."""


def bare_model_name(model_name: str) -> str:
    """A model's name without owner or folder."""
    name = model_name.rstrip("/").replace("\\", "/").rsplit("/", 1)[-1].lower()
    return _OTHER_NAMES.get(name, name)


def check_finite_weights(sae: SparseAutoencoder) -> None:
    """raises: ValueError for an SAE that holds nan or infinity"""
    for name, parameter in sae.named_parameters():
        if not parameter.isfinite().all():
            raise ValueError(
                f"expected an SAE with finite weights, {name} holds nan or infinity: load another checkpoint"
            )


def trained_at(sae: SparseAutoencoder) -> str:
    """The hook point or module that the SAE says it was trained on, "" for none."""
    return sae.config.hook_point or sae.config.hf_module


def check_belongs(model: nn.Module, sae: SparseAutoencoder, point: str, stated: bool, what: str) -> None:
    """Refuse an SAE of another width or, where both name their model, of another model.

    stated: whether the caller named the hook point, as his word that the SAE is meant to be used there
    what: what uses it there, for the error: "an edit at", the model's class
    raises: ValueError naming both; HookError for a point that the model lacks
    """
    trained = f"trained on {sae.config.model_name or 'an unnamed model'} {trained_at(sae)}".rstrip()
    if resolve(model, point).kind != "module" and d_model(model) != sae.d_model:
        raise ValueError(
            f"{what} {point} expected an SAE of d_model={d_model(model)}, got one of {sae.d_model}, {trained}"
        )
    name = getattr(getattr(unwrap(model), "config", None), "name_or_path", "")
    if stated or not name or not sae.config.model_name:
        return
    if sae.config.model_name != type(unwrap(model)).__name__ and not _one_model(sae.config.model_name, name):
        raise ValueError(
            f"{what} {point} expected an SAE of {name}, got one {trained}: pass hook_point={point!r} if the "
            "two are one "
            "model or the SAE is to be transferred"
        )


def _one_model(one: str, other: str) -> bool:
    """Whether the name in one is part of the other: an owner, a folder or the hub's cache may stand around
    it."""

    def parts(name: str) -> set[str]:
        return {bare_model_name(part) for part in re.split(r"[/\\]+|--", name) if part}

    return bare_model_name(one) in parts(other) or bare_model_name(other) in parts(one)


def matching_hook_point(sae: SparseAutoencoder, store: ActivationStore, hook_point: str | None) -> str:
    """The hook point of the store that the SAE reads.

    hook_point: None takes the one that the SAE was trained on, and checks that it is of the store's model; a
        name is the caller's word that the SAE reads this one, and only the width is checked
    raises: ValueError naming both sides when they do not fit, or for an SAE whose weights are not finite
    """
    of_model = f" of {store.model_name}" if store.model_name else ""
    trained = f"the SAE was trained on {sae.config.model_name or 'a model it does not name'} {sae.config.hook_point}".strip()
    if hook_point is None:
        if sae.config.hook_point and sae.config.hook_point not in store.hook_points:
            raise ValueError(
                f"{trained}, but {store.path} holds {', '.join(store.hook_points)}{of_model}; "
                "harvest that hook point, or pass hook_point= to use the SAE on another one"
            )
        names = [name for name in (sae.config.model_name, store.model_name) if name]
        if len(set(map(bare_model_name, names))) > 1:
            raise ValueError(
                f"{trained}, but {store.path} holds activations of {store.model_name}; harvest the SAE's "
                "model, or pass "
                f"hook_point= ({', '.join(store.hook_points)}) if the two are one model or the SAE is to be "
                "transferred"
            )
    check_finite_weights(sae)
    point = store.hook_point(hook_point or sae.config.hook_point or None)
    if store.d_model(point) != sae.d_model:
        raise ValueError(
            f"{trained} with d_model={sae.d_model}, but {point} in {store.path}{of_model} has width "
            f"{store.d_model(point)}; choose the SAE of this model, or another hook point"
        )
    return point


def checked_latents(sae: SparseAutoencoder, latents: int | Sequence[int] | Tensor | None) -> Tensor:
    """int64[m] of valid latents; None gives all. raises: ValueError for one out of range, or what is no
    index."""
    if latents is None:
        return torch.arange(sae.d_sae)
    given = torch.as_tensor(latents).reshape(-1).cpu()
    if len(given) and (given.is_floating_point() or given.dtype == torch.bool):
        raise ValueError(f"latents expected indices, got {given.dtype}; of a mask, mask.nonzero() gives them")
    chosen = given.long()
    if (beyond := (chosen < 0) | (chosen >= sae.d_sae)).any():
        raise ValueError(
            f"latents expected indices from 0 to {sae.d_sae - 1}, got {chosen[beyond].tolist()[:8]}"
        )
    return chosen


def place_of(model: nn.Module, sae: SparseAutoencoder, hook_point: str | None = None) -> str:
    """The hook point of the model that the SAE reads.

    hook_point: by default where the SAE was trained
    raises: ValueError for an SAE that does not say, or of another model or width; HookError for a point that
        the model lacks
    """
    name = hook_point or trained_at(sae)
    if not name:
        raise ValueError("the SAE does not say which activations it reads: pass hook_point=")
    check_belongs(model, sae, name, stated=hook_point is not None, what=type(model).__name__)
    return name
