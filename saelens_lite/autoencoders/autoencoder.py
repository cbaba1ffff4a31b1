"""What the relatives of the SAE share: rows in the units of the store, a code, a reconstruction, a loss."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .fields import Relative
from .folder import OnDisk
from .penalties import decay


class Reconstruction(NamedTuple):
    """recons: float[... d_model], in the units of the store; codes: float[... code_size]"""

    recons: Tensor
    codes: Tensor


class Loss(NamedTuple):
    """Means over rows, in the scale of training. total: error + penalty, what training lowers

    error: of the reconstruction, summed over coordinates; penalty: all that the kind adds, with its weight
    """

    total: Tensor
    error: Tensor
    penalty: Tensor


class Autoencoder(nn.Module, OnDisk):
    """Rows to codes and back, of one kind; its subclasses stand in files of the kinds' names.

        x = (acts − shift) · scale
        codes = code(x);  recons = reconstruct(codes) / scale + shift

    Subclasses give `code` and `reconstruct`, and `penalty` and `spoilt` where their loss has them.
    config: a Relative; d_model: the width of a row
    shape: (c, h, w) or (c, length) of rows that are images or series, which rows hold in C order
    shift, scale: float[d_model], buffers; 0 and 1 where rows are taken as they are
    metadata: facts of the training, as JSON; {} without one
    raises: ValueError for a code that is too large, or a kind that needs a shape
    """

    shift: Tensor
    scale: Tensor

    def __init__(self, config: Relative, d_model: int, shape: tuple[int, ...] | None = None) -> None:
        super().__init__()
        self.config, self.d_model, self.shape = config, d_model, shape
        self.metadata: dict[str, Any] = {}
        self.register_buffer("shift", torch.zeros(d_model))
        self.register_buffer("scale", torch.ones(d_model))

    @property
    def kind(self) -> str:
        return self.config.kind

    @property
    def code_size(self) -> int:
        """Width of the code."""
        return self.config.code_size

    @property
    def device(self) -> torch.device:
        return self.shift.device

    @property
    def dtype(self) -> torch.dtype:
        return self.shift.dtype

    @property
    def hook_point(self) -> str:
        """Of the rows that it was trained on; "" where that is not known."""
        return str(self.metadata.get("hook_point", ""))

    def encode(self, acts: Tensor) -> Tensor:
        """float[... d_model] to codes float[... code_size]. raises: ValueError for another width"""
        return self.code(self.inputs(acts))

    def decode(self, codes: Tensor) -> Tensor:
        """Codes float[... code_size] to float[... d_model]. raises: ValueError for another width"""
        self._check(codes, "decode", "codes", "code_size", self.code_size)
        return self.outputs(self.reconstruct(codes))

    def forward(self, acts: Tensor) -> Reconstruction:
        """encode and decode."""
        codes = self.encode(acts)
        return Reconstruction(self.decode(codes), codes)

    def loss(self, acts: Tensor, generator: torch.Generator | None = None) -> Loss:
        """Of rows float[n d_model]; generator: of what the kind draws, on the device of the rows."""
        x = self.inputs(acts)
        codes = self.code(self.spoilt(x, generator))
        error = self.error(x, self.reconstruct(codes)).mean()
        weights = [p for p in self.parameters() if p.dim() > 1]
        penalty = self.penalty(x, codes, generator) + self.config.weight_decay * decay(weights, error)
        return Loss(error + penalty, error, penalty)

    def error(self, x: Tensor, y: Tensor) -> Tensor:
        """Of each row, in the scale of training: float[n d_model] twice to float[n].

        With the output sigmoid and cross_entropy, y are probabilities: −Σ x log y + (1 − x) log(1 − y).
        """
        if self.config.error == "cross_entropy":
            return F.binary_cross_entropy(y, x, reduction="none").sum(-1)
        return (x - y).square().sum(-1)

    def inputs(self, acts: Tensor) -> Tensor:
        """Rows in the scale of training. raises: ValueError for another width"""
        self._check(acts, "encode", "acts", "d_model", self.d_model)
        return (acts.to(self.shift) - self.shift) * self.scale

    def outputs(self, y: Tensor) -> Tensor:
        """Reconstructions in the units of the store."""
        return y / self.scale + self.shift

    def code(self, x: Tensor) -> Tensor:
        """Codes of rows in the scale of training."""
        raise NotImplementedError

    def reconstruct(self, codes: Tensor) -> Tensor:
        """Rows in the scale of training."""
        raise NotImplementedError

    def spoilt(self, x: Tensor, generator: torch.Generator | None) -> Tensor:
        """What the encoder sees in the loss."""
        return x

    def penalty(self, x: Tensor, codes: Tensor, generator: torch.Generator | None) -> Tensor:
        """What the kind adds to the error, with its weight; the mean over rows."""
        return x.new_zeros(())

    def reset(self, generator: torch.Generator) -> None:
        """Weights as they start: uniform in ±sqrt(6 / (fan in + fan out)), biases 0.

        source: Glorot & Bengio 2010
        """
        for parameter in self.parameters():
            if parameter.dim() > 1:
                nn.init.xavier_uniform_(parameter, generator=generator)
            else:
                nn.init.zeros_(parameter)

    def denoise(self, acts: Tensor) -> Tensor:
        """Rows as they are reconstructed: what the code does not hold is left out."""
        return self(acts).recons

    def _check(self, rows: Tensor, call: str, name: str, width: str, size: int) -> None:
        if not rows.is_floating_point() or rows.dim() < 1 or rows.shape[-1] != size:
            raise ValueError(
                f"{call} expected float {name}[..., {width}={size}], got {rows.dtype} {list(rows.shape)}: "
                f"this {self.kind} autoencoder was trained on rows of {self.hook_point or 'another place'}"
            )
