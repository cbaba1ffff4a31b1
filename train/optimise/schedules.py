"""What changes over the steps of a run: the learning rate, the weight of a penalty, and what is trained."""

from __future__ import annotations

from dataclasses import dataclass
from math import sqrt

from ..config import TrainConfig
from ..kinds.kind import Kind

_LEAST_RAMP_STEPS = 1000
"""In fewer steps a sparsity penalty drives latents out before they have found a direction: 5 % of 1,200 steps
left half of them dead, 20 % few."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Schedule:
    """A run of two phases: it learns, and then, if refit_steps, fits again what a penalty shrank.

    learning_steps, refit_steps: of the phases; each has a learning rate that ends at 0
    lr: the peak, of both; warm_up_steps, decay_steps: of learning, in which lr rises and falls
    ramp_steps: the first ones, over which the penalty rises
    """

    learning_steps: int
    refit_steps: int
    lr: float
    warm_up_steps: int
    decay_steps: int
    ramp_steps: int

    @classmethod
    def of(cls, config: TrainConfig, kind: Kind, n_steps: int) -> Schedule:
        fresh = config.init_from is None
        fraction = kind.refit_fraction if config.refit_fraction is None else config.refit_fraction
        refit_steps = round(fraction * n_steps)
        steps = n_steps - refit_steps
        ramp_steps = max(kind.ramp_fraction * steps, min(_LEAST_RAMP_STEPS, steps / 5))
        return cls(
            learning_steps=steps,
            refit_steps=refit_steps,
            lr=config.lr or default_lr(kind.d_sae, steps, fresh, kind.lr_factor, kind.largest_lr),
            warm_up_steps=_or(config.warm_up_steps, min(1000, round(0.05 * steps))),
            decay_steps=round(config.decay_fraction * steps),
            ramp_steps=_or(config.l1_warm_up_steps, round(ramp_steps) if fresh else 0),
        )

    def rate_at(self, step: int) -> float:
        """Share of the peak that the learning rate has at a step counted from 0."""
        if step < self.learning_steps:
            return lr_factor(step, self.learning_steps, self.warm_up_steps, self.decay_steps)
        return lr_factor(step - self.learning_steps, self.refit_steps, 0, self.refit_steps)

    def ramp_at(self, step: int) -> float:
        """Share of the penalty's weight in (0, 1]."""
        return min(1.0, (step + 1) / max(1, self.ramp_steps))


def default_lr(
    d_sae: int, n_steps: int, fresh: bool = True, factor: float = 1.0, largest: float = 1e-2
) -> float:
    """Peak learning rate of Adam for a dictionary of d_sae latents trained for n_steps.

    factor, largest: of a fresh one, what its kind learns best with, see `Kind`

    2e-4 · sqrt(2^14 / d_sae) is the law of the long runs (Gao et al. 2024; constants of dictionary_learning's
    TopK, about 250k steps). A short run under it ends far from converged, so the peak grows as the run
    shrinks, up to `largest`. Fine-tuning (fresh=False) starts from a trained SAE, which that would undo:
    there the law holds for any length.
    """
    long_run = 2e-4 * sqrt(2**14 / d_sae)
    if not fresh:
        return long_run
    return min(largest, factor * long_run * max(1.0, (250_000 / n_steps) ** 0.6))


def lr_factor(step: int, n_steps: int, warm_up_steps: int, decay_steps: int) -> float:
    """Share of the peak at a step counted from 0: linear warm-up, flat, linear to 0 over the last steps."""
    warm_up = min(1.0, (step + 1) / max(1, warm_up_steps))
    decay = min(1.0, (n_steps - step) / max(1, decay_steps))
    return min(warm_up, decay)


def _or(given: int | None, default: int) -> int:
    return default if given is None else given
