"""Latent scaling: whether a latent that looks exclusive to one model is in the other model after all.

    β_m = Σ_x f(x) ⟨d, y_m(x)⟩ / (‖d‖² Σ_x f(x)²)        ν = β_against / β_of

d is the latent's row in the decoder of the model that it seems to belong to, f its activation, and y_m
what is to be explained in model m: β_m is the factor of f · d that explains y_m best. y is the
reconstruction x̂_m, or the error with the latent's own part left in the rows, y_m = x_m − x̂_m + f d_m
(of the plain error β is 0 at the optimum, and ν 0/0). Both ν of an exclusive latent are near 0. A ν of
the error near 1 says that the other model has the same direction on the same tokens, and the crosscoder
left it out there (complete shrinkage). A ν of the reconstruction near 1 says that other latents write it
there (latent decoupling).

source: Minder et al. 2025, "Overcoming Sparsity Artifacts in Crosscoders to Interpret Chat-Tuning",
    arXiv:2504.02922. There the own part is left in for the tuned model alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from saelens_lite.misfits import names_misfits
from saelens_lite.sae.crosscoder import Crosscoder
from saelens_lite.sae.latents import SparseLatents
from saelens_lite.store.derived import DerivedStore

from ..latents.compatibility import checked_latents
from ..latents.store_pass import blocks

_CHUNK_PAIRS = 1 << 16
EXCLUSIVE_ERROR, EXCLUSIVE_RECONSTRUCTION = 0.2, 0.5
"""ν below which a latent is exclusive, of the error and of the reconstruction; as in the paper."""


@dataclass(frozen=True, slots=True, eq=False)
class LatentScaling:
    """What `latent_scaling` found; nan for latents that never fired, or whose row is zero.

    latents: int64[m]; n_fired: int64[m], rows on which each fires
    beta_reconstruction, beta_error: float64[m 2], in the model `against` and in the model `of`
    """

    latents: Tensor
    n_fired: Tensor
    beta_reconstruction: Tensor
    beta_error: Tensor

    @property
    def nu_reconstruction(self) -> Tensor:
        """float64[m]"""
        return self.beta_reconstruction[:, 0] / self.beta_reconstruction[:, 1]

    @property
    def nu_error(self) -> Tensor:
        """float64[m]"""
        return self.beta_error[:, 0] / self.beta_error[:, 1]

    @property
    def exclusive(self) -> Tensor:
        """Latents that are in one model alone, bool[m]: both ν are below the paper's thresholds in size."""
        error, reconstruction = self.nu_error.abs(), self.nu_reconstruction.abs()
        return (error < EXCLUSIVE_ERROR) & (reconstruction < EXCLUSIVE_RECONSTRUCTION)


@names_misfits
def latent_scaling(
    crosscoder: Crosscoder,
    store: DerivedStore,
    latents: Sequence[int] | Tensor | None = None,
    *,
    of: int = 1,
    against: int = 0,
) -> LatentScaling:
    """β and ν of latents, over all rows of a store.

    store: of rows side by side, as `paired_store([base, tuned])` gives
    latents: None for all
    of: the side that the latents seem to belong to; against: the side where they are looked for
    raises: ValueError for sides of two widths, or a store of another width
    """
    check_pair(crosscoder, store)
    mine, other = crosscoder.decoder(of), crosscoder.decoder(against)
    if mine.shape != other.shape:
        raise ValueError(
            f"latent_scaling expected two sides of one width, got {mine.shape[1]} and {other.shape[1]}: a "
            "row of one is looked for in the other"
        )
    chosen, d_sae = checked_latents(crosscoder, latents), crosscoder.d_sae
    sides = (against, of)
    products = torch.zeros(2, len(sides), d_sae, dtype=torch.float64)  # with reconstruction and error
    squares, n_fired = torch.zeros(d_sae, dtype=torch.float64), torch.zeros(d_sae, dtype=torch.int64)
    with torch.no_grad():
        for _, acts in blocks(crosscoder, store, store.hook_points[0]) if len(chosen) else ():
            codes = crosscoder.encode(acts)
            recons = crosscoder.decode(codes)
            values, indices = codes.values.double().cpu(), codes.indices.cpu()
            squares.index_add_(0, indices, values.square())
            n_fired += torch.bincount(indices[values > 0], minlength=d_sae)
            for i, side in enumerate(sides):
                block = crosscoder.block(side)
                for j, y in enumerate((recons[:, block], acts[:, block] - recons[:, block])):
                    dots = _dots(mine, y, codes).cpu()
                    products[j, i].index_add_(0, indices, values * dots)
        norms = mine.double().square().sum(1)
        beta = products[:, :, chosen] / (norms.cpu() * squares)[chosen]
        own = torch.stack([(mine.double() * crosscoder.decoder(side)).sum(1) / norms for side in sides])
    beta[:, :, n_fired[chosen] == 0] = torch.nan
    return LatentScaling(chosen, n_fired[chosen], beta[0].T, (beta[1] + own.cpu()[:, chosen]).T)


def check_pair(crosscoder: Crosscoder, store: DerivedStore) -> None:
    """raises: ValueError unless the rows of a store are those of the crosscoder's sides, by their widths"""
    if not isinstance(store, DerivedStore) or len(store.sources) != len(crosscoder.sides):
        raise ValueError(
            f"a crosscoder of {len(crosscoder.sides)} sides expected rows side by side, got {store!r}: "
            "sl.store.paired_store([base, tuned]) gives them"
        )
    widths = [source.d_model(point) for source, point in store.sources]
    expected = [side.d_model for side in crosscoder.sides]
    if widths != expected:
        raise ValueError(
            f"the crosscoder expected sides of widths {expected}, got {widths} from {store.path}"
        )


def _dots(rows: Tensor, y: Tensor, codes: SparseLatents) -> Tensor:
    """⟨rows[latent], y[token]⟩ of each pair of the codes: float64[n_pairs]."""
    tokens, found = codes.row_ids(), []
    for some, of in zip(codes.indices.split(_CHUNK_PAIRS), tokens.split(_CHUNK_PAIRS)):
        found.append(torch.linalg.vecdot(rows[some].double(), y[of].double()))
    return torch.cat(found) if found else y.new_zeros(0, dtype=torch.float64)
