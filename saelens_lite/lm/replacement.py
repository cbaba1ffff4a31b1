"""A model that runs on an SAE's reconstruction in place of its activations, or on zero or their mean.

A transcoder reads at one place and replaces what another gives, such as what an MLP adds. The three
replacements touch the same positions, so their losses compare.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Literal

import torch
from torch import Tensor

from saelens_lite.autoencoders.autoencoder import Autoencoder
from saelens_lite.errors import HookError
from saelens_lite.lm.decoder import Decoder, Model
from saelens_lite.lm.forward_state import EditInfo
from saelens_lite.lm.hooks import edit
from saelens_lite.lm.positions import Positions
from saelens_lite.sae.autoencoder import SparseAutoencoder

MODES = ("sae", "zero", "mean")


@contextmanager
def splice(
    model: Model,
    sae: SparseAutoencoder | Autoencoder | None,
    hook_point: str | None = None,
    mode: Literal["sae", "zero", "mean"] = "sae",
    mean: Tensor | None = None,
    positions: Literal["non_bos", "all"] | Tensor | Callable[[EditInfo], Tensor] = "non_bos",
) -> Iterator[None]:
    """Inside, forwards continue with a replacement of the activations at the masked positions.

    sae: an SAE or a relative of it, gives the reconstruction; may be None for zero and mean when hook_point
        is given. A transcoder gives it from what it reads at its input
    hook_point: what is replaced: by default where the SAE was trained, or the target of a transcoder
    mean: float[d_model], for mode="mean"
    positions: "non_bos" (every real token but BOS, EOS and padding ids), "all" real tokens, bool[batch
        width], or a function of EditInfo giving bool[batch seq]
    raises: ValueError for a mode or mean that do not fit; HookError as `hooks.edit`
    """
    if mode not in MODES:
        raise ValueError(f"mode expected one of {MODES}, got {mode!r}")
    if (mode == "mean") != (mean is not None):
        raise ValueError(
            f"mean= belongs to mode='mean' and only to it, got mode={mode!r}, mean={mean is not None}"
        )
    if mode == "sae" and sae is None:
        raise ValueError("mode='sae' expected an SAE, got None")
    decoder, point = Decoder.of(model), hook_point or _written_by(sae)
    if not point:
        raise ValueError("expected hook_point=, since the SAE does not say where it was trained")
    chosen = Positions(
        where=positions if isinstance(positions, Tensor) or callable(positions) else _word(positions),
        skip_ids=decoder.special_ids if isinstance(positions, str) and positions == "non_bos" else (),
    )

    with ExitStack() as stack:
        if mode == "sae":
            source = stack.enter_context(read_by(decoder, sae, point))

        def replace(acts: Tensor, info: EditInfo) -> Tensor:
            if mode == "sae":
                new = sae(source(acts, info).to(sae.device)).recons
            else:
                new = torch.zeros(()) if mean is None else mean
            return torch.where(chosen(info)[..., None], new.to(acts.device, acts.dtype), acts)

        stack.enter_context(edit(decoder, point, replace))
        yield


@contextmanager
def read_by(
    decoder: Decoder, sae: SparseAutoencoder | Autoencoder, point: str
) -> Iterator[Callable[[Tensor, EditInfo], Tensor]]:
    """Inside, a function for an edit at `point`: from its acts and the pass to the acts that the SAE reads.

    They are those of the point itself, or those at the input of a transcoder in the same pass, as edits
    entered before left them.
    raises: HookError as `hooks.edit`, and from the function where the model reaches the input after the point
    """
    if isinstance(sae, Autoencoder) or sae.config.target is None:
        yield lambda acts, info: acts
        return
    place, ours = sae.config.trained_at, object()  # the key of this reading among the notes of a pass

    def keep(acts: Tensor, info: EditInfo) -> Tensor:
        info.notes[ours] = acts
        return acts

    def recalled(acts: Tensor, info: EditInfo) -> Tensor:
        if ours not in info.notes:
            raise HookError(
                f"the transcoder reads {place}, which the model reaches only after {point}, where it writes: "
                "name the place that it was trained to write"
            )
        return info.notes.pop(ours)

    with edit(decoder, place, keep):
        yield recalled


def _written_by(sae: SparseAutoencoder | Autoencoder | None) -> str:
    """The hook point that is replaced unless another is named; "" where that is not known."""
    if isinstance(sae, Autoencoder):
        return sae.hook_point
    return "" if sae is None else sae.config.writes_at


def _word(positions: str) -> Literal["all"]:
    if positions not in ("non_bos", "all"):
        raise ValueError(f"positions expected 'non_bos', 'all', a bool mask or a function, got {positions!r}")
    return "all"
