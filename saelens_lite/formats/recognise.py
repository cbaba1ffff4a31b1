"""Which format the files at a place are of."""

from __future__ import annotations

from typing import cast

from saelens_lite.errors import nearest
from saelens_lite.formats import (
    circuit_tracer,
    crosscoder,
    dictionary_learning,
    gemma_scope,
    gemma_scope_2,
    goodfire,
    llama_scope,
    llamascopium,
    openai,
    qwen_scope,
    saelens,
    sparsify,
)
from saelens_lite.formats.opened import Format, Place

_FORMATS = (
    gemma_scope, gemma_scope_2, qwen_scope, llama_scope, llamascopium, sparsify, dictionary_learning, openai,
    goodfire, crosscoder, circuit_tracer,
)  # fmt: skip
FOREIGN = {form.NAME: cast(Format, form) for form in _FORMATS}
NAMES = (saelens.NAME, *FOREIGN)


def recognised(place: Place, asked: str | None = None) -> str | None:
    """The name of the format, or None where no files of any are there.

    asked: the format that the caller names; it is tried on files that are of no other
    raises: ValueError for an unknown name, or files that are of another format than asked
    """
    if asked is not None and asked not in NAMES:
        raise ValueError(f"format expected one of {', '.join(NAMES)}, got {asked!r}{nearest(asked, NAMES)}")
    found = [name for name in NAMES if _recognises(name, place)]
    if asked is None or asked in found:
        return asked or next(iter(found), None)
    if found:
        raise ValueError(
            f"{place.name}: format={asked!r} expected {holds(asked)}, got the files of format={found[0]!r} "
            f"({holds(found[0])}); leave format= out, and they are recognised"
        )
    return asked


def refused(place: Place) -> str:
    """What the files are, where it is known and none of one SAE; "" where it is not known."""
    if any(place.path.glob("W_enc_*.safetensors")) and any(place.path.glob("W_dec_*.safetensors")):
        return "circuit-tracer's cross-layer transcoders, whose latents write to all layers that follow"
    if place.path.is_dir() and place.holds("config.yaml") and any(place.path.glob("layer_*.safetensors")):
        return "a set of circuit-tracer's transcoders: pass one, such as folder='layer_0.safetensors'"
    return ""


def holds(name: str) -> str:
    """The files that a format is recognised by, in words."""
    return saelens.HOLDS if name == saelens.NAME else FOREIGN[name].HOLDS


def _recognises(name: str, place: Place) -> bool:
    return (saelens if name == saelens.NAME else FOREIGN[name]).recognises(place)
