"""What public functions are given: folders of SAEs and stores are opened, other mistakes are named."""

from __future__ import annotations

import functools
import inspect
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar, cast

from torch import Tensor

from saelens_lite.autoencoders.autoencoder import Autoencoder
from saelens_lite.autoencoders.folder import FILE
from saelens_lite.misfits import described
from saelens_lite.sae.any_kind import load_reader
from saelens_lite.sae.autoencoder import SparseAutoencoder
from saelens_lite.store.reader import ActivationStore

F = TypeVar("F", bound=Callable[..., Any])

_SAES = ("sae", "baseline", "upstream", "downstream")
_TENSORS = ("acts", "rates", "direction", "similarity")
_NAMES = (*_SAES, *_TENSORS, "seeds", "saes", "autoencoder", "autoencoders", "store", "batches")


def at_most(n: int, there: int) -> int:
    """n, or as many as there are. raises: ValueError for n below 0"""
    if n < 0:
        raise ValueError(f"expected n of 0 or more, got {n}")
    return min(n, there)


def takes_folders(function: F) -> F:
    """The function, with SAEs and stores opened where a folder stands for them.

    Parameters are told by their names: sae and others of an SAE, seeds and saes (several), autoencoder and
    autoencoders (SAEs or relatives of them), store and batches (a store), and tensors such as acts.
    raises: TypeError for what is neither the object, nor a folder of it
    """
    signature = inspect.signature(function)
    named = [n for n in signature.parameters if n in _NAMES]

    @functools.wraps(function)
    def called(*args: Any, **kwargs: Any) -> Any:
        given = signature.bind(*args, **kwargs)
        for name in named:
            value = given.arguments.get(name)
            if value is not None:
                given.arguments[name] = _meant(f"{function.__name__} expected {name}", name, value)
        return function(*given.args, **given.kwargs)

    return cast(F, called)


def _meant(expected: str, name: str, value: Any) -> Any:
    if name in _SAES or (name == "saes" and isinstance(value, str | os.PathLike)):
        return opened_sae(expected, value)
    if name in ("seeds", "saes") and isinstance(value, Mapping):
        return {key: opened_sae(expected, sae) for key, sae in value.items()}
    if name == "seeds" and isinstance(value, list | tuple):
        return [opened_sae(expected, sae) for sae in value]
    if name == "autoencoder":
        return opened_autoencoder(expected, value)
    if name == "autoencoders" and isinstance(value, Mapping):
        return {key: opened_autoencoder(expected, one) for key, one in value.items()}
    if isinstance(value, str | os.PathLike) and name in ("store", "batches"):
        return ActivationStore(value)
    if name == "store" and not hasattr(value, "hook_points"):
        raise TypeError(f"{expected} as an ActivationStore or its folder, got {described(value)}")
    if name in _TENSORS and not isinstance(value, Tensor):
        raise TypeError(
            f"{expected} as a tensor, got {described(value)}: torch.as_tensor makes one of numbers"
        )
    return value


def opened_sae(expected: str, value: Any) -> Any:
    """The SAE, or the one in the folder or repository of this name. raises: TypeError for anything else"""
    if isinstance(value, str | os.PathLike):
        return load_reader(value)
    if not isinstance(value, SparseAutoencoder):
        raise TypeError(f"{expected} as a SparseAutoencoder or its folder, got {described(value)}")
    return value


def opened_autoencoder(expected: str, value: Any) -> Any:
    """The SAE, a relative of it, or the one in this folder. raises: TypeError for anything else"""
    if isinstance(value, Autoencoder):
        return value
    if isinstance(value, str | os.PathLike) and (Path(value) / FILE).exists():
        return Autoencoder.load(value)
    return opened_sae(expected, value)
