"""What changes over the steps of a run: the learning rate, from its peak."""

from __future__ import annotations

from math import sqrt


def default_lr(d_sae: int, n_steps: int, fresh: bool = True) -> float:
    """Peak learning rate of Adam for a dictionary of d_sae latents trained for n_steps.

    2e-4 · sqrt(2^14 / d_sae) is the law of the long runs (Gao et al. 2024; constants of dictionary_learning's
    TopK, about 250k steps). A short run under it ends far from converged, so the peak grows as the run
    shrinks, up to 1e-2. Fine-tuning (fresh=False) starts from a trained SAE, which that would undo: there the
    law holds for any length.
    """
    long_run = 2e-4 * sqrt(2**14 / d_sae)
    if not fresh:
        return long_run
    return min(1e-2, long_run * max(1.0, (250_000 / n_steps) ** 0.6))


def lr_factor(step: int, n_steps: int, warm_up_steps: int, decay_steps: int) -> float:
    """Share of the peak at a step counted from 0: linear warm-up, flat, linear to 0 over the last steps."""
    warm_up = min(1.0, (step + 1) / max(1, warm_up_steps))
    decay = min(1.0, (n_steps - step) / max(1, decay_steps))
    return min(warm_up, decay)
