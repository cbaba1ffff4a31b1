"""Scores of an SAE as streaming sums in float64, the same however tokens are cut into batches.

`update` adds a batch; `merge` joins two that saw consecutive spans of tokens.

    fvu                 Σ‖x − x̂‖² / Σ‖x − x̄‖², x̄ the mean of each dimension over all tokens
    fvu within 10x      the same of the rows whose norm is at most 10 times the median, x̄ their mean; squares
                        let a few massive rows stand for all others. share within 10x: of all rows
    explained variance  1 − fvu
    mse                 mean ‖x − x̂‖² of a token, summed over dimensions
    cosine, norm ratio  mean cos(x, x̂) and mean ‖x̂‖ / ‖x‖ over tokens with ‖x‖ > 0
    relative bias       Σ‖x̂‖² / Σ x·x̂: 1 if no common factor would bring x̂ nearer to x, less if shrunk
    l0, l1              latents that fire on a token, and the sum of their absolute values; means over tokens
    l1 weighted         l1 with each latent times the norm of its decoder row, so that moving length from the
                        latents into the decoder does not change it
    dead by window      share of latents silent during the last `window` tokens

Deliberately not here: fvu as a mean of per-batch or per-token ratios, which changes with the batch and
follows the tokens of small norm; variance about one scalar mean or about zero, by which predicting x̄ already
scores high. For comparison with other libraries' figures they are in analyze/evaluation/library_variants.py.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from saelens_lite.device import in_float64
from saelens_lite.sae.latents import SparseLatents

MASSIVE = 10.0
"""A row is massive whose norm exceeds this multiple of the median norm."""

_PLAIN_SUMS = "squared_error _squared_norm_hat _product _directed_tokens _cosine_sum _norm_ratio_sum".split()


class ReconstructionSums:
    """fvu, explained variance, mse, cosine, norm ratio.

    The total variance is taken about the running mean and merged exactly: a large common offset costs no
    digits.
    source: Chan, Golub and LeVeque 1983, "Algorithms for computing the sample variance"
    """

    def __init__(self, d_model: int, median_norm: float | None = None) -> None:
        """median_norm: L2 norm of a row in the middle, for `within`; None leaves that out"""
        self.within = None if median_norm is None else ReconstructionSums(d_model)
        """The rows whose norm is at most MASSIVE · median_norm"""
        self._largest_norm = MASSIVE * median_norm if median_norm else math.inf
        self.n_tokens = 0
        self.mean = torch.zeros(d_model, dtype=torch.float64)
        """x̄ so far: float64[d_model]"""
        self.squared_deviation = 0.0
        """Σ‖x − x̄‖² so far"""
        self.squared_error = 0.0
        """Σ‖x − x̂‖² so far"""
        self._squared_norm_hat = self._product = self._cosine_sum = self._norm_ratio_sum = 0.0
        self._directed_tokens = 0

    def update(self, acts: Tensor, recons: Tensor) -> None:
        """Add tokens; acts and recons: float[... d_model]."""
        if acts.shape != recons.shape or acts.shape[-1] != len(self.mean):
            raise ValueError(
                f"update expected acts and recons [..., d_model={len(self.mean)}] alike, "
                f"got {list(acts.shape)} and {list(recons.shape)}"
            )
        x, x_hat = (in_float64(rows.detach()).reshape(-1, len(self.mean)) for rows in (acts, recons))
        norms = x.norm(dim=1)
        massive = norms > self._largest_norm
        if not massive.any():
            self._add(x, x_hat, norms, self.within)
            return
        self._add(x[~massive], x_hat[~massive], norms[~massive], self.within)
        self._add(x[massive], x_hat[massive], norms[massive])

    def _add(self, x: Tensor, x_hat: Tensor, norms: Tensor, within: ReconstructionSums | None = None) -> None:
        batch = ReconstructionSums(len(self.mean))
        if len(x):
            batch.n_tokens, mean = len(x), x.mean(0)
            batch.mean = mean.cpu()
            batch.squared_deviation = (x - mean).square().sum().item()
            batch.squared_error = (x - x_hat).square().sum().item()
            batch._squared_norm_hat = x_hat.square().sum().item()
            batch._product = (x * x_hat).sum().item()
            x, x_hat, norms = x[norms > 0], x_hat[norms > 0], norms[norms > 0]
            norms_hat = x_hat.norm(dim=1)
            batch._directed_tokens = len(x)
            batch._norm_ratio_sum = (norms_hat / norms).sum().item()
            batch._cosine_sum = ((x * x_hat).sum(1) / (norms * norms_hat).clamp_min(1e-300)).sum().item()
            for sums in (self, *([within] if within is not None else [])):
                sums.merge(batch)

    def merge(self, other: ReconstructionSums) -> None:
        """Add the tokens that another one saw."""
        n_tokens = self.n_tokens + other.n_tokens
        if other.n_tokens == 0:
            return
        shift = other.mean - self.mean
        self.squared_deviation += other.squared_deviation
        self.squared_deviation += shift.square().sum().item() * self.n_tokens * other.n_tokens / n_tokens
        self.mean = self.mean + shift * (other.n_tokens / n_tokens)
        self.n_tokens = n_tokens
        for name in _PLAIN_SUMS:
            setattr(self, name, getattr(self, name) + getattr(other, name))
        if self.within is not None and other.within is not None:
            self.within.merge(other.within)

    @property
    def fvu(self) -> float:
        """Fraction of variance unexplained; nan when nothing varies."""
        return _ratio(self.squared_error, self.squared_deviation)

    @property
    def fvu_within_10x(self) -> float:
        """nan without a median norm."""
        return math.nan if self.within is None else self.within.fvu

    @property
    def share_within_10x(self) -> float:
        """nan without a median norm."""
        return math.nan if self.within is None else _ratio(self.within.n_tokens, self.n_tokens)

    @property
    def massive_rows_in_words(self) -> str | None:
        """Where massive rows hold most of the variance: what that makes of fvu, and what to do."""
        if self.within is None or not self.within.squared_deviation < self.squared_deviation / 2:
            return None
        return (
            f"{1 - self.share_within_10x:.2%} of the scored rows have more than {MASSIVE:g} times the median "
            f"norm and most of the variance: fvu {self.fvu:.4f} is theirs, and {self.fvu_within_10x:.4f} "
            f"that of all other rows. --max-norm-ratio {MASSIVE:g} (max_norm_ratio={MASSIVE:g}) trains "
            "without them"
        )

    @property
    def explained_variance(self) -> float:
        return 1.0 - self.fvu

    @property
    def mse(self) -> float:
        return _ratio(self.squared_error, self.n_tokens)

    @property
    def cosine(self) -> float:
        return _ratio(self._cosine_sum, self._directed_tokens)

    @property
    def norm_ratio(self) -> float:
        return _ratio(self._norm_ratio_sum, self._directed_tokens)

    @property
    def relative_bias(self) -> float:
        """Σ‖x̂‖² / Σ x·x̂; source: equation 10 of Rajamanoharan et al. 2024, arXiv:2404.16014."""
        return _ratio(self._squared_norm_hat, self._product)


class FiringSums:
    """When latents fire: l0, l1, integer counts, and for how many tokens each has been silent.

    counts: int64[d_sae], tokens on which each latent was not 0
    last_fired: int64[d_sae], index of the last such token in the stream; -1 for never
    decoder_norms: float[d_sae], ‖W_dec[i]‖, for l1_weighted; without them it is nan
    """

    def __init__(
        self, d_sae: int, device: torch.device | str = "cpu", decoder_norms: Tensor | None = None
    ) -> None:
        self.n_tokens = 0
        self.counts = torch.zeros(d_sae, dtype=torch.int64, device=device)
        self.last_fired = torch.full((d_sae,), -1, dtype=torch.int64, device=device)
        self._magnitude = 0.0
        self._decoder_norms = None if decoder_norms is None else in_float64(decoder_norms.detach())
        self._written = 0.0

    def update(self, latents: SparseLatents) -> None:
        """Add the tokens of a batch, in their order in the stream."""
        fires = latents.values.detach() != 0
        indices = latents.indices[fires]
        self.counts.index_add_(0, indices, torch.ones_like(indices))
        at = latents.row_ids()[fires] + self.n_tokens
        self.last_fired.scatter_reduce_(0, indices, at, reduce="amax")
        self.n_tokens += latents.batch
        magnitudes = in_float64(latents.values.detach()).abs()
        self._magnitude += magnitudes.sum().item()
        if self._decoder_norms is not None:
            norms = self._decoder_norms[latents.indices.to(self._decoder_norms.device)]
            self._written += (magnitudes * norms.to(magnitudes.device)).sum().item()

    def merge(self, later: FiringSums) -> None:
        """Add the tokens that follow, which another one saw."""
        self.counts += later.counts
        fired = later.last_fired >= 0
        self.last_fired = torch.where(fired, later.last_fired + self.n_tokens, self.last_fired)
        self.n_tokens += later.n_tokens
        self._magnitude += later._magnitude
        self._written += later._written

    @property
    def l0(self) -> float:
        return _ratio(int(self.counts.sum()), self.n_tokens)

    @property
    def l1(self) -> float:
        return _ratio(self._magnitude, self.n_tokens)

    @property
    def l1_weighted(self) -> float:
        return math.nan if self._decoder_norms is None else _ratio(self._written, self.n_tokens)

    @property
    def density(self) -> Tensor:
        """Share of tokens on which each latent fires: float64[d_sae]."""
        return in_float64(self.counts) / max(self.n_tokens, 1)

    @property
    def silent_tokens(self) -> Tensor:
        """Tokens since each latent last fired, all tokens where it never did: int64[d_sae]."""
        return self.n_tokens - 1 - self.last_fired

    def dead(self, window_tokens: int) -> Tensor | None:
        """Latents silent during the last `window_tokens` tokens: bool[d_sae]; None if there were fewer."""
        if window_tokens < 1:
            raise ValueError(f"a window is at least 1 token, got {window_tokens}")
        return self.silent_tokens >= window_tokens if window_tokens <= self.n_tokens else None

    def dead_shares(self, windows_tokens: Sequence[int]) -> dict[int, float | None]:
        """Share of dead latents by window; None for a window longer than the data."""
        masks = {window: self.dead(window) for window in windows_tokens}
        return {n: None if mask is None else in_float64(mask).mean().item() for n, mask in masks.items()}


def dead_units(variances: Tensor) -> float:
    """Share of units of a code, float64[code_size], whose variance is at most 1e-4 of the units' mean."""
    return float((variances <= 1e-4 * variances.mean()).double().mean())


def ce_score(clean: float, spliced: float, ablated: float) -> float:
    """Loss recovered, (ablated − spliced) / (ablated − clean): 1 for no damage, 0 for that of the ablation.

    Of cross-entropies in nats; nan where the ablation itself costs nothing. Under zero ablation any SAE is
    close to 1, as a residual stream of zeros is absurdly bad: read it beside the score under mean ablation
    and the difference in nats.
    """
    return _ratio(ablated - spliced, ablated - clean)


def kl_score(spliced: float, ablated: float) -> float:
    """Divergence avoided, (ablated − spliced) / ablated, as `ce_score`; of KL(p_clean ‖ p) in nats."""
    return _ratio(ablated - spliced, ablated)


def rate_bound(n_tokens: int) -> float:
    """The share of tokens, at most, on which a latent silent on n tokens fires, with 95 % confidence: 3 / n.

    It takes tokens as independent, which neighbours in a text are not.
    source: the rule of three, Hanley and Lippman-Hand 1983, JAMA 249(13)
    """
    return min(1.0, 3 / n_tokens) if n_tokens else 1.0


def rate_interval(count: int, n_tokens: int) -> tuple[float, float]:
    """The 95 % confidence interval of a firing rate from `count` firings on n tokens.

    It takes tokens as independent, which neighbours in a text are not: the true interval is wider.
    source: Wilson 1927, JASA 22(158)
    """
    if not n_tokens:
        return 0.0, 1.0
    z2, share = 1.959964**2 / n_tokens, count / n_tokens
    middle = (share + z2 / 2) / (1 + z2)
    half = math.sqrt(z2 * (share * (1 - share) + z2 / 4)) / (1 + z2)
    return max(0.0, middle - half) if count else 0.0, min(1.0, middle + half) if count < n_tokens else 1.0


def window_name(window_tokens: int) -> str:
    """A window as it stands after "dead@": 10_000 → "10k", 1_000_000 → "1M"."""
    for unit, suffix in ((1_000_000_000, "B"), (1_000_000, "M"), (1_000, "k")):
        if window_tokens % unit == 0 and window_tokens >= unit:
            return f"{window_tokens // unit}{suffix}"
    return str(window_tokens)


def _ratio(numerator: float, denominator: float) -> float:
    return numerator / denominator if denominator else math.nan
