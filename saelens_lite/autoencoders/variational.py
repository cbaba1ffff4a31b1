"""Codes with a prior: rows can be drawn, and told by how likely they are."""

from __future__ import annotations

import math
from operator import index

import torch
from torch import Tensor, nn

from .autoencoder import Loss
from .fields import Relative
from .network import Network
from .penalties import decay, normal_divergence


class Variational(Network):
    """The code is a draw from q(z|x) = N(mean(x), exp log_var(x)); `encode` gives the mean.

        z = mean + exp(½ log_var) ε,  ε ~ N(0, I)
        loss = −log p(x|z) + beta · Σ_j max(free, KL_j) + weight_decay · Σ_l ‖W_l‖²
        p(x|z) = N(y(z), σ² I), σ² learnt; with cross_entropy Bernoulli of y(z)

    KL_j is the divergence of unit j from N(0, 1), averaged over the batch before the maximum; the loss's
    `error` is −log p(x|z), in nats.
    source: Kingma & Welling 2014; beta Higgins et al. 2017; free bits Kingma et al. 2016
    """

    def __init__(self, config: Relative, d_model: int, shape: tuple[int, ...] | None = None) -> None:
        super().__init__(config, d_model, shape)
        self.log_var = nn.Linear(self.encoder[-1].in_features, config.code_size)
        self.log_output_var = nn.Parameter(torch.zeros(1))
        """log σ², in the scale of training"""

    def posterior(self, acts: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and log variance of q(z|x) of rows float[... d_model]: float[... code_size] each."""
        return self._posterior(self.inputs(acts))

    def loss(self, acts: Tensor, generator: torch.Generator | None = None) -> Loss:
        x = self.inputs(acts)
        mean, log_var = self._posterior(x)
        error = self._surprise(x, mean, log_var, generator).mean()
        free = math.log(2) * self.config.free_bits
        divergence = normal_divergence(mean, log_var).mean(0).clamp_min(free).sum()
        weights = [p for p in self.parameters() if p.dim() > 1]
        penalty = self.config.beta * divergence + self.config.weight_decay * decay(weights, error)
        return Loss(error + penalty, error, penalty)

    @torch.no_grad()
    def elbo(self, acts: Tensor, n_draws: int = 8, seed: int = 0) -> Tensor:
        """A lower bound of log p(x) of rows float[n d_model], in nats of the scale of training: float[n]."""
        x = self.inputs(acts)
        mean, log_var = self._posterior(x)
        generator = torch.Generator(x.device).manual_seed(index(seed))
        surprise = sum(self._surprise(x, mean, log_var, generator) for _ in range(n_draws)) / n_draws
        return -(surprise + normal_divergence(mean, log_var).sum(-1))

    @torch.no_grad()
    def sample(self, n: int, seed: int = 0) -> Tensor:
        """n rows: reconstructions of codes drawn from the prior, without the output's noise.

        returns: float[n d_model], in the units of the store
        """
        generator = torch.Generator(self.device).manual_seed(index(seed))
        return self.decode(torch.empty(n, self.code_size, device=self.device).normal_(generator=generator))

    @torch.no_grad()
    def interpolate(self, first: Tensor, last: Tensor, n: int = 8) -> Tensor:
        """n reconstructions along the line between the codes of two rows float[d_model]: float[n d_model]."""
        ends = self.encode(torch.stack([first, last]))
        return self.decode(
            torch.lerp(ends[:1], ends[1:], torch.linspace(0, 1, n, device=self.device)[:, None])
        )

    def _posterior(self, x: Tensor) -> tuple[Tensor, Tensor]:
        last = len(self.encoder) - 1
        below = self._through(x, 0, last)
        return self._through(below, last, last + 1), self.log_var(below)

    def _surprise(
        self, x: Tensor, mean: Tensor, log_var: Tensor, generator: torch.Generator | None
    ) -> Tensor:
        """−log p(x|z) of one draw of z for each row, in nats: float[n]."""
        z = mean + (log_var / 2).exp() * torch.empty_like(mean).normal_(generator=generator)
        error = self.error(x, self.reconstruct(z))
        if self.config.error == "cross_entropy":
            return error
        of_noise = self.d_model / 2 * (math.log(2 * math.pi) + self.log_output_var)
        return error / (2 * self.log_output_var.exp()) + of_noise


KIND = Variational
