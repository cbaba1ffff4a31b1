"""Which latents are dead, and how often the others fire: exact counts over a store, each with its window."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from saelens_lite.arguments import takes_folders
from saelens_lite.device import in_float64
from saelens_lite.misfits import names_misfits
from saelens_lite.sae.autoencoder import SparseAutoencoder
from saelens_lite.sae.metrics import FiringSums, rate_bound, window_name
from saelens_lite.store.reader import ActivationStore

from .compatibility import fits
from .store_pass import latent_blocks

WINDOWS_TOKENS = (10_000, 100_000, 1_000_000, 10_000_000)


@dataclass(frozen=True, slots=True, eq=False)
class LatentDensity:
    """How often each latent fires: int64[d_sae] of n_tokens."""

    counts: Tensor
    n_tokens: int

    @property
    def density(self) -> Tensor:
        return in_float64(self.counts) / self.n_tokens

    def __repr__(self) -> str:
        alive = int((self.counts > 0).sum())
        return (
            f"LatentDensity(over {self.n_tokens:,} tokens: {alive:,} of {len(self.counts):,} latents fired, "
            f"median of those {self.density[self.counts > 0].median().item() if alive else 0:.2e})"
        )


@dataclass(frozen=True, slots=True, eq=False)
class DeadReport:
    """Latents that were silent, by the number of last tokens looked at.

    masks: window in tokens → bool[d_sae], silent during the last so many; None where the data are fewer
    n_tokens: of the store; never_fired: bool[d_sae], silent on all of them
    """

    masks: dict[int, Tensor | None]
    n_tokens: int
    never_fired: Tensor

    @property
    def shares(self) -> dict[int, float | None]:
        return {w: None if mask is None else in_float64(mask).mean().item() for w, mask in self.masks.items()}

    @property
    def rate_bound(self) -> float:
        """A latent that never fired here fires on less than this share of tokens, with 95 % confidence."""
        return rate_bound(self.n_tokens)

    def __repr__(self) -> str:
        rows = [
            f"  dead@{window_name(w):<6} {'n/a: longer than the data' if share is None else f'{share:.2%}'}"
            for w, share in self.shares.items()
        ]
        silent = int(self.never_fired.sum())
        rows.append(
            f"  never      {silent / len(self.never_fired):.2%} ({silent:,} of {len(self.never_fired):,}); "
            f"each fires on < {self.rate_bound:.1e} of tokens (95 %)"
        )
        return "\n".join([f"DeadReport over {self.n_tokens:,} tokens", *rows])


@takes_folders
@names_misfits
def dead_latents(
    sae: SparseAutoencoder,
    store: ActivationStore,
    windows_tokens: Sequence[int] = WINDOWS_TOKENS,
    *,
    hook_point: str | None = None,
) -> DeadReport:
    """Which latents are dead, for several token windows.

    raises: ValueError when SAE and store do not belong together
    """
    sums = firing_sums(sae, store, hook_point=hook_point)
    return DeadReport({w: sums.dead(w) for w in sorted(windows_tokens)}, sums.n_tokens, sums.counts == 0)


@takes_folders
@names_misfits
def latent_density(
    sae: SparseAutoencoder, store: ActivationStore, *, hook_point: str | None = None
) -> LatentDensity:
    """How often each latent fires on the tokens of the store.

    raises: ValueError when SAE and store do not belong together
    """
    sums = firing_sums(sae, store, hook_point=hook_point)
    return LatentDensity(sums.counts, sums.n_tokens)


def firing_sums(
    sae: SparseAutoencoder, store: ActivationStore, *, hook_point: str | None = None
) -> FiringSums:
    sums = FiringSums(sae.d_sae)
    for _, latents in latent_blocks(sae, store, fits(sae, store, hook_point)):
        sums.update(latents)
    return sums
