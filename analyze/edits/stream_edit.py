"""How a change reaches the stream: at which place and tokens, under which condition, along which directions.

    stream ← stream + change, where the change is not zero

latents.py and directions.py hold the modes; this file holds what they share, and checks their arguments.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Literal, TypedDict

import torch
from torch import Tensor

from saelens_lite.errors import HookError, nearest, with_option
from saelens_lite.lm.decoder import Decoder, Model
from saelens_lite.lm.forward_state import EditInfo
from saelens_lite.lm.hooks import edit, resolve
from saelens_lite.lm.positions import Positions, Where
from saelens_lite.lm.replacement import read_by
from saelens_lite.sae.autoencoder import SparseAutoencoder
from saelens_lite.store.places import CANONICAL

from ..latents.compatibility import checked_latents, fits, fits_edit

Latents = int | Sequence[int] | Tensor
PerLatent = float | Sequence[float] | Tensor
Unit = Literal["raw", "max_act", "resid_norm"]
UNITS = ("raw", "max_act", "resid_norm")

Change = Callable[[Tensor, EditInfo], Tensor]
"""From acts float[batch seq d_model], as the model has them, to what is added to them, in any dtype."""

ChangeByReading = Callable[[Tensor, EditInfo, Tensor], Tensor]
"""The same of an SAE, also from what it reads: the acts themselves, or those at the input of a transcoder."""


@dataclass(frozen=True, slots=True, eq=False)
class Fires:
    """A condition: act only on tokens where this latent is above a value.

    latent: its index; above: in the SAE's own scale; 0 is "where it fires"
    sae: whose latent it is; by default the SAE of the edit
    hook_point: where it is read: by default where `sae` was trained, and without one in the stream that the
        edit finds. Elsewhere it must be a place that the model reaches before the edit; contexts entered
        before have changed it there
    """

    latent: int
    above: float = 0.0
    sae: SparseAutoencoder | None = None
    hook_point: str | None = None


class Place(TypedDict, total=False):
    """Where in the model and in the text an edit acts, besides `where`."""

    hook_point: str | Sequence[str] | None
    """by default where the SAE was trained, or a transcoder's target; several act at each of them, on what
    the one before left"""
    skip_ids: Sequence[int] | None
    """token ids that "all", "prompt" and "generated" leave out; by default the model's BOS, EOS and
    padding"""
    prompt_tokens: int | Sequence[int] | Tensor | None
    """real tokens of each example's prompt (one number, or one an example) in forwards outside `generate`"""
    when: Fires | None
    """only on tokens where another latent fires, here or at an earlier hook point"""


class LatentPlace(Place, total=False):
    """The same for an edit of latents."""

    directions: Tensor | None
    """float[n_latents d_model], or float[batch n_latents d_model] of each row: along what the change of each
    latent is written, by default its row of W_dec. A control varies this: the same change at the same tokens,
    along other directions (controls.py)"""


@contextmanager
def edited(
    model: Model,
    change: Change | ChangeByReading,
    where: Where,
    *,
    sae: SparseAutoencoder | None = None,
    hook_point: str | Sequence[str] | None = None,
    skip_ids: Sequence[int] | None = None,
    prompt_tokens: int | Sequence[int] | Tensor | None = None,
    when: Fires | None = None,
) -> Iterator[None]:
    """Add change(acts, info) at the chosen positions; with an SAE change(acts, info, what it reads).

    raises: ValueError for arguments that do not fit each other, the SAE or the model; HookError as
        `hooks.edit`
    """
    decoder = Decoder.of(model)
    skipped = decoder.special_ids if skip_ids is None else tuple(skip_ids)
    positions = Positions(where=where, skip_ids=skipped, prompt_tokens=prompt_tokens)

    def moved(acts: Tensor, info: EditInfo, holds: Change | None, read: Change | None) -> Tensor:
        by_reading = () if read is None else (read(acts, info),)
        delta = _MinusZero.apply(change(acts, info, *by_reading).to(acts.device))
        touched = positions(info)[..., None].to(acts.device)
        if holds is not None:
            touched = touched & holds(acts, info)[..., None].to(acts.device)
        wider = torch.promote_types(acts.dtype, delta.dtype)  # an SAE of fewer bits must not round the stream
        return torch.where(touched, (acts.to(wider) + delta.to(wider)).to(acts.dtype), acts)

    names = hook_point_names(hook_point, sae)
    if len({resolve(decoder, name).end for name in names}) < len(names):
        raise ValueError(f"hook_point expected each place once, got two names of one in {list(names)}")
    with ExitStack() as stack:
        for name in names:
            read = None
            if sae is not None:
                fits_edit(sae, decoder, name, vouched=hook_point is not None)
                read = stack.enter_context(read_by(decoder, sae, name))
            holds = None if when is None else stack.enter_context(_condition(decoder, when, sae, name))
            stack.enter_context(edit(decoder, name, partial(moved, holds=holds, read=read)))
        yield


class _MinusZero(torch.autograd.Function):
    """−0.0 for every zero: added to a stream it changes no bit (−0.0 + 0.0 would), and a gradient passes."""

    @staticmethod
    def forward(ctx, delta: Tensor) -> Tensor:
        return torch.where(delta == 0, -0.0, delta)

    @staticmethod
    def backward(ctx, gradient: Tensor) -> Tensor:
        return gradient


def hook_point_names(
    hook_point: str | Sequence[str] | None, sae: SparseAutoencoder | None = None
) -> tuple[str, ...]:
    """Where an edit acts: what was asked for, else where the SAE was trained.

    raises: ValueError for none, or for a place named twice
    """
    given = (hook_point,) if isinstance(hook_point, str) else tuple(hook_point or ())
    names = given or ("" if sae is None else sae.config.writes_at,)
    if not all(names):
        silent = "a direction does not say where it belongs"
        if sae is not None:
            silent = "the SAE does not say where it was trained"
        raise with_option(ValueError(f"{silent}: pass hook_point="), "hook_point")
    if len(set(names)) != len(names):
        raise ValueError(f"hook_point expected each place once, got {list(names)}")
    return names


@contextmanager
def _condition(decoder: Decoder, when: Fires, sae: SparseAutoencoder | None, name: str) -> Iterator[Change]:
    """Inside, a function for an edit at the hook point `name`: (acts, info) to bool[batch seq].

    raises: ValueError for a latent or SAE that does not fit, or a place after the edit; HookError from the
        function, where only the forward shows that
    """
    if (reader := when.sae or sae) is None:
        raise ValueError("when= expected Fires(latent, sae=…), since a direction has no SAE of its own")
    checked_latents_of(reader, when.latent)
    if math.isnan(when.above):
        raise ValueError("when= expected Fires(latent, above) with a number, got above=nan")
    own = when.sae is not None or reader.config.target is not None
    place = when.hook_point or (reader.config.trained_at if own else "") or name
    vouched = when.hook_point is not None or not own
    fits(reader, decoder, place, vouched=vouched, name="the SAE of when=")

    def fires(acts: Tensor) -> Tensor:
        chosen = torch.tensor([when.latent], device=reader.device)
        return latent_acts_of(reader, acts.to(reader.device, reader.dtype), chosen)[..., 0] > when.above

    if place == name:
        yield lambda acts, info: fires(acts)
        return
    late = f"when= expected a latent at a place that the model reaches before {name}, got {place}"
    ends = [resolve(decoder, point) for point in (place, name)]
    if all(end.kind in _DEPTHS for end in ends):
        read, edited_at = ((end.block, _DEPTHS.index(end.kind)) for end in ends)
        if read > edited_at:
            raise ValueError(late)
    ours = object()  # the key of this condition among the notes of a pass

    def keep(acts: Tensor, info: EditInfo) -> Tensor:
        info.notes[ours] = fires(acts)
        return acts

    def recalled(acts: Tensor, info: EditInfo) -> Tensor:
        if ours not in info.notes:
            raise HookError(late)
        return info.notes[ours]

    with edit(decoder, place, keep):
        yield recalled


_DEPTHS = list(CANONICAL.values())


Difference = Callable[[Tensor, Tensor, EditInfo], Tensor]
"""From z float[... n latents], acts float[... d_model] in the SAE's dtype and the pass to z_new − z."""


def edited_latents(
    model: Model,
    sae: SparseAutoencoder,
    chosen: Tensor,
    difference: Difference,
    where: Where,
    *,
    reads_latents: bool = True,
    directions: Tensor | None = None,
    **place,
) -> AbstractContextManager[None]:
    """Add (z_new − z) · W_dec in the scale of the stream; with reads_latents=False, z is given as 0."""
    along = _checked_directions(sae, chosen, directions)

    def change(acts: Tensor, info: EditInfo, read: Tensor) -> Tensor:
        wide, latents = acts.to(sae.device, sae.dtype), chosen.to(sae.device)
        z = (
            latent_acts_of(sae, read.to(wide), latents)
            if reads_latents
            else wide.new_zeros(*wide.shape[:-1], len(latents))
        )
        delta = difference(z, wide, info) @ (sae.W_dec[latents] if along is None else along.to(wide))
        row_scale = row_scale_of(sae, wide)
        return delta if row_scale is None else delta * row_scale

    return edited(model, change, where, sae=sae, **place)


def latent_acts_of(sae: SparseAutoencoder, acts: Tensor, latents: Tensor) -> Tensor:
    """float[... n]: activations of these latents."""
    return sae.latent_acts(sae.normalize(acts)[0], latents)


def in_latent_units(
    sae: SparseAutoencoder, chosen: Tensor, amounts: Tensor, unit: str, max_act: PerLatent | None
) -> Callable[[Tensor], Tensor]:
    """From a row's acts to the amounts as activations of the latents: float[n] or float[... n].

    "raw": the amounts; "max_act": times the latent's largest activation; "resid_norm": such that its part of
    the stream, amount · W_dec[i], is that many times as long as the row
    raises: ValueError for another unit, or max_act without its unit
    """
    if unit not in UNITS:
        raise ValueError(f"unit expected one of {UNITS}, got {unit!r}{nearest(str(unit), UNITS)}")
    if (unit == "max_act") != (max_act is not None):
        raise ValueError(
            f"max_act= belongs to unit='max_act' and only to it, got unit={unit!r} "
            f"with{'out' if max_act is None else ''} max_act=; latent_stats(sae, batches).max gives it"
        )
    if max_act is not None:
        largest = of_latents(max_act, chosen, sae, "max_act")
        if not (largest > 0).all():
            silent = chosen[largest <= 0].tolist()[:8]
            raise ValueError(
                f"unit='max_act' expected latents that fired, got {silent} with max_act 0 or less: times "
                "that, the edit would do nothing. Take max_act from more tokens, or another unit"
            )
        amounts = amounts * largest

    def in_row(acts: Tensor) -> Tensor:
        if unit != "resid_norm":
            return amounts.to(acts)
        tiny = torch.finfo(acts.dtype).tiny
        row_scale = row_scale_of(sae, acts)
        norm = acts.norm(dim=-1, keepdim=True)
        in_scale = norm if row_scale is None else norm / row_scale.clamp_min(tiny)
        return in_scale * (amounts.to(acts) / sae.W_dec[chosen.to(sae.device)].norm(dim=-1).clamp_min(tiny))

    return in_row


def row_scale_of(sae: SparseAutoencoder, acts: Tensor) -> Tensor | None:
    """What brings a row's edit back to the scale of its acts, float[... 1]; None where nothing does, as in a
    transcoder, which normalises no row."""
    return None if sae.config.normalize_activations == "none" else sae.normalize(acts)[1]


def checked_latents_of(sae: SparseAutoencoder, latents: Latents) -> Tensor:
    """int64[n] on the CPU, each once and within the SAE.

    raises: ValueError otherwise, or for none
    """
    chosen = checked_latents(sae, latents)
    if not len(chosen):
        raise ValueError("latents expected at least one index, got none")
    if len(chosen.unique()) != len(chosen):
        raise ValueError(f"latents expected each index once, got {chosen.tolist()[:8]}")
    return chosen


def amounts_for(value: PerLatent, chosen: Tensor, name: str) -> Tensor:
    """float[n] on the CPU, from one number or one a latent."""
    try:
        amounts = torch.as_tensor(value).cpu()
    except (TypeError, ValueError, RuntimeError) as error:
        raise TypeError(f"{name} expected a number or one for each latent, got {value!r}") from error
    amounts = amounts if amounts.is_floating_point() else amounts.float()
    if not amounts.isfinite().all():
        raise ValueError(f"{name} expected finite numbers, got {amounts[~amounts.isfinite()][0].item()}")
    if amounts.numel() != 1 and amounts.shape != chosen.shape:
        raise ValueError(
            f"{name} expected one number or one for each of {len(chosen)} latents, got {list(amounts.shape)}"
        )
    return amounts.reshape(-1).expand(len(chosen))


def of_latents(values: PerLatent, chosen: Tensor, sae: SparseAutoencoder, name: str) -> Tensor:
    """float[n] from values of all d_sae latents, or as `amounts_for`."""
    if isinstance(values, Tensor) and values.shape == (sae.d_sae,):
        values = values.cpu()[chosen]
    return amounts_for(values, chosen, name)


def _checked_directions(sae: SparseAutoencoder, chosen: Tensor, directions: Tensor | None) -> Tensor | None:
    own = (len(chosen), sae.config.d_out)
    if directions is not None and (directions.ndim not in (2, 3) or directions.shape[-2:] != own):
        raise ValueError(
            f"directions expected float[{len(chosen)} latents, d_model={own[1]}], or that for each row "
            f"of the batch, got {list(directions.shape)}"
        )
    return directions
