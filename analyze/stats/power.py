"""How many items an effect needs, to be told from none."""

from __future__ import annotations

import math
from statistics import NormalDist

from saelens_lite.misfits import names_misfits


@names_misfits
def entities_needed(effect: float, sd: float, *, power: float = 0.8, confidence: float = 0.95) -> int:
    """Entities that a mean change of this size needs, to be told from none with the given chance.

    effect: mean change, above 0; sd: of the change from entity to entity, in the same unit
    returns: ⌈((z₁₋α/₂ + z_power) · sd / effect)²⌉, at least 2, in the normal approximation
    """
    if not effect > 0 or not sd >= 0 or not 0 < power < 1 or not 0 < confidence < 1:
        raise ValueError(
            "entities_needed expected an effect above 0, sd of at least 0, and power and confidence "
            "between 0 "
            f"and 1, got {effect}, {sd}, {power} and {confidence}"
        )
    normal = NormalDist()
    z = normal.inv_cdf(1 - (1 - confidence) / 2) + normal.inv_cdf(power)
    return max(2, math.ceil((z * sd / effect) ** 2))
