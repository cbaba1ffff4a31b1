"""What a code is worth: its bits, its quantised values, units that say nothing, classes read off it, and its
likeness to another code of the same rows.

A code is SparseLatents for all: of a dense one they hold every number that is not 0.
"""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from saelens_lite.device import in_float64
from saelens_lite.misfits import names_misfits
from saelens_lite.sae.autoencoder import SparseAutoencoder, denormalized
from saelens_lite.sae.latents import SparseLatents
from saelens_lite.sae.metrics import dead_units

from ..latents.compatibility import Coder
from ..latents.store_pass import BLOCK_ROWS, to_cpu
from ..probing.fit import all_columns, fit_probe
from ..stats.ranks import auroc

BITS = 8
"""A number, in `code_bits`."""
INVERSE_L2 = 0.1
"""C of a probe, in scikit-learn's sense, on units over their standard deviation."""


@torch.no_grad()
def coded(autoencoder: Coder, acts: Tensor) -> SparseLatents:
    """The codes of rows float[n d_model], on the CPU."""
    return as_sparse(autoencoder.encode(acts.to(autoencoder.device)))


def as_sparse(codes: SparseLatents | Tensor) -> SparseLatents:
    """Latents, or the non-zeros of codes float[n code_size], on the CPU."""
    return to_cpu(codes if isinstance(codes, SparseLatents) else SparseLatents.from_dense(codes))


@torch.no_grad()
def decoded(autoencoder: Coder, acts: Tensor, codes: SparseLatents) -> Tensor:
    """The rows of other codes than their own, in the units of `acts`, on the CPU: float[n d_model]."""
    device = autoencoder.device
    if not isinstance(autoencoder, SparseAutoencoder):
        return autoencoder.decode(codes.to_dense().to(device)).cpu()
    _, scale, shift = autoencoder.normalize(acts.to(device))
    there = {name: getattr(codes, name).to(device) for name in ("values", "indices", "offsets")}
    return denormalized(autoencoder.decode(replace(codes, **there)), scale, shift).cpu()


def code_bits(codes: SparseLatents) -> Tensor:
    """Bits of each row, float64[n]: log2 C(m, a) to say which a of m units are not 0, and 8 for each of them.

    A dense code of m units has 8 m.
    """
    m, active = torch.tensor(float(codes.d_sae), dtype=torch.float64), codes.l0().double()
    ways = torch.lgamma(m + 1) - torch.lgamma(active + 1) - torch.lgamma(m - active + 1)
    return ways / math.log(2) + BITS * active


class CodeSums:
    """Over blocks of codes: active units and bits a row, dead units, and the range of each unit."""

    def __init__(self, code_size: int) -> None:
        self.n, self._active, self._bits = 0, 0.0, 0.0
        self._sum, self._squares = torch.zeros(2, code_size, dtype=torch.float64)
        self.least, self.most = torch.full((code_size,), math.inf), torch.full((code_size,), -math.inf)

    def update(self, codes: SparseLatents) -> None:
        values, unit = codes.values, codes.indices
        self.n += codes.batch
        self._active += float(codes.l0().sum())
        self._bits += float(code_bits(codes).sum())
        self._sum.index_add_(0, unit, values.double())
        self._squares.index_add_(0, unit, values.double().square())
        self.least.scatter_reduce_(0, unit, values.float(), "amin")
        self.most.scatter_reduce_(0, unit, values.float(), "amax")

    @property
    def active(self) -> float:
        """Units a row that are not 0, on average."""
        return self._active / self.n

    @property
    def bits(self) -> float:
        """`code_bits` a row, on average."""
        return self._bits / self.n

    @property
    def dead(self) -> float:
        """`dead_units` of their variances over rows."""
        return dead_units(self._squares / self.n - (self._sum / self.n).square())

    def quantised(self, codes: SparseLatents, bits: int) -> SparseLatents:
        """Every number at the nearest of 2^bits levels, evenly spaced over its unit's range; 0 stays 0."""
        least, most = self.least[codes.indices], self.most[codes.indices]
        step = (most - least) / (2**bits - 1)
        levels = ((codes.values - least) / step.clamp_min(torch.finfo(step.dtype).tiny)).round()
        return codes.with_values(torch.where(codes.values == 0, 0.0, least + levels * step))


def probe_auroc(codes: SparseLatents, labels: Tensor, tests: Tensor) -> float:
    """AUROC of a linear probe for each class against the rest, the mean over classes.

    A logistic regression (C = 0.1) on units over their standard deviation, fitted on the rows that do not
    test.
    labels: int64[n]; tests: bool[n]; nan where no class has rows on both sides
    raises: ImportError without scikit-learn
    """
    features, testing, found = _csr(codes), tests.numpy(), []
    for one in labels.unique():
        positive = (labels == one).numpy()
        if len({*zip(positive.tolist(), testing.tolist(), strict=True)}) == 4:
            probe = fit_probe(features[~testing], positive[~testing], all_columns, (), (INVERSE_L2,))
            scores = probe.scores(features[testing])
            found.append(auroc(scores[~positive[testing]], scores[positive[testing]]))
    return float(np.mean(found)) if found else math.nan


def _csr(codes: SparseLatents) -> object:
    from scipy.sparse import csr_matrix

    parts = (codes.values.float().numpy(), codes.indices.numpy(), codes.offsets.numpy())
    return csr_matrix(parts, (codes.batch, codes.d_sae))


@names_misfits
def linear_cka(codes: Tensor, others: Tensor) -> float:
    """How alike two codes of the same rows are, up to rotation and scale: 1 for alike, 0 on average for
    independent ones, whatever their widths.

        CKA = HSIC(K, L) / √(HSIC(K, K) · HSIC(L, L)),  K = X Xᵀ, L = Y Yᵀ, each HSIC the unbiased estimate

    codes: float[n m]; others: float[n m′]; n at least 4
    source: Kornblith et al. 2019, arXiv:1905.00414; the estimate Song et al. 2012, which unlike the plain one
        does not grow with the widths
    """
    if len(codes) != len(others) or len(codes) < 4:
        raise ValueError(
            f"linear_cka expected codes of the same rows, 4 or more, got {len(codes)} and {len(others)}"
        )
    k, l = (_gram(rows) for rows in (codes, others))
    return _hsic(k, l) / math.sqrt(max(_hsic(k, k) * _hsic(l, l), 1e-300))


def _gram(rows: Tensor) -> Tensor:
    x = in_float64(rows)
    x = x - x.mean(0)
    return (x @ x.T).fill_diagonal_(0)


def _hsic(k: Tensor, l: Tensor) -> float:
    n = len(k)
    of_sums = k.sum() * l.sum() / ((n - 1) * (n - 2)) - 2 * (k.sum(0) @ l.sum(0)) / (n - 2)
    return float(((k * l).sum() + of_sums) / (n * (n - 3)))


@names_misfits
def latent_map(autoencoder: Coder, acts: Tensor) -> Tensor:
    """Each row as a place in the plane: float64[n 2].

    Codes of two units are the map; of wider ones their first two principal components are, the entry of
    largest size of each positive.
    acts: float[n d_model]; raises: ValueError for codes of one unit, or fewer than 2 rows
    """
    codes = torch.cat([coded(autoencoder, block).to_dense() for block in acts.split(BLOCK_ROWS)]).double()
    if codes.shape[1] < 2 or len(codes) < 2:
        raise ValueError(f"latent_map expected 2 rows and 2 units or more, got codes {list(codes.shape)}")
    if codes.shape[1] == 2:
        return codes
    centred = codes - codes.mean(0)
    axes = torch.linalg.svd(centred, full_matrices=False).Vh[:2]
    signs = axes.gather(1, axes.abs().argmax(1, keepdim=True)).sign()
    return centred @ (axes * signs).T


@names_misfits
@torch.no_grad()
def denoising_gain(autoencoder: Coder, acts: Tensor, noise_std: float, seed: int = 0) -> float:
    """How much nearer a reconstruction of noisy rows is to the rows, in dB: the gain in PSNR.

        10 log10(Σ‖x̃ − x‖² / Σ‖x̂(x̃) − x‖²),  x̃ = x + noise_std · ε,  ε ~ N(0, I)

    acts: float[n d_model], rows without noise; noise_std: in their units; negative where it does harm
    raises: ValueError unless noise_std is above 0
    """
    if not noise_std > 0:
        raise ValueError(f"denoising_gain expected noise_std above 0, got {noise_std}")
    draws, before, after = torch.Generator().manual_seed(seed), 0.0, 0.0
    for clean in acts.float().cpu().split(BLOCK_ROWS):
        noisy = clean + noise_std * torch.empty_like(clean).normal_(generator=draws)
        recons = autoencoder(noisy.to(autoencoder.device)).recons.cpu()
        before += float((noisy - clean).double().square().sum())
        after += float((recons - clean).double().square().sum())
    return 10 * math.log10(before / after)
