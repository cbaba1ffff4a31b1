"""An encoder that subtracts b_dec, and the same one that does not: a matter of biases alone, exactly.

    (acts - b_dec) @ W_enc + b_enc = acts @ W_enc + (b_enc - b_dec @ W_enc)

and of a gated encoder's two, with the gain of the magnitudes: b_mag - exp(r_mag) · (b_dec @ W_enc).
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from saelens_lite.sae.config import SAEConfig


def subtracting(config: SAEConfig, tensors: Mapping[str, Tensor], wanted: bool) -> dict[str, Tensor]:
    """The parameters of the same SAE, whose encoder subtracts b_dec or does not, as wanted."""
    moved = dict(tensors)
    if config.apply_b_dec_to_input == wanted:
        return moved
    shift = (tensors["b_dec"].double() @ tensors["W_enc"].double()) * (1 if wanted else -1)
    gains = {"b_enc": 1.0, "b_gate": 1.0}
    if "r_mag" in tensors:
        gains["b_mag"] = tensors["r_mag"].double().exp()
    for name, gain in gains.items():
        if name in tensors:
            moved[name] = (tensors[name].double() + gain * shift).to(tensors[name].dtype)
    return moved
