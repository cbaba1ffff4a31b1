"""The number that rows are multiplied by, so that coefficients compare between models."""

from __future__ import annotations


def input_scale(mean_sq_norm: float, d_model: int) -> float:
    """The factor that brings rows of this mean squared norm to d_model; source: Anthropic, April 2024."""
    if not mean_sq_norm > 0:
        raise ValueError(
            f"input scale expected activations that are not all zero, got mean squared norm {mean_sq_norm}"
        )
    return (d_model / mean_sq_norm) ** 0.5
