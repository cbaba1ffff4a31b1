"""The norm between the last block and the unembedding, as a linear map of one token's stream.

    norm(x) = weight ∘ center(x) / scale(x) + bias    center(x) = x − mean(x) in a LayerNorm, x in an RMSNorm

With the scale frozen at the token's own, the norm is linear, so the shares of parts of the stream add up.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from saelens_lite.errors import HookError
from saelens_lite.lm.decoder import Decoder


def final_norm(decoder: Decoder, d_model: int) -> nn.Module:
    """The norm behind the last block: the last module beside the blocks that has a weight[d_model].

    raises: HookError where there is none
    """
    beside = decoder.bare.get_submodule(decoder.path.rpartition(".")[0]).children()
    norms = [norm for norm in beside if getattr(getattr(norm, "weight", None), "shape", None) == (d_model,)]
    if not norms:
        raise HookError(
            f"expected a final norm beside {decoder.path}, found none with a weight [{d_model}]; use "
            "final_norm=False"
        )
    return norms[-1]


@dataclass(frozen=True, slots=True, eq=False)
class NormParts:
    """A norm taken apart: float64[d_model]; the weight up to a factor near 1, which belongs to the scale.

    centers: whether the mean of the row is removed first
    """

    weight: Tensor
    bias: Tensor
    centers: bool

    def center(self, rows: Tensor) -> Tensor:
        return rows - rows.mean(-1, keepdim=True) if self.centers else rows

    def scale(self, stream: Tensor, normed: Tensor) -> Tensor:
        """The number that the norm divided each row by: float64[n 1], from float[n d_model] before and after.

        raises: HookError where no number makes weight ∘ center(stream) / scale + bias of the one the other
        """
        linear = self.weight * self.center(stream.double())
        output = normed.double() - self.bias
        scale = linear.square().sum(-1, keepdim=True) / (linear * output).sum(-1, keepdim=True)
        off = ((linear / scale - output).abs().amax(-1) / output.abs().amax(-1)).amax()
        if not off <= min(0.1, 256 * torch.finfo(normed.dtype).eps):
            raise HookError(
                "expected the output embedding to read weight · stream / scale + bias, as after a LayerNorm "
                f"or an RMSNorm, got something that differs from it by {float(off):.1e} of its size: the "
                "logits have no direct parts"
            )
        return scale


def norm_parts(norm: nn.Module, like: Tensor) -> NormParts:
    """Weight, bias and centring, on the CPU, read off the effect on ±1: some norms multiply by 1 + weight.

    like: float[... d_model] of the stream, for its width, dtype and device
    """
    with torch.no_grad():
        signs = torch.ones_like(like.reshape(-1, like.shape[-1])[:1])
        signs[:, 1::2] = -1
        bias = norm(torch.zeros_like(signs)).double().cpu()
        of_signs, of_shifted = norm(signs).double().cpu() - bias, norm(signs + 1).double().cpu() - bias
    # a row of 0 and 2 is the row of ±1 again once its mean is gone
    centers = bool((of_shifted - of_signs).abs().max() <= 0.01 * of_signs.abs().max())
    signs = signs.double().cpu()
    weight = of_signs / (signs - signs.mean() if centers else signs)
    return NormParts(weight[0], bias[0], centers)
