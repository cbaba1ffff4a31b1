"""Fully connected layers around a code; the decoder mirrors the encoder."""

from __future__ import annotations

from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .autoencoder import Autoencoder
from .fields import ONE_LAYER, Relative

ACTIVATIONS = {"relu": torch.relu, "sigmoid": torch.sigmoid, "linear": lambda x: x}


class Transposed(nn.Module):
    """A layer whose weights are another's, transposed, with a bias of its own."""

    def __init__(self, of: nn.Linear) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(of.in_features))
        self._of = (of,)  # in a tuple, so that its weights have one name

    @property
    def weight(self) -> Tensor:
        """float[out in], as of nn.Linear."""
        return self._of[0].weight.T

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight, self.bias)


class Network(Autoencoder):
    """h_l = f(W_l h_{l−1} + b_l), with h_0 the row and the last layer its reconstruction.

    Encoder and decoder have `Relative.widths`. f is the activation, of the last layer the output; the middle
    layer is linear, unless it is the only hidden one of a kind that may have one alone.
    """

    def __init__(self, config: Relative, d_model: int, shape: tuple[int, ...] | None = None) -> None:
        super().__init__(config, d_model, shape)
        widths = config.widths(d_model)
        pairs = list(pairwise(widths))
        self.encoder = nn.ModuleList(nn.Linear(a, b) for a, b in pairs)
        mirrored = [
            Transposed(layer) if config.tied else nn.Linear(layer.out_features, layer.in_features)
            for layer in self.encoder
        ]
        self.decoder = nn.ModuleList(reversed(mirrored))
        self.names = [*[config.activation] * (2 * len(pairs) - 1), config.output_activation]
        if len(pairs) > 1 or config.kind not in ONE_LAYER.kinds:
            self.names[len(pairs) - 1] = "linear"
        self.n_before_code = config.code_layer or len(pairs)
        """Layers up to the code."""

    @property
    def code_size(self) -> int:
        return [*self.encoder, *self.decoder][self.n_before_code - 1].weight.shape[0]

    def code(self, x: Tensor) -> Tensor:
        return self._through(x, 0, self.n_before_code)

    def reconstruct(self, codes: Tensor) -> Tensor:
        return self._through(codes, self.n_before_code, len(self.names))

    def _through(self, x: Tensor, first: int, end: int) -> Tensor:
        layers = [*self.encoder, *self.decoder]
        for layer, name in zip(layers[first:end], self.names[first:end], strict=True):
            x = ACTIVATIONS[name](layer(x))
        return x
