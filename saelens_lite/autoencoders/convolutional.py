"""Images [c, h, w] and series [c, length], of which rows hold the numbers in C order."""

from __future__ import annotations

import math
from itertools import pairwise

from torch import Tensor, nn

from .autoencoder import Autoencoder
from .fields import Relative
from .network import ACTIVATIONS


class Convolutional(Autoencoder):
    """Convolutions that halve the picture, a linear code, and transposed convolutions that mirror them.

        h_l = f(W_l ∗ h_{l−1} + b_l), stride 2;  codes = V h_L + c;  the decoder goes the same way back
        loss = error(x, y) + weight_decay · Σ ‖W‖²

    source: Masci et al. 2011, "Stacked Convolutional Auto-Encoders", with strides in place of pooling
    raises: ValueError without a shape, or with one of other dimensions
    """

    def __init__(self, config: Relative, d_model: int, shape: tuple[int, ...] | None = None) -> None:
        if shape is None or len(shape) not in (2, 3) or math.prod(shape) != d_model:
            raise ValueError(
                f"convolutional expected rows of a shape (c, h, w) or (c, length), of {d_model} numbers, got "
                f"{shape}: make the store with ActivationStore.from_arrays(path, arrays[n, c, h, w])"
            )
        super().__init__(config, d_model, shape)
        forth, back = (nn.Conv2d, nn.ConvTranspose2d) if len(shape) == 3 else (nn.Conv1d, nn.ConvTranspose1d)
        kernel = config.kernel_size
        sizes = [tuple(shape[1:])]
        for _ in config.channels:
            sizes.append(tuple(-(-side // 2) for side in sizes[-1]))
        widths = [shape[0], *config.channels]
        pairs = list(pairwise(widths))
        options = {"stride": 2, "padding": kernel // 2}
        self.encoder = nn.ModuleList(forth(a, b, kernel, **options) for a, b in pairs)
        self.decoder = nn.ModuleList(
            back(b, a, kernel, output_padding=tuple((s + 1) % 2 for s in size), **options)
            for (a, b), size in reversed(list(zip(pairs, sizes, strict=False)))
        )
        self._inner = (widths[-1], *sizes[-1])
        self.to_code = nn.Linear(math.prod(self._inner), config.code_size)
        self.from_code = nn.Linear(config.code_size, math.prod(self._inner))

    def code(self, x: Tensor) -> Tensor:
        assert self.shape is not None
        h = x.reshape(x.shape[:-1].numel(), *self.shape)
        for layer in self.encoder:
            h = self._activation(layer(h))
        return self.to_code(h.flatten(1)).view(*x.shape[:-1], self.code_size)

    def reconstruct(self, codes: Tensor) -> Tensor:
        n = codes.shape[:-1].numel()
        h = self._activation(self.from_code(codes.reshape(n, self.code_size))).view(n, *self._inner)
        for layer in self.decoder[:-1]:
            h = self._activation(layer(h))
        y = ACTIVATIONS[self.config.output_activation](self.decoder[-1](h))
        return y.reshape(*codes.shape[:-1], self.d_model)

    def _activation(self, h: Tensor) -> Tensor:
        return ACTIVATIONS[self.config.activation](h)


KIND = Convolutional
