"""A stack of restricted Boltzmann machines, unrolled."""

from __future__ import annotations

from .network import Network


class DeepBelief(Network):
    """A network of sigmoid layers and a linear code, which training pretrains layer by layer.

    Layer l of the encoder and its mirror in the decoder begin as one machine (train/autoencoders/rbm.py):
    W and the hidden bias there, Wᵀ and the visible bias here. Then all are fine-tuned:

        loss = error(x, y) + weight_decay · Σ_l ‖W_l‖²

    With the output sigmoid the rows are in [0, 1], and visible units Bernoulli; else rows are standardised,
    and visible units Gaussian. source: Hinton & Salakhutdinov 2006
    """


KIND = DeepBelief
