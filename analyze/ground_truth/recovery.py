"""Whether an SAE found the features that synthetic activations are made of: numbers against ground truth.

    mcc         mean |cos| of latents' and features' directions, paired one to one for the largest sum
                (arXiv:2505.20254)
    uniqueness  features that are the nearest of some latent, as a share of the latents
    F1          a latent that fires says that the feature nearest to it fires: precision and recall over rows,
                F1 of the two, the mean over latents; one that is never right has 0
    feature F1  the same the other way round: of the latent nearest to each feature, mean over all features
    recovered   share of features to which some latent has a cosine above 0.9
    dead        share of latents that fire on none of the rows
    norm ratio  mean ‖x̂‖ / ‖x‖ of a row; below 1 is shrinkage
    absorption  see `AbsorptionSums`

mcc, uniqueness, F1, norm ratio and dead are defined as in SAELens' evaluation on synthetic data, |cos|
included. With fewer latents than features, mcc pairs the latents that there are, and feature F1 and recovered
cannot reach 1.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from torch import Tensor

from saelens_lite.arguments import takes_folders
from saelens_lite.misfits import names_misfits
from saelens_lite.sae.autoencoder import SparseAutoencoder
from saelens_lite.sae.latents import SparseLatents
from saelens_lite.sae.metrics import FiringSums, ReconstructionSums
from saelens_lite.synthetic import SyntheticActivations
from saelens_lite.text_table import Lines, Tabular, number, plain

from ..latents.direction_pairing import abs_cosines, best_pairing
from ..latents.store_pass import to_cpu

UNSEEN_ROW = 2**40
"""Scored rows begin here, far beyond any that are trained on."""

RECOVERED_COSINE = 0.9
ABSORBED_SHARE = 0.4


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class RecoveryRow:
    """One SAE's line, as defined above. Absorption is None without hierarchy."""

    name: str
    d_sae: int
    mcc: float
    uniqueness: float
    precision: float
    recall: float
    f1: float
    feature_f1: float
    recovered: float
    dead: float
    l0: float
    fvu: float
    norm_ratio: float
    absorption: float | None = None
    missed_alone: float | None = None
    """The control of absorption: how often those parents' latents are silent where no child fires."""
    scored_edges: int = 0
    """Parent-child pairs on which absorption rests, see `AbsorptionSums`."""


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Recovery(Tabular):
    """What `evaluate_recovery` found; `print(found)`. rows: trained, then the baseline, if any."""

    n_rows: int
    n_features: int
    n_edges: int
    """Parent-child pairs of the planted hierarchy."""
    true_l0: float
    """Features that fire on a scored row."""
    rows: tuple[RecoveryRow, ...]

    @names_misfits
    def row(self, name: str) -> RecoveryRow:
        """The row of that name."""
        return next(row for row in self.rows if row.name == name)

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers, for JSON."""
        return plain(dataclasses.asdict(self))

    def _tables(self) -> list[tuple[str, Lines]]:
        names = ["mcc", "F1", "precision", "recall", "feature F1"]
        names += ["recovered", "dead", "l0", "fvu", "norm ratio"]
        names += ["absorption", "missed alone"] if self.n_edges else []
        columns = {name: name.lower().replace(" ", "_") for name in names}
        lines = [["", *columns]]
        for row in self.rows:
            numbers = {name: plain(getattr(row, name)) for name in columns.values()}
            cells = [number(value, ".1f" if name == "l0" else ".3f") for name, value in numbers.items()]
            lines.append([row.name, *cells])
        return [("", lines)]

    def _notes(self) -> list[str]:
        planted = f"{self.n_features:,} planted features, {self.true_l0:.1f} on a row"
        text = [f"{planted}; over {self.n_rows:,} rows"]
        if self.n_edges:
            scored = ", ".join(f"{row.scored_edges:,} ({row.name})" for row in self.rows)
            text.append(
                f"absorption over {scored} of {self.n_edges:,} parent-child pairs: those with a latent each"
            )
        return text

    __str__ = Tabular.table


@takes_folders
@names_misfits
def evaluate_recovery(
    sae: SparseAutoencoder,
    synthetic: SyntheticActivations,
    baseline: SparseAutoencoder | None = None,
    *,
    n_rows: int = 100_000,
    start_row: int = UNSEEN_ROW,
) -> Recovery:
    """Compare an SAE with the features that its training rows were made of, on rows that nobody trained on.

    baseline: an SAE to compare with, usually the frozen-decoder one (train_sae(freeze_decoder=True))
    n_rows, start_row: the rows to score; memory holds the cosines of all latents and features
    raises: ValueError when an SAE has another width than the rows
    """
    saes = {"trained": sae} | ({} if baseline is None else {"baseline": baseline})
    if n_rows < 1:
        raise ValueError(f"evaluate_recovery expected n_rows of 1 or more, got {n_rows}")
    sums = {name: _Sums(one, synthetic) for name, one in saes.items()}
    truth = FiringSums(synthetic.config.n_features)
    for acts, features in synthetic.chunks(start_row, n_rows):
        truth.update(features)
        for one in sums.values():
            one.update(acts, features)
    return Recovery(
        n_rows=n_rows,
        n_features=synthetic.config.n_features,
        n_edges=int((synthetic.parents >= 0).sum()),
        true_l0=truth.l0,
        rows=tuple(one.row(name, truth.counts) for name, one in sums.items()),
    )


class Pairs:
    """The firings of a chunk of rows, to look up by (row, index): int64[nnz] each, values float[nnz]."""

    def __init__(self, latents: SparseLatents) -> None:
        fires = latents.values != 0
        self._width = latents.d_sae
        pairs = (latents.row_ids()[fires], latents.indices[fires], latents.values[fires])
        self._keys, order = (pairs[0] * self._width + pairs[1]).sort()
        self.rows, self.indices, self.values = (part[order] for part in pairs)

    def find(self, rows: Tensor, indices: Tensor) -> tuple[Tensor, Tensor]:
        """Whether each (row, index) fires, bool[n], and its place among the pairs, int64[n], or 0."""
        keys = rows * self._width + indices
        if not len(self._keys):
            return torch.zeros_like(keys, dtype=torch.bool), torch.zeros_like(keys)
        at = torch.searchsorted(self._keys, keys).clamp_max(len(self._keys) - 1)
        found = self._keys[at] == keys
        return found, torch.where(found, at, 0)

    def values_of(self, rows: Tensor, indices: Tensor) -> Tensor:
        """float[n], 0 where it does not fire."""
        found, at = self.find(rows, indices)
        return self.values[at] * found if len(self.values) else torch.zeros(len(rows))


class AbsorptionSums:
    """How often a child's latent takes the place of its parent's, over the rows of a planted hierarchy.

    A parent's latent is the one nearest to it, and is its own where it is nearer to no other feature. Scored
    are the edges where that holds and the child's nearest latent is another one. A row on which the child
    fires, and so the parent, is absorbed where the parent's latent is silent and the child's writes at least
    0.4 of the parent's magnitude along the parent's direction. Absorption is the mean share over the edges.

    source: "A is for Absorption", arXiv:2409.14507, whose probe, absorbing latent and 0.4 of the probe's
        projection are here the planted direction, the child's latent and 0.4 of the planted magnitude.
    """

    def __init__(
        self, W_dec: Tensor, synthetic: SyntheticActivations, latent_of: Tensor, feature_of: Tensor
    ) -> None:
        parents, features = synthetic.parents, torch.arange(len(synthetic.parents))
        parent_or_0 = parents.clamp_min(0)
        has_own = feature_of[latent_of] == features
        self._parents, self._latent_of = parents, latent_of
        self.scored = (parents >= 0) & has_own[parent_or_0] & (latent_of != latent_of[parent_or_0])
        """bool[n_features], of the edge from each feature to its parent"""
        self._scored_parents = torch.zeros_like(self.scored).index_fill(0, parents[self.scored], True)
        self._along_parent = (W_dec[latent_of] * synthetic.directions[parent_or_0]).sum(1)
        self._child_rows, self._absorbed, self._alone, self._missed_alone = torch.zeros(
            4, len(parents), dtype=torch.int64
        )

    def update(self, latents: Pairs, features: Pairs) -> None:
        scored = self.scored[features.indices]
        rows, child = features.rows[scored], features.indices[scored]
        parent = self._parents[child]
        silent = ~latents.find(rows, self._latent_of[parent])[0]
        written = latents.values_of(rows, self._latent_of[child]) * self._along_parent[child]
        absorbed = silent & (written >= ABSORBED_SHARE * features.values_of(rows, parent))
        self._child_rows += torch.bincount(child, minlength=len(self.scored))
        self._absorbed += torch.bincount(child[absorbed], minlength=len(self.scored))

        with_child = torch.zeros_like(features.indices, dtype=torch.bool)
        is_child = self._parents[features.indices] >= 0
        with_child[features.find(features.rows[is_child], self._parents[features.indices[is_child]])[1]] = (
            True
        )
        alone = self._scored_parents[features.indices] & ~with_child
        rows, parent = features.rows[alone], features.indices[alone]
        missed = ~latents.find(rows, self._latent_of[parent])[0]
        self._alone += torch.bincount(parent, minlength=len(self.scored))
        self._missed_alone += torch.bincount(parent[missed], minlength=len(self.scored))

    @property
    def absorption(self) -> float:
        """nan where no scored child fired."""
        return _mean_share(self._absorbed, self._child_rows)

    @property
    def missed_alone(self) -> float:
        return _mean_share(self._missed_alone, self._alone)


class _Sums:
    """What one SAE did on the rows so far."""

    def __init__(self, sae: SparseAutoencoder, synthetic: SyntheticActivations) -> None:
        if sae.d_model != synthetic.config.d_model:
            raise ValueError(
                f"evaluate_recovery expected an SAE of d_model={synthetic.config.d_model}, the width of the "
                f"synthetic rows, got one of {sae.d_model}; pass the SyntheticActivations it was trained on"
            )
        self._sae = sae
        W_dec = sae.W_dec.detach().cpu().float()
        cosines = abs_cosines(W_dec, synthetic.directions)
        pairs = best_pairing(cosines)
        self._mcc = cosines[pairs[:, 0], pairs[:, 1]].mean().item()
        self._recovered = (cosines.amax(0) > RECOVERED_COSINE).double().mean().item()
        self._feature_of, self._latent_of = cosines.argmax(1), cosines.argmax(0)
        self._right = torch.zeros(sae.d_sae, dtype=torch.int64)
        self._feature_right = torch.zeros(synthetic.config.n_features, dtype=torch.int64)
        self._firing, self._reconstruction = FiringSums(sae.d_sae), ReconstructionSums(sae.d_model)
        self._absorption = AbsorptionSums(W_dec, synthetic, self._latent_of, self._feature_of)

    def update(self, acts: Tensor, true_latents: SparseLatents) -> None:
        moved = acts.to(self._sae.device)
        with torch.no_grad():
            recons, latents = self._sae(moved)
            scale = self._sae.normalize(moved)[1]
        latents = to_cpu(latents)
        self._firing.update(latents)
        self._reconstruction.update(acts, recons.cpu().float())
        if scale is not None:  # latents as they write into the rows, not into the normalised ones
            latents = latents.with_values(latents.values * scale.cpu().float().reshape(-1)[latents.row_ids()])
        found, features = Pairs(latents), Pairs(true_latents)
        right, _ = features.find(found.rows, self._feature_of[found.indices])
        self._right += torch.bincount(found.indices[right], minlength=len(self._right))
        right, _ = found.find(features.rows, self._latent_of[features.indices])
        self._feature_right += torch.bincount(features.indices[right], minlength=len(self._feature_right))
        self._absorption.update(found, features)

    def row(self, name: str, feature_counts: Tensor) -> RecoveryRow:
        counts, right = self._firing.counts, self._right
        of_feature = feature_counts[self._feature_of]
        edges = int(self._absorption.scored.sum())
        return RecoveryRow(
            name=name,
            d_sae=len(counts),
            mcc=self._mcc,
            uniqueness=len(self._feature_of.unique()) / len(counts),
            precision=_share(right, counts).mean().item(),
            recall=_share(right, of_feature).mean().item(),
            f1=_share(2 * right, counts + of_feature).mean().item(),
            feature_f1=_share(2 * self._feature_right, counts[self._latent_of] + feature_counts)
            .mean()
            .item(),
            recovered=self._recovered,
            dead=(counts == 0).double().mean().item(),
            l0=self._firing.l0,
            fvu=self._reconstruction.fvu,
            norm_ratio=self._reconstruction.norm_ratio,
            absorption=self._absorption.absorption if edges else None,
            missed_alone=self._absorption.missed_alone if edges else None,
            scored_edges=edges,
        )


def _share(part: Tensor, whole: Tensor) -> Tensor:
    """float64[n], 0 where there is no whole."""
    return part.double() / whole.clamp_min(1)


def _mean_share(part: Tensor, whole: Tensor) -> float:
    seen = whole > 0
    return (part[seen].double() / whole[seen]).mean().item()
