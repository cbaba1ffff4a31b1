"""What kinds under an L1 penalty share: its weight, a number or one that holds l0 at a target."""

from __future__ import annotations

import torch
from torch import Tensor

from saelens_lite.sae.autoencoder import SparseAutoencoder

from ..comm import ALONE, Alone
from ..config import TrainConfig
from .kind import Kind

L1_FIELDS = frozenset({"l1_coeff", "l1_warm_up_steps"})

_GAIN_OF_LR = 3.0
_LARGEST_GAIN = 0.03
"""Of a distance of log l0 from its target, log weight moves by this part a step. Latents answer as fast as
weights move, so it goes with the learning rate: a larger one overshoots."""
_RISE = 4.0
"""With a target, the weight begins at exp(−4) of l1_coeff and rises while l0 is far above. One that begins
too large drives latents out that never return: fvu .41 for .32 at l0 20 (300 steps)."""


_LARGEST_LR, _LR_OF_WIDTH = 0.08, 5.0
"""Measured at equal l0 on two models, 300 to 3,000 steps: best were 0.08 at d_model 64 and 0.03 at 192, and
half of it at 3,000 steps; 0.01, the largest rate of the other kinds, had 1.2 to 1.8 times their fvu. See
tests/bench/RESULTS.md."""


class L1(Kind):
    """With a target, log weight is `log_l1`, which sums up what was missing, plus the distance as it is now.

    log_l1, weight: float[""], the same in all processes
    """

    sparsity_name = "l1"
    encoder_scale = 0.1
    """Half of the latents are on at the start; an encoder of norm 0.1 reconstructs about the input then, one
    of norm 1 many times of it. Norm 0.1 is also what Anthropic's April 2024 update starts with."""

    lr_factor = 2.5

    def __init__(self, sae: SparseAutoencoder, config: TrainConfig, comm: Alone = ALONE) -> None:
        super().__init__(sae, config, comm)
        self.log_l1 = torch.tensor(config.l1_coeff, device=sae.device).log() - _RISE
        self.weight = self.log_l1.exp()

    @classmethod
    def check(cls, config: TrainConfig) -> None:
        weighed = config.target_l0 is None or config.l1_coeff > 0
        config.expect(weighed, "l1_coeff", "more than 0 with target_l0, which it is the first guess for")

    @property
    def largest_lr(self) -> float:
        return min(_LARGEST_LR, _LR_OF_WIDTH / self.sae.d_model)

    def l1_coeff(self, ramp: float) -> float | Tensor:
        """The weight: a share `ramp` of l1_coeff, or what the target asks for."""
        return ramp * self.config.l1_coeff if self.config.target_l0 is None else self.weight

    def follow(self, l0: Tensor, lr: float, ramp_steps: int) -> None:
        if self.config.target_l0 is None:
            return
        distance = (l0.clamp_min(1e-3) / self.config.target_l0).log().clamp(-1, 1)
        gain = min(_LARGEST_GAIN, _GAIN_OF_LR * lr)
        far = max(gain, _RISE / max(1, ramp_steps))
        self.log_l1 = self.log_l1 + distance * torch.where(distance.abs() < 1, gain, far)
        self.weight = (self.log_l1 + distance).exp()

    def metrics(self) -> dict[str, float]:
        return {} if self.config.target_l0 is None else {"l1_coeff": float(self.weight)}

    def state(self) -> dict[str, Tensor]:
        return {} if self.config.target_l0 is None else {"log_l1": self.log_l1, "weight": self.weight}

    def load_state(self, state: dict[str, Tensor]) -> None:
        if state:
            self.log_l1, self.weight = state["log_l1"], state["weight"]
