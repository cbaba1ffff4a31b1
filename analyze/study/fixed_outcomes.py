"""Two outcomes that are fixed before a run, one to induce hallucination and one to lose it.

primary       clamps of the known latents, mean over the doses: how much more the trained SAE's raise answers
              about unknown entities than those of the SAE with a frozen decoder do, at equal push. Not
              corrected for other tests, as it was named before
mitigation    clamps of the unknown latents, at the dose of MITIGATION_DOSES that loses most answers about
unknown
              entities on the selecting side while accuracy on known ones loses at most MOST_LOST there: how
              much is lost on the testing side, and how much more than with the frozen decoder's
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..stats.bootstrap import Interval, cluster_bootstrap, rank_p
from ..stats.power import entities_needed
from .half import Outcome

MITIGATION_DOSES = (0.0625, 0.125, 0.25, 0.5, 1.0, 2.0)
MOST_LOST = 0.05
_EFFECTS = (0.05, 0.1, 0.2)


@dataclass(frozen=True, slots=True, eq=False)
class FixedOutcome:
    """An outcome with what it costs.

    less_baseline: float, by question: of the trained SAE less the frozen one's, or less no edit without one
    trained: the trained SAE's own change from no edit; p: its rank among matched sets
    accuracy: change of right answers about known entities under the trained SAE's edit
    margin: change of the logit margin, in the outcome's direction, if there are margins
    doses: of the trained SAE's edit; against: "baseline" or "no edit"
    needed: entities that an effect of this size needs, from how far this one varies between entities
    """

    name: str
    less_baseline: Interval
    trained: float
    p: float
    accuracy: float
    margin: float | None
    doses: tuple[float, ...]
    against: str
    needed: Mapping[float, int]

    def to_dict(self) -> dict[str, Any]:
        names = ("name", "trained", "p", "accuracy", "margin", "against")
        found = {name: getattr(self, name) for name in names}
        needed = {str(effect): n for effect, n in self.needed.items()}
        return found | {
            "less_baseline": self.less_baseline.to_dict(),
            "doses": list(self.doses),
            "entities_needed": needed,
        }

    def __str__(self) -> str:
        of = self.less_baseline
        doses = ", ".join(f"{dose:g}" for dose in self.doses)
        what = "raised" if self.name == "primary" else "lost"
        rival = "an SAE with a frozen decoder" if self.against == "baseline" else "no edit"
        needed = ", ".join(f"{n:,} for {effect:.0%}" for effect, n in self.needed.items())
        return (
            f"{self.name}: hallucination {what} by {self.trained:+.1%} at dose {doses}; against {rival} "
            f"{of.estimate.item():+.1%} ({of.low.item():+.1%} to {of.high.item():+.1%}), rank p "
            f"{self.p:.3f} among "
            f"matched sets, accuracy on known {self.accuracy:+.1%}. Unknown entities that such an effect "
            "needs: "
            f"{needed}."
        )


def fixed_outcome(
    name: str,
    clean: Outcome,
    trained: Sequence[Outcome],
    baseline: Sequence[Outcome],
    controls: Sequence[Sequence[Outcome]],
    known: Tensor,
    clusters: Tensor,
    doses: Sequence[float],
    bootstrap: Mapping[str, Any],
) -> FixedOutcome:
    """From the outcomes at each dose; controls: of each dose, the matched sets in one order.

    known: bool[n]; clusters: int64[n]; raised for "primary", lost for any other name
    """
    sign = 1.0 if name == "primary" else -1.0

    def mean(of: Sequence[Outcome], measure: str) -> Tensor:
        """float64[n questions]: over the doses."""
        return torch.stack([one.measures(known)[measure] for one in of]).mean(0)

    own, before = mean(trained, "hallucination"), mean([clean], "hallucination")
    rival = mean(baseline, "hallucination") if baseline else before
    less = sign * (own - rival)
    drawn = torch.stack([sign * mean(sets, "hallucination").mean() for sets in zip(*controls)])
    margin = None
    if all(one.margin is not None for one in (clean, *trained)):
        margin = sign * (mean(trained, "answer_margin") - mean([clean], "answer_margin")).mean().item()
    interval = cluster_bootstrap(less, clusters[~known], **bootstrap)
    sums = torch.zeros(interval.n_clusters, dtype=torch.float64)
    _, of_entity = clusters[~known].unique(return_inverse=True)
    sums.index_add_(0, of_entity, less)
    sd = float((sums / torch.bincount(of_entity)).std())
    return FixedOutcome(
        name,
        interval,
        sign * (own - before).mean().item(),
        rank_p(sign * own.mean(), drawn).item(),
        (mean(trained, "accuracy") - mean([clean], "accuracy")).mean().item(),
        margin,
        tuple(doses),
        "baseline" if baseline else "no edit",
        {effect: entities_needed(effect, sd) for effect in _EFFECTS},
    )


def mitigating_dose(clean: Outcome, at: Mapping[float, Outcome], known: Tensor) -> float:
    """The dose that loses most hallucination while accuracy on known loses at most MOST_LOST; of equal ones
    the smallest. Where every dose loses more, the smallest."""

    def rate(of: Outcome, measure: str) -> float:
        return of.measures(known)[measure].mean().item()

    cheap = [
        dose for dose, of in at.items() if rate(clean, "accuracy") - rate(of, "accuracy") <= MOST_LOST + 1e-12
    ]
    if not cheap:
        return min(at)
    return min(cheap, key=lambda dose: (rate(at[dose], "hallucination"), dose))
