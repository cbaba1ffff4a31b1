"""For how many tokens each latent has been silent, and when it counts as dead."""

from __future__ import annotations

import torch
from torch import Tensor


def default_dead_after_tokens(n_tokens: int, d_sae: int, k: int | None) -> int:
    """Tokens of silence after which a latent is dead, in a run of n_tokens: min(10M, 10 % of it).

    Kinds that have a k have a floor: a latent with its even share of the k firings a token fires once in
    d_sae / k tokens. In ten times that it is silent by chance with probability e⁻¹⁰. In less, a wide
    dictionary would look dead because the run is short.
    """
    return max(1, min(10_000_000, n_tokens // 10), 0 if k is None else 10 * d_sae // k)


class DeadTracker:
    """Training tokens since each latent last fired; int64[d_sae].

    On CUDA `update` sends the number of dead latents to the host, so that `dead` need not wait.
    """

    def __init__(self, d_sae: int, dead_after_tokens: int, device: torch.device) -> None:
        self.tokens_since_fired = torch.zeros(d_sae, dtype=torch.int64, device=device)
        self.dead_after_tokens = dead_after_tokens
        self._arrived = torch.cuda.Event() if device.type == "cuda" else None
        self._n_dead = torch.zeros((), dtype=torch.int64, pin_memory=self._arrived is not None)
        self._counted_version = -1

    def update(self, fired: Tensor, n_tokens: int) -> None:
        """fired: bool[d_sae], for a batch of n_tokens."""
        self.tokens_since_fired += n_tokens
        self.tokens_since_fired.masked_fill_(fired, 0)
        if self._arrived is not None:
            self._n_dead.copy_(self._silent().sum(), non_blocking=True)
            self._arrived.record()
            self._counted_version = self.tokens_since_fired._version

    def dead(self) -> Tensor:
        """int64[m]: latents silent for at least dead_after_tokens."""
        changed_from_outside = self._counted_version != self.tokens_since_fired._version
        if self._arrived is None or changed_from_outside:
            return self._silent().nonzero().view(-1)
        self._arrived.synchronize()
        return torch.nonzero_static(self._silent(), size=int(self._n_dead)).view(-1)

    def _silent(self) -> Tensor:
        return self.tokens_since_fired >= self.dead_after_tokens
