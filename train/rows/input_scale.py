"""The number that rows are multiplied by, so that coefficients compare between models."""

from __future__ import annotations

_LEAST = 1e-43
"""Of the mean square of a coordinate: float32 rounds smaller ones to a few steps or zero."""


def input_scale(mean_sq_norm: float, d_model: int) -> float:
    """The factor that brings rows of this mean squared norm to d_model; source: Anthropic, April 2024."""
    if not mean_sq_norm > d_model * _LEAST:
        raise ValueError(
            "input scale expected activations that are not all zero, nor below 1e-21, whose squares float32 "
            f"takes for zero; got mean squared norm {mean_sq_norm}: multiply the rows before they are stored"
        )
    return (d_model / mean_sq_norm) ** 0.5
