"""An SAE written for another program: whole, in its own terms, or refused by what the program cannot hold."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

from torch import Tensor

from saelens_lite.atomic import appearing_folder
from saelens_lite.errors import nearest
from saelens_lite.formats import circuit_tracer, dictionary_learning, saelens, sparsify
from saelens_lite.sae.config import SAEConfig

Writer = Callable[[SAEConfig, Mapping[str, Tensor], Path], None]

WRITERS: dict[str, Writer] = {
    sparsify.NAME: sparsify.write,
    dictionary_learning.NAME: dictionary_learning.write,
}
TARGETS = (saelens.NAME, *WRITERS, circuit_tracer.TARGET)
"""The formats that are written; the first by SAEs' own `save`, the last from transcoders of all layers."""


def write_for(config: SAEConfig, tensors: Mapping[str, Tensor], folder: Path, to: str) -> Path:
    """The SAE's folder in the format `to`, one of WRITERS; it appears whole or not at all.

    tensors: the SAE's parameters
    raises: ValueError for what the format cannot hold, naming it; FileExistsError for a folder with files
    """
    if to not in WRITERS:
        raise ValueError(f"to expected one of {', '.join(WRITERS)}, got {to!r}{nearest(to, WRITERS)}")
    if config.target is not None and to != sparsify.NAME:
        raise ValueError(f"{to} cannot hold a transcoder; format saelens holds it")
    if config.normalize_activations != "none":
        raise ValueError(
            f"{to} cannot hold normalize_activations {config.normalize_activations!r}: it reads activations "
            "as they are; format saelens holds it"
        )
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise FileExistsError(f"{folder} expected a new or empty folder, got one with files; choose another")
    with appearing_folder(folder) as staged:
        write = WRITERS[to]
        write(config, {name: tensor.detach().cpu() for name, tensor in tensors.items()}, staged)
    return folder
