"""The edits that a study tries: latents of known and unknown entities clamped or removed, and rivals."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from saelens_lite.lm.positions import Where
from saelens_lite.sae.autoencoder import SparseAutoencoder

from ..edits.directions import steer_direction
from ..edits.latents import ablate, clamp, replace_with_reconstruction, steer
from ..edits.neutral_text import SideEffects
from ..edits.stream_edit import latent_acts_of
from ..stats.document_split import Selection
from .half import Edit, Outcome

TYPICAL = 0.95
"""Quantile of a latent's positive activations that dose 1 of a clamp sets."""

MODES = ("mean", "steer")
"""Besides clamps and ablations to zero: ablations to the mean, and typical values added."""

_MEASURES = ("hallucination", "refusal")
"""What clamps of known latents should raise, and what those of unknown ones should; ablations the other."""

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

    def latents(self, known: bool, n: int) -> Tensor:
        """The first n; raises: ValueError where fewer were chosen"""
        of = (self.chosen.known if known else self.chosen.unknown).latents
        if n > len(of):
            raise ValueError(
                f"sizes expected groups of at most {len(of)} latents, as many as were chosen, got {n}: "
                "choose more with n_ablated="
            )
        return of[:n]

    def all_of(self, known: bool) -> int:
        return len((self.chosen.known if known else self.chosen.unknown).latents)

    def typical(self, latents: Tensor) -> Tensor:
        return typical(self.chosen.sae, latents, self._acts)

    def mean(self, latents: Tensor) -> Tensor:
        """float[n]: mean activation of each on these rows."""
        sae = self.chosen.sae
        with torch.no_grad():
            z = latent_acts_of(sae, self._acts.to(sae.device, sae.dtype), latents.to(sae.device))
        return z.float().cpu().mean(0)

    def clamp(self, latents: Tensor) -> Callable[..., Any]:
        """From a dose and the tokens: latents held at that multiple of their typical values."""
        return partial(
            at_typical, clamp, self.model, self.chosen.sae, latents, self.typical(latents), self.hook_point
        )

    def steer(self, latents: Tensor) -> Callable[..., Any]:
        """From a dose and the tokens: that multiple of their typical values added, whatever they are."""
        return partial(
            at_typical, steer, self.model, self.chosen.sae, latents, self.typical(latents), self.hook_point
        )

    def remove(self, latents: Tensor, to: Tensor | None = None) -> Edit:
        """Latents set to zero, or to given values."""
        return partial(_removed, self.model, self.chosen.sae, latents, self.hook_point, to)

    def splice(self, where: Where) -> Any:
        return replace_with_reconstruction(
            self.model, self.chosen.sae, where=where, hook_point=self.hook_point
        )


class Prepared(NamedTuple):
    """An edit with what its controls need.

    target: float[n latents], to what the latents are set, or what is added to them
    """

    planned: Planned
    edit: Any
    target: Tensor
    adds: bool = False


def planned_edits(
    edits: EditsOf,
    name: str,
    doses: Sequence[float],
    push: Callable[[Edit], float],
    pushes: dict[tuple[bool, str, float], float],
    modes: Sequence[str] = (),
    sizes: Sequence[int] = (),
) -> list[Prepared]:
    """The edits of one SAE. Those of the trained one fill in `pushes`, and the baseline's are made as strong.

    modes: further ones, of MODES; sizes: of further groups, each clamped and ablated
    """
    chosen, found = edits.chosen, []
    for known in (True, False):
        what, measure, other = ("known", *_MEASURES) if known else ("unknown", *_MEASURES[::-1])
        for n in dict.fromkeys((chosen.n, *sizes)):
            latents = edits.latents(known, n)
            group = what if n == chosen.n else f"{n} {what}"
            strong = {"clamp": edits.clamp} | ({"steer": edits.steer} if "steer" in modes else {})
            for mode, of in strong.items():
                title, act, unit = f"{mode} {group}", of(latents), edits.typical(latents)

                def push_at(dose: float, act: Any = act) -> float:
                    return push(partial(act, dose))

                for dose in doses:
                    own, key = dose, (known, title, dose)
                    if name == "trained":
                        pushes[key] = push_at(dose)
                    else:
                        own = dose_for_push(push_at, pushes[key], doses)
                    planned = Planned(title, name, dose, measure, tuple(latents.tolist()), own)
                    found.append(Prepared(planned, partial(act, own), own * unit, mode == "steer"))
        n_all = edits.all_of(known)
        for n in dict.fromkeys((chosen.n, n_all, *sizes)):
            latents = edits.latents(known, n)
            group = {n_all: f"many {what}", chosen.n: f"few {what}"}.get(n, f"{n} {what}")
            targets = {f"ablate {group}": None}
            if "mean" in modes:
                targets[f"ablate {group} to mean"] = edits.mean(latents)
            for title, target in targets.items():
                planned = Planned(title, name, None, other, tuple(latents.tolist()))
                removed = edits.remove(latents, target)
                found.append(Prepared(planned, removed, torch.zeros(n) if target is None else target))
    return found


def typical(sae: SparseAutoencoder, latents: Tensor, acts: Tensor) -> Tensor:
    """float[n]: the 95 % quantile of each latent's positive activations on these rows; each must fire."""
    with torch.no_grad():
        z = latent_acts_of(sae, acts.to(sae.device, sae.dtype), latents.to(sae.device)).float().cpu()
    return torch.stack([column[column > 0].quantile(TYPICAL) for column in z.T])


def at_typical(
    edit: Callable[..., Any],
    model: nn.Module,
    sae: SparseAutoencoder,
    latents: Tensor,
    typical_acts: Tensor,
    hook_point: str,
    dose: float,
    where: Where,
    **how: Any,
) -> Any:
    """`clamp` or `steer` of latents, at a multiple of their typical activations."""
    unit = {"unit": "max_act", "max_act": typical_acts}
    return edit(model, sae, latents, dose, where=where, hook_point=hook_point, **unit, **how)


def along(model: nn.Module, hook_point: str, direction: Tensor, strength: float) -> Edit:
    """A direction added, `strength` times as long as the stream is."""
    how = {"unit": "resid_norm", "hook_point": hook_point}
    return lambda where: steer_direction(model, direction, strength, where=where, **how)


def as_far(
    sae: SparseAutoencoder,
    latents: Tensor,
    target: Tensor,
    acts: Tensor,
    directions: Tensor,
    adds: bool = False,
) -> Tensor:
    """Directions of controls, each draw scaled to move the rows as far, on average, as the latents' own do.

    Chosen latents may point alike, and then their changes add up to more than those of random latents: a
    control without this scale would be weaker.

    target: float[n], to what the latents are set, or with adds=True what is added to them
    acts: float[n_rows d_model]
    directions, and returned: float[n_draws n d_model]; unscaled where latents silent on all rows are set to 0
    """
    with torch.no_grad():
        wide = acts.to(sae.device, sae.dtype)
        written = target.to(wide).expand(len(wide), -1)
        if not adds:
            written = written - latent_acts_of(sae, wide, latents.to(sae.device))
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
    model: nn.Module,
    sae: SparseAutoencoder,
    latents: Tensor,
    hook_point: str,
    to: Tensor | None,
    where: Where,
    **how: Any,
) -> Any:
    value = {} if to is None else {"value": "mean", "mean": to}
    return ablate(model, sae, latents, where=where, hook_point=hook_point, **value, **how)
