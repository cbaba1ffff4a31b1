"""The number that rows are multiplied by, so that coefficients compare between models."""

from __future__ import annotations

from torch import Tensor

_LEAST = 1e-43
"""Of the mean square of a coordinate: float32 rounds smaller ones to a few steps or zero."""
_ROUNDING = 1e-7
"""Share of a mean squared norm that is left where nothing is, of norms in float32."""


def input_scale(mean_sq_norm: float, mean: Tensor) -> float:
    """The factor that brings the mean squared distance of rows from their mean to d_model.

    mean_sq_norm: of the rows, about 0; mean: float64[d_model]
    source: Anthropic, April 2024, where it is about 0. A mean that all rows share is left to b_dec: it says
        nothing of how far they are apart.
    raises: ValueError for rows that are all alike
    """
    distance = mean_sq_norm - float(mean.square().sum())
    if not distance > max(len(mean) * _LEAST, _ROUNDING * mean_sq_norm):
        raise ValueError(
            "input scale expected activations that differ, and by more than 1e-21, whose square float32 "
            f"takes for zero; got a mean squared distance of {distance:.3g} from their mean, of mean squared "
            f"norm of {mean_sq_norm:.3g}: multiply the rows before they are stored, or train with "
            "scale_input=False"
        )
    return (len(mean) / distance) ** 0.5
