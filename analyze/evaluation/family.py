"""SAEs and relatives of them on the same rows of held-out documents, beside principal components.

    fvu                   Σ‖x − x̂‖² / Σ‖x − x̄‖² over the scored rows
    pca, same code size   fvu of as many principal components as the code has units
    pca, same active      fvu of as many as a row has units that are not 0, rounded
    bits                  log2 C(m, a) + 8 a a row of a active units among m
    fvu 8 bits, 4 bits    with every number of the code at one of 256 or 16 levels over its unit's range
    dead                  units whose variance is at most 1e-4 of the units' mean
    ΔCE                   nats a token that the reconstruction costs the language model
    AUROC                 of a linear probe of the codes for the labels, fitted on half of the documents
    CKA, MCC              likeness of two seeds: linear CKA of codes (unbiased), of SAEs decoder rows paired

The principal components are exact, of rows of documents that are not scored; of the scored ones where
held_out=False. A frozen decoder is one of the autoencoders given.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from saelens_lite.arguments import takes_folders
from saelens_lite.hashing import is_held_out
from saelens_lite.lm.store_losses import cross_entropies
from saelens_lite.misfits import names_misfits
from saelens_lite.sae.autoencoder import SparseAutoencoder
from saelens_lite.sae.latents import SparseLatents
from saelens_lite.sae.metrics import ReconstructionSums
from saelens_lite.store.covariance import Covariance
from saelens_lite.store.reader import ActivationStore
from saelens_lite.text_table import Lines, Tabular, number

from ..latents.compatibility import Coder, fits, recorded_fraction
from ..latents.direction_pairing import mcc
from ..latents.store_pass import BLOCK_ROWS
from ..stats.document_split import Split
from ..stats.interval_plots import new_axes
from .code_scores import CodeSums, as_sparse, coded, decoded, linear_cka, probe_auroc
from .evaluate import finite_rows, scored_rows

_REFERENCE_ROWS = 100_000
"""The principal components are of this many rows at most, evenly spread."""
_CKA_ROWS = 2048
_SPLIT = Split(seed=1)
"""Scored documents that fit and that test a probe; of seed 0 all held-out ones would test."""
_COLUMNS = {
    "code_size": ("units", ",.0f"), "active": ("active", ".1f"), "fvu": ("fvu", ".4f"),
    "pca_same_size": ("pca@units", ".4f"), "pca_same_active": ("pca@active", ".4f"),
    "bits": ("bits", ",.0f"), "fvu_8_bits": ("fvu 8 bits", ".4f"), "fvu_4_bits": ("fvu 4 bits", ".4f"),
    "dead": ("dead", ".3f"), "delta_ce": ("ΔCE", ".4f"), "auroc": ("AUROC", ".3f"),
    "cka": ("CKA", ".3f"), "mcc": ("MCC", ".3f"), "us_per_row": ("µs a row", ".1f"),
}  # fmt: skip


@dataclass(frozen=True, kw_only=True, slots=True)
class FamilyRow:
    """Scores of one autoencoder, as the file's head defines them; None where they were not asked for.

    us_per_row: microseconds that encoding and decoding took, on this machine
    """

    name: str
    kind: str
    code_size: int
    active: float
    fvu: float
    pca_same_size: float
    pca_same_active: float
    bits: float
    fvu_8_bits: float
    fvu_4_bits: float
    dead: float
    delta_ce: float | None = None
    auroc: float | None = None
    cka: float | None = None
    mcc: float | None = None
    us_per_row: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Comparison(Tabular):
    """What `compare_autoencoders` found; `print(found)`.

    pca_curve: fvu of 0, 1, … d_model principal components on the scored rows
    """

    hook_point: str
    rows: tuple[FamilyRow, ...]
    pca_curve: tuple[float, ...]
    n_rows: int
    n_documents: int
    held_out: bool

    @names_misfits
    def row(self, name: str) -> FamilyRow:
        """raises: KeyError naming those there are"""
        for row in self.rows:
            if row.name == name:
                return row
        raise KeyError(f"no autoencoder {name!r}, there are {', '.join(row.name for row in self.rows)}")

    def to_dict(self) -> dict[str, Any]:
        """All numbers, for JSON."""
        return Tabular.to_dict(self) | {
            name: getattr(self, name) for name in ("hook_point", "n_rows", "n_documents", "held_out")
        } | {"pca_curve": list(self.pca_curve)}  # fmt: skip

    @names_misfits
    def plot(self, ax: Any = None) -> Any:
        """Matplotlib axes: fvu against code size, with the exact curve of principal components.

        ax: to draw on; None makes a figure. raises: ImportError without matplotlib
        """
        ax = new_axes(ax)
        sizes = range(1, len(self.pca_curve))
        ax.plot(sizes, self.pca_curve[1:], color="0.5", label="principal components")
        for row in self.rows:
            ax.plot(row.code_size, row.fvu, "o", label=row.name)
            if row.active < row.code_size:
                ax.plot([row.active, row.code_size], [row.fvu] * 2, ":", color=ax.lines[-1].get_color())
        ax.set_xscale("log")
        ax.set_xlabel("units of the code (dotted: down to those active)")
        ax.set_ylabel("fvu")
        ax.legend()
        return ax

    def _records(self) -> list[dict[str, Any]]:
        return [asdict(row) for row in self.rows]

    def _tables(self) -> list[tuple[str, Lines]]:
        asked = [name for name in _COLUMNS if any(getattr(row, name) is not None for row in self.rows)]
        lines = [["", "kind", *(_COLUMNS[name][0] for name in asked)]]
        for row in self.rows:
            values = [getattr(row, name) for name in asked]
            cells = ["" if v is None else number(v, _COLUMNS[n][1]) for n, v in zip(asked, values)]
            lines.append([row.name, row.kind, *cells])
        return [("", lines)]

    def _notes(self) -> list[str]:
        which = "held-out documents" if self.held_out else "documents, held out or not"
        of = "others" if self.held_out else "the same rows"
        return [
            f"{self.n_rows:,} rows of {self.n_documents:,} {which} at {self.hook_point}; "
            f"principal components of {of}"
        ]

    __str__ = Tabular.table


@takes_folders
@names_misfits
def compare_autoencoders(
    autoencoders: Mapping[str, Coder],
    store: ActivationStore,
    model: nn.Module | None = None,
    other_seeds: Mapping[str, Coder] | None = None,
    labels: Sequence[int] | Tensor | None = None,
    *,
    held_out: bool = True,
    held_out_fraction: float | None = None,
    max_tokens: int | None = 20_000,
    hook_point: str | None = None,
    batch_size_seqs: int = 8,
) -> Comparison:
    """One table of SAEs and relatives of them, on the same rows.

    Another domain is another store: with hook_point= and held_out=False, autoencoders of one are scored and
    probed on it.

    autoencoders: by name; model: the one that was harvested, for ΔCE
    other_seeds: by the same names, for some of them, trained alike with another seed
    labels: a class of every row of the store, in its order, for the probes
    held_out, held_out_fraction, max_tokens: as in `evaluate_sae`
    raises: ValueError when autoencoders and store do not belong together, no document is held out, labels are
        not one a row, or rows are not finite; ImportError for labels without scikit-learn
    """
    others = dict(other_seeds or {})
    if not autoencoders or others.keys() - autoencoders.keys():
        raise ValueError(
            "compare_autoencoders expected autoencoders by name, and other seeds by names among them, got "
            f"{list(autoencoders)} and {list(others)}"
        )
    for name, one in {**autoencoders, **others}.items():
        if isinstance(one, SparseAutoencoder) and one.config.target is not None:
            raise ValueError(
                f"expected codes of rows that they reconstruct, got {name}, a transcoder to "
                f"{one.config.writes_at}: evaluate_saes compares it with SAEs there"
            )
    if labels is not None and len(labels) != store.n_rows:
        raise ValueError(f"labels expected one of each of {store.n_rows:,} rows, got {len(labels):,}")
    points = {fits(one, store, hook_point) for one in [*autoencoders.values(), *others.values()]}
    if len(points) > 1:
        raise ValueError(f"compare_autoencoders expected one hook point, got {', '.join(sorted(points))}")
    [point] = points
    if held_out_fraction is None:
        held_out_fraction = recorded_fraction(autoencoders.values())
    fraction = held_out_fraction if held_out else None
    blocks = scored_rows(store, fraction, max_tokens)
    rows, docs = torch.cat([torch.stack(block) for block in blocks], dim=1)
    curve = _pca_curve(store, point, rows, fraction)
    classes = None if labels is None else torch.as_tensor(labels).cpu()[rows].long()
    costs = _costs(model, autoencoders, store, point, fraction, max_tokens, batch_size_seqs)

    found = []
    for name, one in autoencoders.items():
        numbers = _reconstruction(one, store, point, rows, curve)
        if classes is not None:
            parts = [coded(one, acts) for acts in _blocks(store, point, rows)]
            codes = SparseLatents.cat(parts, (len(rows),))
            numbers["auroc"] = probe_auroc(codes, classes, _SPLIT.tests(docs))
        if name in others:
            numbers |= _likeness(one, others[name], store, point, rows)
        found.append(FamilyRow(name=name, kind=one.kind, delta_ce=costs.get(name), **numbers))
    of_rows = {"n_rows": len(rows), "n_documents": len(docs.unique()), "held_out": held_out}
    return Comparison(hook_point=point, rows=tuple(found), pca_curve=curve, **of_rows)


def _blocks(store: ActivationStore, point: str, rows: Tensor) -> Iterator[Tensor]:
    for some in rows.split(BLOCK_ROWS):
        yield finite_rows(store, point, some)


def _pca_curve(store: ActivationStore, point: str, rows: Tensor, fraction: float | None) -> tuple[float, ...]:
    """fvu on the scored rows of 0, 1, … principal components of the rows of documents not held out."""
    reference = rows
    if fraction is not None:
        docs = torch.cat([store.row_docs(shard) for shard in range(store.n_shards)])
        reference = (~torch.as_tensor(is_held_out(docs, fraction))).nonzero().flatten()
    sums = Covariance(store.d_model(point))
    for acts in _blocks(store, point, reference[:: -(-len(reference) // _REFERENCE_ROWS)]):
        sums.update(acts)
    components = torch.linalg.eigh(sums.covariance).eigenvectors.flip(1)
    explained, error, scored = torch.zeros(len(components)).double(), 0.0, Covariance(len(components))
    for acts in _blocks(store, point, rows):
        centred = acts.double() - sums.mean
        explained += (centred @ components).square().sum(0)
        error += float(centred.square().sum())
        scored.update(acts)
    left = error - torch.cat([explained.new_zeros(1), explained.cumsum(0)])
    return tuple((left.clamp_min(0) / scored.scatter.trace()).tolist())


def _reconstruction(
    one: Coder, store: ActivationStore, point: str, rows: Tensor, curve: tuple[float, ...]
) -> dict[str, Any]:
    """Two passes: of the codes, then of the codes at fewer levels."""
    sums = {bits: ReconstructionSums(store.d_model(point)) for bits in (None, 8, 4)}
    codes, seconds = CodeSums(_size(one)), 0.0
    for acts in _blocks(store, point, rows):
        start = time.perf_counter()
        with torch.no_grad():
            recons, code = one(acts.to(one.device))
        seconds += time.perf_counter() - start
        sums[None].update(acts, recons.cpu())
        codes.update(as_sparse(code))
    for acts in _blocks(store, point, rows):
        exact = coded(one, acts)
        for bits in (8, 4):
            sums[bits].update(acts, decoded(one, acts, codes.quantised(exact, bits)))
    of_pca = [curve[min(len(curve) - 1, size)] for size in (_size(one), round(codes.active))]
    return {
        "code_size": _size(one), "active": codes.active, "fvu": sums[None].fvu,
        "pca_same_size": of_pca[0], "pca_same_active": of_pca[1],
        "bits": codes.bits, "fvu_8_bits": sums[8].fvu, "fvu_4_bits": sums[4].fvu, "dead": codes.dead,
        "us_per_row": 1e6 * seconds / len(rows),
    }  # fmt: skip


def _size(one: Coder) -> int:
    return one.d_sae if isinstance(one, SparseAutoencoder) else one.code_size


def _likeness(
    one: Coder, other: Coder, store: ActivationStore, point: str, rows: Tensor
) -> dict[str, float | None]:
    some = finite_rows(store, point, rows[:: -(-len(rows) // _CKA_ROWS)])
    found: dict[str, float | None] = {
        "cka": linear_cka(coded(one, some).to_dense(), coded(other, some).to_dense())
    }
    if isinstance(one, SparseAutoencoder) and isinstance(other, SparseAutoencoder):
        found["mcc"] = mcc(one.W_dec.detach().float(), other.W_dec.detach().float())
    return found


def _costs(
    model: nn.Module | None,
    autoencoders: Mapping[str, Coder],
    store: ActivationStore,
    point: str,
    fraction: float | None,
    max_tokens: int | None,
    batch_size_seqs: int,
) -> dict[str, float]:
    """Nats a token by name; none without a model."""
    if model is None:
        return {}
    replacements: dict[str, dict[str, Any] | None] = {
        name: {"sae": one} for name, one in autoencoders.items()
    }
    some = {"fraction": fraction, "max_tokens": max_tokens, "batch_size_seqs": batch_size_seqs}
    ce = cross_entropies(model, store, point, {"": None} | replacements, **some).ce
    return {name: ce[name] - ce[""] for name in autoencoders}
