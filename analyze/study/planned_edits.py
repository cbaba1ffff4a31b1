"""The edits that a study tries: latents of known and unknown entities clamped or removed, and rivals."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from saelens_lite.sae.autoencoder import SparseAutoencoder

from ..edits.directions import steer_direction
from ..edits.latents import ablate, clamp, replace_with_reconstruction
from ..edits.neutral_text import SideEffects
from ..edits.stream_edit import latent_acts_of
from ..stats.document_split import Selection
from .half import Edit, Outcome

TYPICAL = 0.95
"""Quantile of a latent's positive activations that dose 1 of a clamp sets."""

_N_BISECTIONS = 12


class Chosen(NamedTuple):
    """Latents that the selecting side chose, best first."""

    known: Selection
    """that fire on entities which the model knows"""
    unknown: Selection
    """that fire on those which it does not"""
    n: int
    """how many of each are clamped; group ablations take all"""
    sae: SparseAutoencoder
    """whose they are"""


class Planned(NamedTuple):
    """An edit of a study.

    sae: "trained", "baseline", or "" for edits without latents
    dose: of clamps, in typical values of the trained SAE's latents; others of this dose move as far
    measure: what it should raise; None for what is only shown
    own_dose: of a baseline's clamp, in typical values of its own latents
    controls: outcomes of matched random sets; rate_ratio: the largest factor between the firing rates of a
        latent and of one drawn for it
    side_effects: on every token of neutral text
    """

    name: str
    sae: str = ""
    dose: float | None = None
    measure: str | None = None
    latents: tuple[int, ...] = ()
    own_dose: float | None = None
    controls: tuple[Outcome, ...] = ()
    rate_ratio: float | None = None
    side_effects: SideEffects | None = None


class EditsOf:
    """The edits of one choice of latents, as functions of the tokens to edit (for controls, directions=).

    acts: float[n d_model], the selecting side's entities, on which typical activations are measured
    """

    def __init__(self, model: nn.Module, hook_point: str, chosen: Chosen, acts: Tensor) -> None:
        self.model, self.hook_point, self.chosen = model, hook_point, chosen
        self._acts = acts

    def clamp(self, known: bool) -> Callable[..., Any]:
        """From a dose and the tokens: the first n latents held at that multiple of their typical values."""
        sae, latents = self.chosen.sae, self.clamped(known)
        return partial(held, self.model, sae, latents, typical(sae, latents, self._acts), self.hook_point)

    def clamped(self, known: bool) -> Tensor:
        return self._of(known).latents[: self.chosen.n]

    def ablations(self, known: bool) -> list[tuple[Tensor, Edit]]:
        """As many latents removed as are clamped, and all that were chosen."""
        latents = self._of(known).latents
        return [
            (latents[:n], partial(_removed, self.model, self.chosen.sae, latents[:n], self.hook_point))
            for n in dict.fromkeys((self.chosen.n, len(latents)))
        ]

    def splice(self, where: Tensor) -> Any:
        return replace_with_reconstruction(
            self.model, self.chosen.sae, where=where, hook_point=self.hook_point
        )

    def _of(self, known: bool) -> Selection:
        return self.chosen.known if known else self.chosen.unknown


def typical(sae: SparseAutoencoder, latents: Tensor, acts: Tensor) -> Tensor:
    """float[n]: the 95 % quantile of each latent's positive activations on these rows; each must fire."""
    with torch.no_grad():
        z = latent_acts_of(sae, acts.to(sae.device, sae.dtype), latents.to(sae.device)).float().cpu()
    return torch.stack([column[column > 0].quantile(TYPICAL) for column in z.T])


def held(
    model: nn.Module,
    sae: SparseAutoencoder,
    latents: Tensor,
    typical_acts: Tensor,
    hook_point: str,
    dose: float,
    where: Tensor,
    **how: Any,
) -> Any:
    unit = {"unit": "max_act", "max_act": typical_acts}
    return clamp(model, sae, latents, dose, where=where, hook_point=hook_point, **unit, **how)


def along(model: nn.Module, hook_point: str, direction: Tensor, strength: float) -> Edit:
    """A direction added, `strength` times as long as the stream is."""
    how = {"unit": "resid_norm", "hook_point": hook_point}
    return lambda where: steer_direction(model, direction, strength, where=where, **how)


def as_far(
    sae: SparseAutoencoder, latents: Tensor, target: Tensor, acts: Tensor, directions: Tensor
) -> Tensor:
    """Directions of controls, each draw scaled to move the rows as far, on average, as the latents' own do.

    Chosen latents may point alike, and then their changes add up to more than those of random latents: a
    control without this scale would be weaker.

    target: float[n], to what the latents are set; acts: float[n_rows d_model]
    directions, and returned: float[n_draws n d_model]; unscaled where latents silent on all rows are set to 0
    """
    with torch.no_grad():
        wide = acts.to(sae.device, sae.dtype)
        written = target.to(wide) - latent_acts_of(sae, wide, latents.to(sae.device))
        share = written / wide.norm(dim=-1, keepdim=True)
        row_scale = sae.normalize(wide)[1]
        share = share if row_scale is None else share * row_scale

        def push(along: Tensor) -> Tensor:
            return (share @ along.to(wide)).norm(dim=-1).mean()

        if not share.any():
            return directions
        own = push(sae.W_dec[latents.to(sae.device)])
        return torch.stack([draw * (own / push(draw)).to(draw) for draw in directions])


def dose_for_push(push_at: Callable[[float], float], wanted: float, doses: Sequence[float]) -> float:
    """The dose of the wanted push, by bisection from 1/100 of the smallest dose to 100 times the largest.

    push_at: from a dose to its push, larger for larger doses
    """
    low, high = torch.tensor(min(doses) / 100).log(), torch.tensor(max(doses) * 100).log()
    for _ in range(_N_BISECTIONS):
        middle = (low + high) / 2
        low, high = (middle, high) if push_at(float(middle.exp())) < wanted else (low, middle)
    return float(((low + high) / 2).exp())


def _removed(
    model: nn.Module, sae: SparseAutoencoder, latents: Tensor, hook_point: str, where: Tensor, **how: Any
) -> Any:
    return ablate(model, sae, latents, where=where, hook_point=hook_point, **how)
