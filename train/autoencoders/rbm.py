"""A restricted Boltzmann machine, made of the weights of two mirrored layers."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True)
class RBM:
    """Visible units v and hidden units h with the energy

        E(v, h) = visible(v) − h · (W v + c) + hidden(h)
        Bernoulli  visible(v) = −b · v           hidden(h) = 0,       h in {0, 1}
        Gaussian   visible(v) = ½ ‖v − b‖²       hidden(h) = ½ ‖h‖²,  h real

    weight: float[hidden visible]; hidden_bias: float[hidden], c; visible_bias: float[visible], b
    gaussian_visible, gaussian_hidden: the units that are Gaussian, of variance 1; the others are Bernoulli
    source: Hinton 2002, "Training Products of Experts by Minimizing Contrastive Divergence"; Gaussian units
        Welling, Rosen-Zvi & Hinton 2005
    """

    weight: Tensor
    hidden_bias: Tensor
    visible_bias: Tensor
    gaussian_visible: bool = False
    gaussian_hidden: bool = False

    def hidden(self, v: Tensor) -> Tensor:
        """E[h | v]: float[n visible] to float[n hidden]."""
        inputs = F.linear(v, self.weight, self.hidden_bias)
        return inputs if self.gaussian_hidden else inputs.sigmoid()

    def visible(self, h: Tensor) -> Tensor:
        """E[v | h]: float[n hidden] to float[n visible]."""
        inputs = F.linear(h, self.weight.T, self.visible_bias)
        return inputs if self.gaussian_visible else inputs.sigmoid()

    def free_energy(self, v: Tensor) -> Tensor:
        """−log Σ_h exp(−E(v, h)) of rows float[n visible], constants left out: float[n]."""
        inputs = F.linear(v, self.weight, self.hidden_bias)
        of_hidden = inputs.square() / 2 if self.gaussian_hidden else F.softplus(inputs)
        if self.gaussian_visible:
            of_visible = (v - self.visible_bias).square().sum(1) / 2
        else:
            of_visible = -(v @ self.visible_bias)
        return of_visible - of_hidden.sum(1)

    def statistics(self, v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """−∂E/∂(W, c, b) of rows with h at its mean, averaged over them: the negative of the free energy's
        gradient."""
        h = self.hidden(v)
        return h.T @ v / len(v), h.mean(0), (v - self.visible_bias if self.gaussian_visible else v).mean(0)

    def divergence(
        self, v: Tensor, draws: torch.Generator | None, mean: bool = False
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        """CD-1: the reconstruction v′ of rows after one step of Gibbs sampling, and gradients of (W, c, b).

        Sampled are h given v and v′ given h; the gradient is the statistics of v′ less those of v, which
        stands for that of −log p(v).
        mean: take E[v′ | h] in place of a sample, for rows that are means themselves, such as grey values.
            source: Hinton 2012, "A Practical Guide to Training Restricted Boltzmann Machines", section 3.2
        """
        h = _drawn(self.hidden(v), self.gaussian_hidden, draws)
        again = self.visible(h)
        again = again if mean else _drawn(again, self.gaussian_visible, draws)
        pairs = zip(self.statistics(again), self.statistics(v), strict=True)
        return again, tuple(after - before for after, before in pairs)


def _drawn(mean: Tensor, gaussian: bool, draws: torch.Generator | None) -> Tensor:
    if gaussian:
        return mean + torch.empty_like(mean).normal_(generator=draws)
    return torch.bernoulli(mean, generator=draws)
