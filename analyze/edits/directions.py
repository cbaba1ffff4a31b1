"""Edits along any direction: a vector added to the stream, or what lies along it removed.

They try what DiffMean, a probe or chance find (controls.py) in the place of a latent. Positions, hook
points and conditions are as in latents.py; `hook_point=hook_points(model)` removes a direction wherever a
block writes it.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal, Unpack

import torch
from torch import Tensor, nn

from saelens_lite.arguments import takes_folders
from saelens_lite.errors import nearest
from saelens_lite.lm.decoder import Decoder, Model
from saelens_lite.lm.forward_state import EditInfo
from saelens_lite.lm.hooks import resolve
from saelens_lite.lm.positions import Where
from saelens_lite.misfits import names_misfits

from .stream_edit import Place, edited, hook_point_names

_UNITS = ("raw", "resid_norm")


@takes_folders
@contextmanager
@names_misfits
def steer_direction(
    model: Model,
    direction: Tensor,
    strength: float | Tensor,
    *,
    where: Where = "all",
    unit: Literal["raw", "resid_norm"] = "raw",
    **place: Unpack[Place],
) -> Iterator[None]:
    """strength · direction added to the stream; hook_point= says where.

    direction: float[d_model]; it and strength can be trained through the edit
    unit: "raw" adds the vector as it is, times strength; "resid_norm" one along it, strength times as long as
        the row
    raises: ValueError for arguments that do not fit each other or the model; HookError as `hooks.edit`
    """
    if unit not in _UNITS:
        raise ValueError(f"unit expected one of {_UNITS}, got {unit!r}{nearest(str(unit), _UNITS)}")
    amount = torch.as_tensor(strength)
    if amount.numel() != 1 or not amount.isfinite().all():
        raise ValueError(f"strength expected a finite number, got {strength}")
    decoder = Decoder.of(model)
    (vector,) = _checked(decoder, direction, place, 1)
    if unit == "resid_norm":
        vector = nn.functional.normalize(vector, dim=0)

    def change(acts: Tensor, info: EditInfo) -> Tensor:
        added = amount.reshape(()).to(vector) * vector
        added = added.to(acts.device)
        return (
            added * acts.to(added.dtype).norm(dim=-1, keepdim=True)
            if unit == "resid_norm"
            else added.expand_as(acts)
        )

    with edited(decoder, change, where, **place):
        yield


@takes_folders
@contextmanager
@names_misfits
def ablate_direction(
    model: Model, direction: Tensor, *, where: Where = "all", **place: Unpack[Place]
) -> Iterator[None]:
    """A direction removed from the stream, h − (h · d̂) d̂; of several, the space that they span.

    direction: float[d_model], or float[n d_model]; only where they point matters
    raises: as `steer_direction`
    source: Arditi et al. 2024, "Refusal in Language Models Is Mediated by a Single Direction",
        arXiv:2406.11717
    """
    decoder = Decoder.of(model)
    rows = _checked(decoder, direction, place, None)
    span = nn.functional.normalize(rows.double())
    # rows @ inverse @ rows = rows: what acts have in their span. No decomposition: its gradient is infinite
    # where directions are orthogonal
    inverse = torch.linalg.pinv(span, rtol=rows.shape[1] * torch.finfo(rows.dtype).eps)
    span, inverse = span.to(rows), inverse.to(rows)

    def change(acts: Tensor, info: EditInfo) -> Tensor:
        return -(acts.to(span.dtype) @ inverse.to(acts.device)) @ span.to(acts.device)

    with edited(decoder, change, where, **place):
        yield


def _checked(decoder: Decoder, direction: Tensor, place: Place, n: int | None) -> Tensor:
    """float[n d_model], float32 or wider, none of them zero; as wide as what passes at the hook points."""
    rows = direction[None] if direction.ndim == 1 else direction
    points = [resolve(decoder, name) for name in hook_point_names(place.get("hook_point"))]
    for width in (point.width(decoder) or rows.shape[-1] for point in points):
        if rows.ndim != 2 or rows.shape[1] != width or (n is not None and len(rows) != n):
            raise ValueError(f"direction expected float[d_model={width}], got {list(direction.shape)}")
    if not rows.isfinite().all() or not rows.any(1).all():
        raise ValueError("direction expected finite numbers that are not all zero")
    return rows.to(torch.promote_types(rows.dtype, torch.float32))
