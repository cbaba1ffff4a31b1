"""Absorption where it is known exactly: the parents of a planted hierarchy, row by row.

Of every planted feature that has children, with the terms of absorption.py:

    main latents  belong to the parent: of all features, they match it best, by the F1 of their firings times
                  the cosine of their directions. Of those, the ones that a k-sparse probe of the parent needs
                  (splitting.py)
    others        the latents that belong to the features below it; only they can take its place
    u, t          the planted direction, and the magnitude with which the parent was planted
    absorption    absorbed rows as a share of the rows on which a child fires
    missed alone  the control: how often the main latents are silent where the parent fires and no child does
    rate          absorbed rows as a share of all rows of the parent, as `label_absorption` by probes

Latents are matched and ranked on one half of the rows; the other is counted, and its F1 says how many are
main latents. `evaluate_recovery` has a figure of the same idea by edge, with the one nearest latent each.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import torch
from torch import Tensor

from saelens_lite.arguments import takes_folders
from saelens_lite.misfits import names_misfits
from saelens_lite.sae.autoencoder import SparseAutoencoder
from saelens_lite.sae.latents import SparseLatents
from saelens_lite.synthetic import SyntheticActivations
from saelens_lite.text_table import Lines, Tabular, plain

from ..latents.store_pass import spans
from ..probing.absorption import carried, mean
from ..probing.labelled_items import columns, encoded
from ..probing.splitting import F1_RISE, MAX_LATENTS, splits
from .recovery import UNSEEN_ROW

_CHUNK_PAIRS = 2**22


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class PlantedAbsorptionRow:
    """One parent.

    latents: the main ones; k_f1: of probes on one of them, two, …
    n_rows: on which the parent fires; n_child_rows: those on which a child does too
    n_silent, n_silent_alone: rows with and without a child on which the main latents are silent
    n_absorbed, fraction: of the rows with a child
    """

    feature: int
    latents: tuple[int, ...]
    k_f1: tuple[float, ...]
    n_rows: int
    n_child_rows: int
    n_silent: int
    n_absorbed: int
    n_silent_alone: int
    fraction: float

    @property
    def scored(self) -> bool:
        """Whether it has latents of its own, and rows with a child."""
        return bool(self.latents) and self.n_child_rows > 0

    @property
    def absorption(self) -> float:
        """Share of the rows with a child; nan where it is not scored."""
        return self.n_absorbed / self.n_child_rows if self.scored else math.nan

    @property
    def rate(self) -> float:
        return self.n_absorbed / self.n_rows if self.scored else math.nan

    @property
    def missed_alone(self) -> float:
        """nan without rows that have no child."""
        n_alone = self.n_rows - self.n_child_rows
        return self.n_silent_alone / n_alone if self.scored and n_alone else math.nan


@dataclasses.dataclass(frozen=True, slots=True)
class PlantedAbsorption(Tabular):
    """What `planted_absorption` found; `print(found)`. Means are over the parents that are scored."""

    rows: tuple[PlantedAbsorptionRow, ...]

    @names_misfits
    def mean(self, name: str) -> float:
        """Mean of one number of the rows, such as "absorption", over those that have it; nan for none."""
        values = [getattr(row, name) for row in self.rows if row.scored]
        return mean([value for value in values if not math.isnan(value)])

    @property
    def absorption(self) -> float:
        return self.mean("absorption")

    @property
    def rate(self) -> float:
        return self.mean("rate")

    @property
    def fraction(self) -> float:
        return self.mean("fraction")

    @property
    def missed_alone(self) -> float:
        return self.mean("missed_alone")

    @property
    def n_latents(self) -> float:
        """Main latents of a parent: above 1 is splitting."""
        return mean([float(len(row.latents)) for row in self.rows if row.scored])

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers, for JSON."""
        names = ("absorption", "rate", "fraction", "missed_alone")
        means = {name: self.mean(name) for name in names} | {"n_latents": self.n_latents}
        rows = [
            dataclasses.asdict(row)
            | {name: getattr(row, name) for name in ("absorption", "rate", "missed_alone")}
            for row in self.rows
        ]
        return plain(means | {"rows": rows})

    def _tables(self) -> list[tuple[str, Lines]]:
        lines = [
            ["parent", "absorption", "fraction", "missed alone", "rate", "rows", "with a child", "latents"]
        ]
        for row in self.rows:
            numbers = (row.absorption, row.fraction, row.missed_alone, row.rate)
            cells = [*(f"{number:.3f}" for number in numbers), f"{row.n_rows:,}", f"{row.n_child_rows:,}"]
            lines.append([str(row.feature), *cells, " ".join(map(str, row.latents)) or "none"])
        return [("", lines)]

    def _notes(self) -> list[str]:
        scored = sum(row.scored for row in self.rows)
        return [
            f"mean of {scored} of {len(self.rows)} parents, those with latents of their own: absorption "
            f"{self.absorption:.3f}, fraction {self.fraction:.3f}, missed alone {self.missed_alone:.3f}, "
            f"main latents {self.n_latents:.1f}"
        ]

    __str__ = Tabular.table


@takes_folders
@names_misfits
def planted_absorption(
    sae: SparseAutoencoder,
    synthetic: SyntheticActivations,
    *,
    n_rows: int = 50_000,
    start_row: int = UNSEEN_ROW,
    max_latents: int = MAX_LATENTS,
    f1_rise: float = F1_RISE,
) -> PlantedAbsorption:
    """How often latents of planted parents are silent because those of their children took the direction.

    n_rows, start_row: half of these rows match and choose latents, the other half is counted
    max_latents, f1_rise: of the k-sparse probe, see `feature_splitting`
    raises: ValueError without a hierarchy, for an SAE of another width, settings out of range, or fewer than
        two rows; ImportError without scikit-learn
    """
    parents = synthetic.parents
    if not (parents >= 0).any():
        raise ValueError("planted_absorption expected a planted hierarchy: set SyntheticConfig.n_trees")
    if sae.d_model != synthetic.config.d_model:
        raise ValueError(
            f"planted_absorption expected an SAE of d_model={synthetic.config.d_model}, the width of the "
            f"synthetic rows, got one of {sae.d_model}; pass the SyntheticActivations that it was trained on"
        )
    if n_rows < 2:
        raise ValueError(f"planted_absorption expected n_rows of 2 or more, got {n_rows}")
    selecting, planted_selecting, _ = _rows(sae, synthetic, start_row, n_rows // 2)
    testing, planted, scales = _rows(sae, synthetic, start_row + n_rows // 2, n_rows - n_rows // 2)
    W_dec = sae.W_dec.detach().cpu().float()
    cosines = torch.nn.functional.normalize(W_dec, dim=1) @ synthetic.directions.T
    belongs = belongs_to(selecting, planted_selecting, cosines)
    below = _ancestors(parents)
    found = []
    for parent in parents[parents >= 0].unique().tolist():
        ones, of_test = (columns(rows, torch.tensor([parent]))[:, 0] for rows in (planted_selecting, planted))
        fires, limits = of_test > 0, {"max_latents": max_latents, "f1_rise": f1_rise}
        split_into = splits(selecting, testing, ones > 0, fires, belongs == parent, **limits)
        children = columns(planted, (parents == parent).nonzero().flatten()).sum(1) > 0
        rows, alone = ((fires & which).nonzero().flatten() for which in (children, ~children))
        main, to_explain = torch.tensor(split_into.latents, dtype=torch.int64), of_test / scales
        descendants = below[:, parent]
        allowed = (belongs >= 0) & descendants[belongs.clamp_min(0)]
        direction = synthetic.directions[parent].double()
        with_child = carried(testing, rows, W_dec, direction, to_explain[rows], main, allowed)
        without = carried(testing, alone, W_dec, direction, to_explain[alone], main, allowed)
        found.append(
            PlantedAbsorptionRow(
                feature=parent,
                latents=split_into.latents,
                k_f1=split_into.f1,
                n_rows=len(rows) + len(alone),
                n_child_rows=len(rows),
                n_silent=int(with_child.silent.sum()),
                n_absorbed=int(with_child.absorbed.sum()),
                n_silent_alone=int(without.silent.sum()),
                fraction=mean(with_child.fraction.tolist()) if split_into.latents else math.nan,
            )
        )
    return PlantedAbsorption(tuple(found))


def belongs_to(latents: SparseLatents, features: SparseLatents, cosines: Tensor) -> Tensor:
    """The feature that each latent matches best, by F1 over rows times cosine: int64[d_sae], -1 for none.

    latents, features: of the same rows, on the CPU; cosines: float[d_sae n_features], of directions
    By firings alone, the latent of a parent that one child has absorbed would pass for the other child's, and
    by directions alone the absorbing one for the parent's.
    """
    together = torch.zeros(latents.d_sae, features.d_sae, dtype=torch.int64)
    counts = []
    for held in (latents, features):
        fires = held.values > 0
        counts.append((held.row_ids()[fires], held.indices[fires]))
    (rows, ids), (_, feature_ids) = counts
    sizes = torch.bincount(counts[1][0], minlength=features.batch)
    starts = sizes.cumsum(0) - sizes
    for part in torch.arange(len(rows)).split(max(1, _CHUNK_PAIRS // int(sizes.max().clamp_min(1)))):
        n = sizes[rows[part]]
        keys = ids[part].repeat_interleave(n) * features.d_sae + feature_ids[spans(starts[rows[part]], n)]
        together += torch.bincount(keys, minlength=together.numel()).view_as(together)
    fired, planted = (
        torch.bincount(x, minlength=n) for x, n in ((ids, latents.d_sae), (feature_ids, features.d_sae))
    )
    match, best = (2 * together / (fired[:, None] + planted).clamp_min(1).double() * cosines).max(1)
    return torch.where(match > 0, best, -1)


def _ancestors(parents: Tensor) -> Tensor:
    """bool[n n]: whether feature j is above feature i."""
    above = torch.zeros(len(parents), len(parents), dtype=torch.bool)
    each, ancestors = torch.arange(len(parents)), parents
    while (ancestors >= 0).any():
        each, ancestors = each[ancestors >= 0], ancestors[ancestors >= 0]
        above[each, ancestors] = True
        ancestors = parents[ancestors]
    return above


def _rows(
    sae: SparseAutoencoder, synthetic: SyntheticActivations, start_row: int, n_rows: int
) -> tuple[SparseLatents, SparseLatents, Tensor]:
    """Latents of rows, their planted features, and by how much the SAE scales each down: float64[n]."""
    latents, features, scales = [], [], []
    for acts, planted in synthetic.chunks(start_row, n_rows):
        latents.append(encoded(sae, acts))
        features.append(planted)
        scale = sae.normalize(acts.to(sae.device))[1]
        scales.append(torch.ones(len(acts)) if scale is None else scale.cpu().reshape(-1))
    return (
        SparseLatents.cat(latents, (n_rows,)),
        SparseLatents.cat(features, (n_rows,)),
        torch.cat(scales).double(),
    )
