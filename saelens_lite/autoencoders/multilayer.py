"""Several hidden layers, of which any can be the code."""

from __future__ import annotations

from .network import Network


class Multilayer(Network):
    """A dense network whose decoder mirrors its encoder.

        loss = error(x, y) + weight_decay · Σ_l ‖W_l‖²

    With `code_layer` another layer than the middle one is what `encode` gives; the reconstruction stays.
    source: Hinton & Salakhutdinov 2006, "Reducing the Dimensionality of Data with Neural Networks"
    """


KIND = Multilayer
