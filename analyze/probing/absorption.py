"""Feature absorption: a latent is silent where a more specific latent has taken its place.

On a row with the label, let u be the unit direction of what the label names, t = (x − b_dec) · u what is to
be explained along it, and w_i = z_i · W_dec[i] · u what latent i writes there. With the main latents those
that stand for the label,

    absorbed   every main latent is silent, and the latent with the largest w_i has cos(W_dec[i], u) ≥
               FULL_COSINE and w_i ≥ WRITTEN_SHARE · t
    rate       absorbed rows as a share of the rows counted
    fraction   with m = Σ w_i of the main latents and a = Σ w_i of at most MAX_ABSORBERS others, those that
               write most and have cos ≥ PARTIAL_COSINE: 0 where a < WRITTEN_SHARE · t or m ≥ t, 1 where m ≤
               0, else a' / (a' + m) with a' = min(a, t − m); the mean over the rows counted, nan without main
               latents

`label_absorption` knows labels alone: u is the direction of a logistic probe, the main latents are those of
k-sparse probes (splitting.py), rows counted those with the label that the probe recognises.

source: "A is for Absorption", arXiv:2409.14507, in the form of SAEBench, which measures by projection and not
    by ablation; there, t is of x as it is, and decoder rows have norm 1. Here, probes are trained and latents
    ranked on other documents than those counted; only how many of them are main latents is, as there, decided
    by F1 on the documents counted.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from saelens_lite.arguments import takes_folders
from saelens_lite.misfits import names_misfits
from saelens_lite.sae.autoencoder import SparseAutoencoder
from saelens_lite.sae.latents import SparseLatents
from saelens_lite.text_table import Lines, Tabular, plain

from ..latents.compatibility import checked_latents
from ..latents.store_pass import spans
from ..stats.document_split import Documents, Split
from ..stats.logistic import f1_of, fit_logistic
from .labelled_items import encoded, testing_side
from .splitting import F1_RISE, MAX_LATENTS, splits

SILENT = 1e-8
FULL_COSINE, PARTIAL_COSINE = 0.025, 0.1
WRITTEN_SHARE = 0.4
MAX_ABSORBERS = 3
LEAST_PROBE_F1 = 0.6
"""Labels whose probe is worse are left out of the mean: what cannot be read from the activations cannot be
absorbed."""
_CHUNK_VALUES = 2**22


class Carried(NamedTuple):
    """Of each row bool[n], bool[n], float64[n], int64[n]; absorber: the other latent that writes most."""

    silent: Tensor
    absorbed: Tensor
    fraction: Tensor
    absorber: Tensor


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class AbsorptionRow:
    """One label.

    latents: the main ones; k_f1: of probes on one of them, two, …; probe_f1: of that on activations; all on
        the test side
    n_rows: rows counted; n_silent: those on which every main latent is silent
    absorbers: (latent, rows that it absorbs), most rows first
    """

    name: str
    latents: tuple[int, ...]
    k_f1: tuple[float, ...]
    probe_f1: float
    n_rows: int
    n_silent: int
    n_absorbed: int
    fraction: float
    absorbers: tuple[tuple[int, int], ...]

    @property
    def rate(self) -> float:
        return self.n_absorbed / self.n_rows if self.n_rows and self.latents else math.nan

    @property
    def scored(self) -> bool:
        """Whether it belongs to the mean: it has main latents, and the probe reads it well."""
        return self.probe_f1 >= LEAST_PROBE_F1 and not math.isnan(self.rate)


@dataclasses.dataclass(frozen=True, slots=True)
class Absorption(Tabular):
    """What `label_absorption` found; `print(found)`. Means are over the labels that are scored; nan for
    none."""

    rows: tuple[AbsorptionRow, ...]

    @property
    def rate(self) -> float:
        return mean([row.rate for row in self.rows if row.scored])

    @property
    def fraction(self) -> float:
        return mean([row.fraction for row in self.rows if row.scored])

    @property
    def n_latents(self) -> float:
        """Main latents of a label: above 1 is splitting."""
        return mean([float(len(row.latents)) for row in self.rows if row.scored])

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers, for JSON."""
        rows = [dataclasses.asdict(row) | {"rate": row.rate, "scored": row.scored} for row in self.rows]
        found = {"rate": self.rate, "fraction": self.fraction, "n_latents": self.n_latents, "rows": rows}
        return plain(found)

    def _tables(self) -> list[tuple[str, Lines]]:
        lines = [["", "absorbed", "fraction", "silent", "rows", "probe F1", "latents", "absorbers"]]
        for row in self.rows:
            by = " ".join(f"{latent}×{n}" for latent, n in row.absorbers[:3])
            cells = [f"{row.rate:.3f}", f"{row.fraction:.3f}", f"{row.n_silent:,}", f"{row.n_rows:,}"]
            cells.append(f"{row.probe_f1:.3f}")
            lines.append([row.name, *cells, " ".join(map(str, row.latents)) or "none", by])
        return [("", lines)]

    def _notes(self) -> list[str]:
        scored = sum(row.scored for row in self.rows)
        return [
            f"mean of {scored} of {len(self.rows)} labels, those with a probe F1 of {LEAST_PROBE_F1} "
            f"and main latents: absorbed {self.rate:.3f}, fraction {self.fraction:.3f}, "
            f"main latents {self.n_latents:.1f}"
        ]

    __str__ = Tabular.table


@takes_folders
@names_misfits
def label_absorption(
    sae: SparseAutoencoder,
    acts: Tensor,
    labels: Mapping[str, Tensor],
    documents: Documents | None = None,
    split: Split | None = None,
    *,
    latents: Mapping[str, Sequence[int]] | None = None,
    max_latents: int = MAX_LATENTS,
    f1_rise: float = F1_RISE,
) -> Absorption:
    """How often latents that stand for a label are silent because others took its direction, by probes.

        starts = {a: torch.tensor([token.strip().lower().startswith(a) for token in tokens]) for a in "abc"}
        print(sl.probing.label_absorption(sae, acts, starts, documents))

    acts: float[n_items d_model]; labels: bool[n_items] by name, such as that a token begins with a letter
    documents: of each item; the selecting side of `split`, by default Split(), trains probes and chooses
        latents, the test side is counted. None: every item is its own document
    latents: the main latents of labels where they are known, else found as by `feature_splitting` with
        max_latents and f1_rise. A child's latent that raises F1 by so much counts as a main one and then
        absorbs nothing: what frequent children absorb shows in n_latents, or as a rate with max_latents=1
    raises: as `feature_splitting`; ValueError without labels, or for a latent out of range
    """
    if sae.config.target is not None:
        raise ValueError(
            "label_absorption expected an SAE, whose latents write where probes read, got a transcoder to "
            f"{sae.config.writes_at}"
        )
    if not labels:
        raise ValueError("label_absorption expected at least one label, got none")
    sides = {name: testing_side(acts, ones, documents, split) for name, ones in labels.items()}
    tests = next(iter(sides.values()))  # one for all: documents decide
    selecting_acts, testing_acts = (acts[side.to(acts.device)].cpu().float() for side in (~tests, tests))
    selecting, testing = encoded(sae, selecting_acts), encoded(sae, testing_acts)
    W_dec, b_dec = sae.W_dec.detach().cpu().float(), sae.b_dec.detach().cpu().double()
    to_explain = sae.normalize(testing_acts.to(sae.device))[0].detach().cpu().double() - b_dec
    rows = []
    for name, given in labels.items():
        ones = torch.as_tensor(given).cpu().bool()
        weights, bias = fit_logistic(selecting_acts, ones[~tests])
        said = testing_acts.double() @ weights + bias > 0
        known = latents[name] if latents is not None and name in latents else None
        k_f1: tuple[float, ...] = ()
        if known is None:
            limits = {"max_latents": max_latents, "f1_rise": f1_rise}
            split_into = splits(selecting, testing, ones[~tests], ones[tests], **limits)
            known, k_f1 = split_into.latents, split_into.f1
        main = checked_latents(sae, known)
        counted = (said & ones[tests]).nonzero().flatten()
        direction = torch.nn.functional.normalize(weights, dim=0)
        found = carried(testing, counted, W_dec, direction, to_explain[counted] @ direction, main)
        absorbers, times = found.absorber[found.absorbed].unique(return_counts=True)
        order = times.argsort(descending=True, stable=True)
        rows.append(
            AbsorptionRow(
                name=name,
                latents=tuple(main.tolist()),
                k_f1=k_f1,
                probe_f1=f1_of(said, ones[tests]),
                n_rows=len(counted),
                n_silent=int(found.silent.sum()),
                n_absorbed=int(found.absorbed.sum()),
                fraction=mean(found.fraction.tolist()) if len(main) else math.nan,
                absorbers=tuple(zip(absorbers[order].tolist(), times[order].tolist(), strict=True)),
            )
        )
    return Absorption(tuple(rows))


def carried(
    latents: SparseLatents,
    rows: Tensor,
    W_dec: Tensor,
    direction: Tensor,
    to_explain: Tensor,
    main: Tensor,
    allowed: Tensor | None = None,
) -> Carried:
    """What of a direction the main latents carry on some rows, and what others carry in their place.

    latents: of all rows, on the CPU; rows: int64[n], those looked at
    W_dec: float[d_sae d_model]; direction: float64[d_model], unit norm; to_explain: float64[n], along it
    main: int64[m], each counted once; allowed: bool[d_sae], the others that can take their place; None: any
    """
    main, along = main.unique(), (W_dec @ direction.to(W_dec)).double()
    cosines = along / W_dec.norm(dim=1).double().clamp_min(1e-30)
    others = torch.ones(len(W_dec), dtype=torch.bool) if allowed is None else allowed.clone()
    others[main] = False
    partly = others & (cosines >= PARTIAL_COSINE)
    found = [
        Carried(
            *(torch.zeros(0, dtype=dtype) for dtype in (torch.bool, torch.bool, torch.float64, torch.int64))
        )
    ]
    for chunk, total in zip(
        *(x.split(max(1, _CHUNK_VALUES // len(W_dec))) for x in (rows, to_explain)), strict=True
    ):
        acts = dense_rows(latents, chunk)
        written = acts * along
        silent = (acts[:, main].abs() < SILENT).all(1)
        most, absorber = written.masked_fill(~others, -torch.inf).max(1)
        full = silent & (total > 0) & (cosines[absorber] >= FULL_COSINE) & (most >= WRITTEN_SHARE * total)

        by_main = written[:, main].sum(1)
        by_others = (
            written.masked_fill(~partly, 0).clamp_min(0).topk(min(MAX_ABSORBERS, len(W_dec))).values.sum(1)
        )
        taken = (total > 0) & (by_others >= WRITTEN_SHARE * total) & (by_main < total)
        part = by_others.minimum(total - by_main)
        fraction = torch.where(by_main <= 0, 1.0, part / (part + by_main).clamp_min(1e-30))
        found.append(Carried(silent, full, torch.where(taken, fraction, 0.0), absorber))
    return Carried(*map(torch.cat, zip(*found, strict=True)))


def dense_rows(latents: SparseLatents, rows: Tensor) -> Tensor:
    """Some rows of sparse latents: float64[n d_sae]."""
    sizes = latents.offsets.diff()[rows]
    pairs, row = spans(latents.offsets[rows], sizes), torch.arange(len(rows)).repeat_interleave(sizes)
    dense = torch.zeros(len(rows), latents.d_sae, dtype=torch.float64)
    dense[row, latents.indices[pairs]] = latents.values[pairs].double()
    return dense


def mean(values: Sequence[float]) -> float:
    """nan for none."""
    return sum(values) / len(values) if values else math.nan
