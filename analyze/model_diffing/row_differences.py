"""How far the rows of two models that read one text are apart, and along which directions.

    δ = x_tuned − x_base of one token     shift ‖δ‖ / ‖x_base‖

A component is an eigenvector of the covariance of δ: its share is that of the total variance about the mean
of δ. The mean itself has a share of the mean square, ‖mean δ‖² / mean ‖δ‖², which says how much of the change
is the same on every token.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from saelens_lite.misfits import names_misfits
from saelens_lite.store.derived import DerivedStore, difference_store
from saelens_lite.store.reader import ActivationStore
from saelens_lite.text_table import Lines, Tabular, cell, plain

_BLOCK_ROWS = 8192
QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)


@dataclass(frozen=True, slots=True, eq=False)
class RowDifferences(Tabular):
    """What `compare_rows` found; `print(found)`.

    hook_point: where; n_rows: compared
    base_norm, tuned_norm, difference_norm: root of the mean squared L2 norm
    cosine: mean of cos(x_base, x_tuned) over rows
    shift_quantiles: of ‖δ‖ / ‖x_base‖, at QUANTILES
    norms: float32[n_rows], ‖δ‖ of every row, by which examples are found
    mean: float64[d_model], of δ
    components: float64[m d_model], unit vectors, the largest share first; shares: float64[m]
    strongest: int64[n], rows of the largest ‖δ‖
    along: int64[m n], rows whose δ − mean reaches farthest along a component; signs: float64[m], ±1, to which
        side that is
    """

    hook_point: str
    n_rows: int
    base_norm: float
    tuned_norm: float
    difference_norm: float
    cosine: float
    shift_quantiles: tuple[float, ...]
    norms: Tensor
    mean: Tensor
    components: Tensor
    shares: Tensor
    strongest: Tensor
    along: Tensor
    signs: Tensor

    @property
    def mean_share(self) -> float:
        """Share of mean ‖δ‖² that the mean of δ explains."""
        return float(self.mean.square().sum()) / self.difference_norm**2 if self.difference_norm else 0.0

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers, for JSON; without the rows."""
        names = ("hook_point", "n_rows", "base_norm", "tuned_norm", "difference_norm", "cosine", "mean_share")
        quantiles = {f"shift@{q:g}": value for q, value in zip(QUANTILES, self.shift_quantiles, strict=True)}
        facts = {name: getattr(self, name) for name in names} | quantiles
        return plain(facts | {"shares": self.shares.tolist()})

    def _records(self) -> list[dict[str, Any]]:
        facts = self.to_dict()
        facts.pop("shares")
        return [facts]

    def _tables(self) -> list[tuple[str, Lines]]:
        facts = self._records()[0]
        lines = [[name.replace("_", " "), cell(value)] for name, value in facts.items()]
        shares = [[f"component {i}", f"{share:.1%}"] for i, share in enumerate(self.shares.tolist(), start=1)]
        return [("", [["rows", ""], *lines]), ("", [["differences", "share"], *shares])]

    def __repr__(self) -> str:
        return self.table()


@names_misfits
def compare_rows(
    base: ActivationStore,
    tuned: ActivationStore,
    hook_point: str | None = None,
    *,
    n_components: int = 10,
    n_examples: int = 20,
) -> RowDifferences:
    """Norms, cosine and principal components of the difference between two models' rows.

        print(compare_rows(ActivationStore("base/"), ActivationStore("tuned/")))

    base, tuned: stores of one text at one place of two models
    n_components: at most d_model
    n_examples: rows kept for each list of strongest ones
    raises: ValueError for stores of different texts or widths, or rows that are not finite
    """
    store = difference_store(base, tuned, hook_point)
    point = store.hook_points[0]
    if not 1 <= n_components <= store.d_model():
        raise ValueError(f"n_components expected 1 to d_model={store.d_model()}, got {n_components}")
    d_model, n = store.d_model(), store.n_rows
    products = torch.zeros(d_model, d_model, dtype=torch.float64)
    total, sq_norms = torch.zeros(d_model, dtype=torch.float64), torch.zeros(3, dtype=torch.float64)
    cosine, norms, shifts = 0.0, torch.empty(n), torch.empty(n)
    near = None  # a row near the mean, about which sums lose no digits
    for start, x, y in _pairs(store):
        x, y = x.double(), y.double()
        delta, x_norm, y_norm = y - x, x.norm(dim=1), y.norm(dim=1)
        if not delta.isfinite().all():
            row = start + int((~delta.isfinite().all(1)).nonzero()[0])
            raise ValueError(f"{base.path} or {tuned.path} {point}: row {row} holds nan or infinity")
        near = delta.mean(0) if near is None else near
        products.addmm_((delta - near).T, delta - near)
        total += (delta - near).sum(0)
        sq_norms += torch.stack([of.square().sum() for of in (x_norm, y_norm, delta)])
        cosine += float(((x * y).sum(1) / (x_norm * y_norm).clamp_min(1e-300)).sum())
        rows = slice(start, start + len(x))
        norms[rows] = delta.norm(dim=1).float()
        shifts[rows] = (delta.norm(dim=1) / x_norm.clamp_min(1e-300)).float()
    assert near is not None
    mean, covariance = near + total / n, products / n - torch.outer(total / n, total / n)
    values, vectors = torch.linalg.eigh(covariance)
    components = vectors.T.flip(0)[:n_components].contiguous()
    shares = values.flip(0)[:n_components].clamp_min(0) / covariance.trace().clamp_min(1e-300)
    along, signs = _farthest(store, mean, components, min(n_examples, n))
    quantiles = shifts.double().sort().values[[round(q * (n - 1)) for q in QUANTILES]]
    return RowDifferences(
        hook_point=point,
        n_rows=n,
        base_norm=float(sq_norms[0] / n) ** 0.5,
        tuned_norm=float(sq_norms[1] / n) ** 0.5,
        difference_norm=float(sq_norms[2] / n) ** 0.5,
        cosine=cosine / n,
        shift_quantiles=tuple(quantiles.tolist()),
        norms=norms,
        mean=mean,
        components=components,
        shares=shares,
        strongest=norms.topk(min(n_examples, n)).indices,
        along=along,
        signs=signs,
    )


def _pairs(store: DerivedStore) -> Iterator[tuple[int, Tensor, Tensor]]:
    """(first row, rows of the base, rows of the tuned model) of every block: float32[n d_model] each."""
    first = 0
    for shard, n_rows in enumerate(store.shard_rows):
        for start in range(0, n_rows, _BLOCK_ROWS):
            piece = slice(start, min(n_rows, start + _BLOCK_ROWS))
            x, y = (source.acts(shard, point, piece).float() for source, point in store.sources)
            yield first + start, x, y
        first += n_rows


def _farthest(store: DerivedStore, mean: Tensor, components: Tensor, n: int) -> tuple[Tensor, Tensor]:
    """int64[m n] and float64[m]: rows farthest along each component, to the side where one lies farthest."""
    found = torch.cat([(y.double() - x.double() - mean) @ components.T for _, x, y in _pairs(store)])
    ends = found.gather(0, found.abs().argmax(0)[None])[0].sign()
    return (found * ends).topk(n, dim=0).indices.T.contiguous(), ends
