"""An edit at several doses: its effect with intervals, its side effects, and the effect of its controls.

The caller decides what is measured: `score` runs the model and returns a number for each item (a prompt, an
entity, a text). Items are the same under every dose and control, so effects are differences within items.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import Any, Literal

import torch
from torch import Tensor, nn

from saelens_lite.arguments import takes_folders
from saelens_lite.misfits import names_misfits
from saelens_lite.sae.autoencoder import SparseAutoencoder
from saelens_lite.text_table import Lines, Tabular, plain, span

from ..stats.bootstrap import (
    ALTERNATIVES,
    Alternative,
    Interval,
    cluster_bootstrap,
    rank_p,
    spread,
    westfall_young_p,
)
from ..stats.document_split import Documents, Selection, document_ids
from ..stats.interval_plots import new_axes
from ..stats.ranks import spearman
from .controls import Controls
from .latents import steer
from .neutral_text import NeutralText, SideEffects, side_effects
from .stream_edit import Latents, hook_point_names

Score = Callable[[nn.Module], Tensor]
Edit = Callable[[float], AbstractContextManager]


@dataclass(frozen=True, slots=True, eq=False)
class ControlEffects:
    """What draws of one control do at one dose.

    effects: float64[n_draws], each the mean over items
    p: rank of the latents' effect among them, (1 + #≥) / (n + 1)
    p_any_dose: the same corrected for there being several doses, by the largest of each draw
    """

    name: str
    effects: Tensor
    p: float
    p_any_dose: float


@dataclass(frozen=True, slots=True, eq=False)
class RivalEffect:
    """Another edit at the same dose: its effect, and the latents' effect less its own, item by item."""

    name: str
    effect: Interval
    difference: Interval


@dataclass(frozen=True, slots=True, eq=False)
class DoseRow:
    """One dose.

    score: mean over items; effect: mean over items of what it is above the score without an edit
    """

    dose: float
    score: Interval
    effect: Interval
    side_effects: SideEffects | None
    controls: tuple[ControlEffects, ...]
    rivals: tuple[RivalEffect, ...]


@dataclass(frozen=True, slots=True, eq=False)
class DoseResponse(Tabular):
    """The table of `dose_response`; printing it shows it.

    latents: edited; clean: the score without an edit; rows: in the order of the doses
    selected: whether the latents came from the other side of a split
    """

    latents: tuple[int, ...]
    clean: Interval
    rows: tuple[DoseRow, ...]
    selected: bool
    _left = 0

    @property
    def spearman(self) -> float:
        """Rank correlation of dose and effect: 1 where every larger dose does more; nan where all effects are
        equal."""
        if len(self.rows) < 2:
            return math.nan
        return spearman(*self._columns())

    @property
    def half_effect_dose(self) -> float | None:
        """The smallest dose, between measured ones, that reaches half of the largest effect.

        It is on the side (sign of the dose) of the largest effect. None where the smallest dose measured
        there has half already.
        """
        doses, effects = self._columns()
        peak = max(range(len(doses)), key=lambda i: abs(effects[i]))
        side = sorted(
            (abs(d), e / effects[peak])
            for d, e in zip(doses, effects)
            if d * doses[peak] >= 0 and effects[peak]
        )
        for (near, low), (far, high) in pairwise(side):
            if low < 0.5 <= high:
                return math.copysign(near + (far - near) * (0.5 - low) / (high - low), doses[peak])
        return None

    @property
    def frontier(self) -> list[tuple[float, float, float]]:
        """(dose, ΔCE on neutral text, effect) of the doses that no other beats at its cost, cheapest first.

        A dose is beaten where another costs no more and does as much, in the direction of the largest effect.
        raises: ValueError without neutral text
        """
        found: list[tuple[float, float, float]] = []
        sign = math.copysign(1.0, max(self._columns()[1], key=abs))
        for dose, cost, effect in sorted(self._costs(), key=lambda row: (row[1], -sign * row[2])):
            if not found or sign * effect > sign * found[-1][2]:
                found.append((dose, cost, effect))
        return found

    @names_misfits
    def effect_at(self, delta_ce: float) -> float:
        """The effect at the smallest dose that costs so much ΔCE on neutral text, in nats, to compare edits.

        It is linear between measured doses on the side of the largest effect, from no cost at dose 0; nan
        where no dose there costs that much.
        raises: ValueError without neutral text, or for a cost that is not above 0
        """
        if not delta_ce > 0:
            raise ValueError(f"effect_at expected a ΔCE above 0 nats, got {delta_ce}")
        peak = max(self._costs(), key=lambda row: abs(row[2]))[0]
        side = sorted((abs(dose), cost, effect) for dose, cost, effect in self._costs() if dose * peak > 0)
        for (_, low, start), (_, high, end) in pairwise([(0.0, 0.0, 0.0), *side]):
            if low < delta_ce <= high:
                return start + (end - start) * (delta_ce - low) / (high - low)
        return math.nan

    def _costs(self) -> list[tuple[float, float, float]]:
        """(dose, ΔCE, effect) of each row."""
        found = []
        for row in self.rows:
            if row.side_effects is None:
                raise ValueError("expected doses measured on neutral text: give dose_response(neutral=…)")
            found.append((row.dose, float(row.side_effects.delta_ce.estimate), float(row.effect.estimate)))
        return found

    def _columns(self) -> tuple[list[float], list[float]]:
        return [row.dose for row in self.rows], [row.effect.estimate.item() for row in self.rows]

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers, for JSON, None for nan; draws of controls as the 5, 50 and 95 % quantiles of their
        effects."""
        rows = []
        for row in self.rows:
            cells: dict[str, Any] = {"dose": row.dose}
            cells |= {"score": row.score.to_dict(), "effect": row.effect.to_dict()}
            if row.side_effects is not None:
                side = row.side_effects
                cells |= {"delta_ce": side.delta_ce.to_dict(), "kl": side.kl.to_dict(), "push": side.push}
                if side.repetition is not None:
                    cells |= side.repetition._asdict()
            cells["controls"] = {
                c.name: {
                    "n": len(c.effects),
                    "p": c.p,
                    "p_any_dose": c.p_any_dose,
                    "quantiles": spread(c.effects),
                }
                for c in row.controls
            }
            cells["rivals"] = {
                r.name: {"effect": r.effect.to_dict(), "difference": r.difference.to_dict()}
                for r in row.rivals
            }
            rows.append(cells)
        return {
            "latents": list(self.latents),
            "selected_on_other_documents": self.selected,
            "clean": self.clean.to_dict(),
            "n_clusters": self.clean.n_clusters,
            "confidence": self.clean.confidence,
            "spearman": plain(self.spearman),
            "half_effect_dose": self.half_effect_dose,
            "rows": rows,
        }

    def _tables(self) -> list[tuple[str, Lines]]:
        first = self.rows[0]
        heads = ["dose", "score", "effect", f"{self.clean.confidence:.0%} interval"]
        heads += ["ΔCE", "KL", "push"] * (first.side_effects is not None)
        repeats = first.side_effects is not None and first.side_effects.repetition is not None
        heads += ["repeated", "distinct"] * repeats
        heads += [head for control in first.controls for head in (f"{control.name} 5–95 %", "p", "p any")]
        heads += [f"less {rival.name}" for rival in first.rivals]
        table = [heads]
        for row in self.rows:
            cells = [
                f"{row.dose:g}",
                f"{row.score.estimate:.4g}",
                f"{row.effect.estimate:+.3g}",
                _span(row.effect),
            ]
            if row.side_effects is not None:
                side = row.side_effects
                cells += [f"{side.delta_ce.estimate:+.3f}", f"{side.kl.estimate:.3f}", f"{side.push:.2f}"]
                if side.repetition is not None:
                    cells += [f"{side.repetition.repeated:.2f}", f"{side.repetition.distinct:.2f}"]
            for control in row.controls:
                low, _, high = spread(control.effects)
                cells += [span(low, high, "+.3g"), f"{control.p:.3f}", f"{control.p_any_dose:.3f}"]
            cells += [f"{r.difference.estimate:+.3g} ({_span(r.difference)})" for r in row.rivals]
            table.append(cells)
        return [("", table)]

    def _notes(self) -> list[str]:
        chosen = "chosen on other documents" if self.selected else "given, not chosen on a split"
        shown = ", ".join(map(str, self.latents[:8])) + ", …" * (len(self.latents) > 8)
        return [
            f"latents {shown} ({chosen}); without an edit {self.clean.estimate:.4g} ({_span(self.clean)}); "
            f"{self.clean.n_clusters} clusters; Spearman of dose and effect {self.spearman:.2f}"
        ]

    __repr__ = Tabular.table

    @names_misfits
    def plot(self, ax: Any = None, *, against: Literal["dose", "delta_ce"] = "dose") -> Any:
        """Matplotlib axes: the effect by dose with its interval, and the middle 90 % of every control.

        ax: to draw on; None makes a figure
        against: "delta_ce" for the effect by its cost on neutral text instead, a point a dose, and `frontier`
        raises: ImportError without matplotlib; ValueError for "delta_ce" without neutral text
        """
        if against not in ("dose", "delta_ce"):
            raise ValueError(f"against expected dose or delta_ce, got {against!r}")
        if against == "delta_ce":
            return self._plot_costs(new_axes(ax))
        ax, doses = new_axes(ax), [row.dose for row in self.rows]
        effects = [row.effect for row in self.rows]
        low, high = ([float(getattr(of, end)) for of in effects] for end in ("low", "high"))
        (line,) = ax.plot(doses, [float(of.estimate) for of in effects], "o-", label="latents")
        ax.fill_between(doses, low, high, color=line.get_color(), alpha=0.2)
        for place, control in enumerate(self.rows[0].controls):
            ends = [spread(row.controls[place].effects) for row in self.rows]
            low, high = [of[0] for of in ends], [of[2] for of in ends]
            ax.fill_between(doses, low, high, color=f"C{place + 1}", alpha=0.2, label=control.name)
        ax.axhline(0, color="black", linewidth=0.5)
        ax.set_xlabel("dose")
        ax.set_ylabel("effect")
        ax.legend()
        return ax

    def _plot_costs(self, ax: Any) -> Any:
        for dose, cost, effect in self._costs():
            ax.annotate(f"{dose:g}", (cost, effect), xytext=(4, 4), textcoords="offset points", fontsize=8)
        ax.plot(*zip(*[row[1:] for row in self._costs()]), "o", label="doses")
        ax.plot(*zip(*[row[1:] for row in self.frontier]), label="frontier")
        ax.axhline(0, color="black", linewidth=0.5)
        ax.set_xlabel("ΔCE on neutral text, nats")
        ax.set_ylabel("effect")
        ax.legend()
        return ax


@takes_folders
@names_misfits
def dose_response(
    model: nn.Module,
    sae: SparseAutoencoder,
    latents: Latents | Selection,
    doses: Sequence[float],
    score: Score,
    *,
    edit: Callable[..., AbstractContextManager] = steer,
    documents: Documents | None = None,
    controls: Sequence[Controls] = (),
    rivals: Mapping[str, Edit] | None = None,
    neutral: NeutralText | None = None,
    alternative: Alternative = "two-sided",
    n_resamples: int = 2000,
    confidence: float = 0.95,
    seed: int = 0,
    **how: Any,
) -> DoseResponse:
    """What an edit of latents does at several doses, beside controls that change the same tokens as much.

    score(model) runs (1 + n_doses · (1 + draws of all controls + rivals)) times.

    latents: of the SAE; a Selection (`select_latents`) demands documents that did not choose it
    doses: what `edit` takes after the latents: strengths of `steer`, values of `clamp`, factors of `scale`
    score: runs the model, by `generate` or forwards, and returns float[n_items] in the same order each time
    edit: steer, clamp, scale, or a function that takes (model, sae, latents, dose, **how)
    documents: one an item; intervals draw documents, not items. None takes the items as independent
    controls: `matched_latents`, `random_directions`, drawn for these very latents, each of another name; a
        single draw, `direction_control`, is shown among the rivals
    rivals: other edits by name, each made from the dose alone: the same latent of an SAE with a frozen
        decoder, DiffMean with `steer_direction`, …; shown as the difference from the latents' effect
    neutral: texts for side effects; the edit is then applied to all their tokens, whatever `where` says
    alternative: of the ranks; "two-sided" compares distances from the median
    how: for `edit`: unit, max_act, where, hook_point, when, …; of several hook points, the push is that at
        the first
    raises: ValueError for arguments that do not fit each other, or scores that are not finite or change in
        number
    """
    chosen = latents.latents if isinstance(latents, Selection) else latents
    if isinstance(latents, Selection):
        if documents is None:
            raise ValueError(
                "latents chosen on a split expected documents=, one an item, to check that none of them chose"
            )
        latents.check_unseen(documents)
    if alternative not in ALTERNATIVES:
        raise ValueError(f"alternative expected one of {ALTERNATIVES}, got {alternative!r}")
    if not len(doses):
        raise ValueError("dose_response expected at least one dose, got none")
    n_latents = torch.as_tensor(chosen).numel()
    for control in controls:
        if control.directions.shape[1:] != (n_latents, sae.d_model):
            raise ValueError(
                f"{control.name} expected directions for {n_latents} latents of width {sae.d_model}, got "
                f"{list(control.directions.shape[1:])}: controls are drawn for the latents they control"
            )
    own_edit: Edit = partial(edit, model, sae, chosen, **how)
    drawn = [control for control in controls if len(control) > 1]
    single = {c.name: partial(own_edit, directions=c.directions[0]) for c in controls if len(c) == 1}
    rivals = single | dict(rivals or {})
    along = [partial(own_edit, directions=draw) for control in drawn for draw in control.directions]
    edits: list[Edit] = [own_edit, *along, *rivals.values()]

    clean = _scored(score, model, nullcontext(), None)
    scores = torch.stack(
        [torch.stack([_scored(score, model, make(dose), len(clean)) for make in edits]) for dose in doses]
    )
    effects = scores - clean  # float64[n_doses n_edits n_items]
    clusters = None if documents is None else document_ids(documents)
    bootstrap = {"n_resamples": n_resamples, "confidence": confidence, "seed": seed}
    interval = partial(cluster_bootstrap, clusters=clusters, **bootstrap)

    means = effects.mean(-1)
    own_means, of_draws = means[:, 0], means[:, 1 : 1 + len(along)].split([len(c) for c in drawn], dim=1)
    of_control = dict(zip([c.name for c in drawn], of_draws))
    any_dose = {name: westfall_young_p(own_means, those.T, alternative) for name, those in of_control.items()}
    point = hook_point_names(how.get("hook_point"), sae)[0]
    everywhere = {name: value for name, value in how.items() if name not in ("where", "prompt_tokens")}
    on_neutral = partial(edit, model, sae, chosen, **everywhere)

    rows = []
    for i, dose in enumerate(doses):
        own = effects[i, 0]
        compared = []
        for name, those in of_control.items():
            p = rank_p(own_means[i], those[i], alternative).item()
            compared.append(ControlEffects(name, those[i], p, any_dose[name][i].item()))
        rivalling = [
            RivalEffect(name, interval(theirs), interval(own - theirs))
            for name, theirs in zip(rivals, effects[i, 1 + len(along) :])
        ]
        side = None
        if neutral is not None:
            side = side_effects(model, partial(on_neutral, dose), neutral, hook_point=point, **bootstrap)
        score_there = interval(scores[i, 0])
        rows.append(DoseRow(dose, score_there, interval(own), side, tuple(compared), tuple(rivalling)))
    kept = tuple(torch.as_tensor(chosen).reshape(-1).tolist())
    return DoseResponse(kept, interval(clean), tuple(rows), isinstance(latents, Selection))


def _scored(score: Score, model: nn.Module, context: AbstractContextManager, n_items: int | None) -> Tensor:
    """float64[n_items] on the CPU."""
    with context, torch.no_grad():
        values = torch.as_tensor(score(model)).detach().cpu().double()
    if values.ndim != 1 or (n_items is not None and len(values) != n_items):
        raise ValueError(
            f"score expected to give float[n_items{'' if n_items is None else f'={n_items}'}], got "
            f"{list(values.shape)}"
        )
    if not values.isfinite().all():
        raise ValueError(f"score expected finite numbers, got {values[~values.isfinite()][0].item()}")
    return values


def _span(of: Interval) -> str:
    return span(of.low, of.high, "+.3g")
