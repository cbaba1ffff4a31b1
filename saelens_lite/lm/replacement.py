"""A model that runs on an SAE's reconstruction in place of its activations, or on zero or their mean.

The three replacements touch the same positions, so their losses compare.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Literal

import torch
from torch import Tensor

from saelens_lite.lm.decoder import Decoder, Model
from saelens_lite.lm.forward_state import EditInfo
from saelens_lite.lm.hooks import edit
from saelens_lite.lm.positions import Positions
from saelens_lite.sae.autoencoder import SparseAutoencoder

MODES = ("sae", "zero", "mean")


@contextmanager
def splice(
    model: Model,
    sae: SparseAutoencoder | None,
    hook_point: str | None = None,
    mode: Literal["sae", "zero", "mean"] = "sae",
    mean: Tensor | None = None,
    positions: Literal["non_bos", "all"] | Tensor | Callable[[EditInfo], Tensor] = "non_bos",
) -> Iterator[None]:
    """Inside, forwards continue with a replacement of the activations at the masked positions.

    sae: gives the reconstruction; may be None for zero and mean when hook_point is given
    hook_point: by default where the SAE was trained
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
    decoder, point = Decoder.of(model), hook_point or (sae.config.trained_at if sae is not None else None)
    if not point:
        raise ValueError("expected hook_point=, since the SAE does not say where it was trained")
    chosen = Positions(
        where=positions if isinstance(positions, Tensor) or callable(positions) else _word(positions),
        skip_ids=decoder.special_ids if isinstance(positions, str) and positions == "non_bos" else (),
    )

    def replace(acts: Tensor, info: EditInfo) -> Tensor:
        if mode == "sae":
            new = sae(acts.to(sae.device)).recons
        else:
            new = torch.zeros(()) if mean is None else mean
        return torch.where(chosen(info)[..., None], new.to(acts.device, acts.dtype), acts)

    with edit(decoder, point, replace):
        yield


def _word(positions: str) -> Literal["all"]:
    if positions not in ("non_bos", "all"):
        raise ValueError(f"positions expected 'non_bos', 'all', a bool mask or a function, got {positions!r}")
    return "all"
