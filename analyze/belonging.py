"""Whether an SAE belongs to the model, and the place in it, where it is used."""

from __future__ import annotations

import re

from torch import nn

from saelens_lite.decoder import unwrap
from saelens_lite.hooks import d_model, resolve
from saelens_lite.sae import SparseAutoencoder

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
            raise ValueError(f"expected an SAE with finite weights, {name} holds nan or infinity: load another checkpoint")


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
        raise ValueError(f"{what} {point} expected an SAE of d_model={d_model(model)}, got one of {sae.d_model}, {trained}")
    name = getattr(getattr(unwrap(model), "config", None), "name_or_path", "")
    if stated or not name or not sae.config.model_name:
        return
    if sae.config.model_name != type(unwrap(model)).__name__ and not _one_model(sae.config.model_name, name):
        raise ValueError(
            f"{what} {point} expected an SAE of {name}, got one {trained}: pass hook_point={point!r} if the two are one "
            "model or the SAE is to be transferred"
        )


def _one_model(one: str, other: str) -> bool:
    """Whether the name in one is part of the other: an owner, a folder or the hub's cache may stand around it."""

    def parts(name: str) -> set[str]:
        return {bare_model_name(part) for part in re.split(r"[/\\]+|--", name) if part}

    return bare_model_name(one) in parts(other) or bare_model_name(other) in parts(one)
