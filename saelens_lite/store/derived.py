"""Stores whose rows are made of other stores' rows as they are read: nothing is copied.

    difference_store(base, tuned)      rows tuned − base of two models that read one text
    paired_store(stores, hook_points)  rows side by side: of several models, or of several places of one

Text, documents and order of the rows are those of the first store, so training, index and pages take a
derived store as any other. The stores must hold the same text, token by token.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from saelens_lite.misfits import names_misfits
from saelens_lite.store.layout import encode_json
from saelens_lite.store.packing import PackedContexts
from saelens_lite.store.reader import ActivationStore

_PIECE_ROWS = 4096


def check_same_text(one: ActivationStore, other: ActivationStore) -> None:
    """Two stores whose rows belong to the same tokens, one by one, shard by shard.

    raises: ValueError naming the first shard in which they differ
    """
    same = (
        "harvest both from one text, with one tokenizer, context_length, documents_per_shard and max_tokens"
    )
    between = f"{one.path} and {other.path}"
    if one.has_tokens != other.has_tokens:
        raise ValueError(f"expected two stores of one text, got {between}, of which one has no text: {same}")
    if one.shard_rows != other.shard_rows:
        raise ValueError(
            f"expected two stores of one text, got {between} with {one.n_rows:,} and {other.n_rows:,} rows "
            f"in {one.n_shards} and {other.n_shards} shards: {same}"
        )
    for shard in range(one.n_shards):
        for what, of_one, of_other in zip(_TEXT, _text(one, shard), _text(other, shard)):
            if of_one.shape != of_other.shape or not torch.equal(of_one, of_other):
                raise ValueError(f"{between} differ in {what} of shard {shard}: {same}")


_TEXT = ("the documents", "input_ids", "kept")


def _text(store: ActivationStore, shard: int) -> tuple[Tensor, ...]:
    documents = store.row_docs(shard)
    if not store.has_tokens:
        return (documents,)
    tokens = store.tokens(shard)
    return documents, tokens.input_ids, tokens.kept


class DerivedStore(ActivationStore):
    """A store of one hook point, each row of which is a function of the rows of others at its place.

    sources: (store, hook point), the first of which gives the text
    combine: from their rows, float[n d_i] each, to float[n d_model]
    name: of what combine does, for the store's identity
    hook_point, module_path, model_name: where the rows are from; "" where no place of one model is
    raises: ValueError for stores of different texts
    """

    def __init__(
        self,
        sources: Sequence[tuple[ActivationStore, str]],
        combine: Callable[[list[Tensor]], Tensor],
        d_model: int,
        *,
        name: str,
        hook_point: str,
        module_path: str = "",
        model_name: str = "",
    ) -> None:
        self.sources, self._combine = list(sources), combine
        self._first = first = sources[0][0]
        for store in {id(store): store for store, _ in sources[1:] if store is not first}.values():
            check_same_text(first, store)
        self.folder = first.folder
        self.plan: dict[str, Any] = {
            **first.plan,
            "dtype": "float32",
            "model": {"name": model_name},
            "hook_points": {hook_point: {"d_model": d_model, "module_path": module_path}},
        }
        self._shards, self._shard_rows = first._shards, first._shard_rows
        self._ends, self._firsts = first._ends, first._firsts
        self._path = f"the {name} of {', '.join(str(store.path) for store, _ in sources)}"
        made_of = [[store.fingerprint, store.hook_point(point)] for store, point in sources]
        self._fingerprint = hashlib.sha256(encode_json({"made_of": made_of, "by": name})).hexdigest()
        self._shard_sums: list[tuple[np.ndarray, float]] = []

    @property
    def path(self) -> str:
        """What it is made of, in words: there is no folder."""
        return self._path

    @property
    def fingerprint(self) -> str:
        """sha256 that names the content: of the sources, and of what is made of them."""
        return self._fingerprint

    @names_misfits
    def acts(self, shard: int, hook_point: str | None = None, rows: slice = slice(None)) -> Tensor:
        """Rows of one shard, all or a slice: float32[n_rows d_model]."""
        self.hook_point(hook_point)
        return self._combine([store.acts(shard, point, rows).float() for store, point in self.sources])

    @names_misfits
    def norms(self, shard: int, hook_point: str | None = None) -> Tensor:
        """The L2 norm of each row of one shard: float32[n_rows]."""
        return torch.cat([piece.norm(dim=1) for piece in self._pieces(shard)])

    @names_misfits
    def gather_into(self, out: Tensor, places: Tensor, rows: Tensor, hook_point: str | None = None) -> None:
        """As for a store of files."""
        self.hook_point(hook_point)
        ascending, order = rows.sort()  # then a shard's rows are in one piece, or two
        for at, some in zip(places[order].split(_PIECE_ROWS), ascending.split(_PIECE_ROWS)):
            parts = [store.gather(some, point) for store, point in self.sources]
            out[at] = self._combine(parts).to(out.dtype)

    @names_misfits
    def contexts(self, shard: int) -> PackedContexts:
        """Those of the first store."""
        return self._first.contexts(shard)

    @names_misfits
    def row_docs(self, shard: int) -> Tensor:
        """Those of the first store."""
        return self._first.row_docs(shard)

    def verify(self) -> list[str]:
        """Check every byte of the sources."""
        stores = {id(store): store for store, _ in self.sources}.values()
        return [problem for store in stores for problem in store.verify()]

    def _pieces(self, shard: int) -> Iterator[Tensor]:
        for start in range(0, self._shard_rows[shard], _PIECE_ROWS):
            yield self.acts(shard, None, slice(start, start + _PIECE_ROWS))

    def _sums(self, hook_point: str | None) -> Iterator[tuple[np.ndarray, float]]:
        self.hook_point(hook_point)
        for shard in range(len(self._shard_sums), self.n_shards):
            sum_, sq_norms = np.zeros(self.d_model()), 0.0
            for piece in self._pieces(shard):
                acts = piece.double()
                sum_, sq_norms = sum_ + acts.sum(0).numpy(), sq_norms + float(acts.square().sum())
            self._shard_sums.append((sum_, sq_norms))
        yield from self._shard_sums


@names_misfits
def difference_store(
    base: ActivationStore, tuned: ActivationStore, hook_point: str | None = None
) -> DerivedStore:
    """The rows tuned − base at one place of two models that read one text.

    hook_point: None means the only one; the name that the base store has
    raises: ValueError for stores of different texts, places or widths
    """
    point = base.hook_point(hook_point)
    place = tuned.hook_point(point)
    if (width := tuned.d_model(place)) != base.d_model(point):
        raise ValueError(
            f"the difference expected rows of one width at {point}, {base.path} has {base.d_model(point)} "
            f"and {tuned.path} has {width}: paired_store takes rows of two widths, for a crosscoder"
        )
    return DerivedStore(
        [(base, point), (tuned, place)],
        lambda rows: rows[1] - rows[0],
        width,
        name="difference",
        hook_point=point,
        module_path=base.place(point).module_path,
        model_name=f"{tuned.model_name or 'tuned'} − {base.model_name or 'base'}",
    )


@names_misfits
def paired_store(
    stores: Sequence[ActivationStore],
    hook_points: Sequence[str | None] | None = None,
    scales: Sequence[float] | None = None,
    shifts: Sequence[Tensor | None] | None = None,
) -> DerivedStore:
    """Rows side by side, [x of the first, x of the second, …]: what crosscoders and transcoders train on.

        paired_store([base, tuned])                                  one place of two models
        paired_store([store, store], ["blocks.3.hook_resid_post", "blocks.5.hook_resid_post"])

    hook_points: of each store; None means the only one that it holds
    scales: what the rows of each are multiplied by; None for nothing
    shifts: float32[d_model], what is subtracted from the rows of each before that; None for nothing
    raises: ValueError for fewer than two sides, or stores of different texts
    """
    given = [None] * len(stores) if hook_points is None else list(hook_points)
    factors = [1.0] * len(stores) if scales is None else list(scales)
    centres = [None] * len(stores) if shifts is None else list(shifts)
    if len(stores) < 2 or not len(given) == len(factors) == len(centres) == len(stores):
        raise ValueError(
            f"paired_store expected two stores or more and a hook point for each, got {len(stores)} and "
            f"{len(given)}"
        )
    sources = [(store, store.hook_point(point)) for store, point in zip(stores, given)]

    def combine(rows: list[Tensor]) -> Tensor:
        shifted = (part if centre is None else part - centre for part, centre in zip(rows, centres))
        scaled = (part if factor == 1 else part * factor for part, factor in zip(shifted, factors))
        return torch.cat(list(scaled), dim=1)

    store = _PairedStore(
        sources,
        combine,
        sum(store.d_model(point) for store, point in sources),
        name="pair"
        + ("" if scales is None else f" times {factors}")
        + ("" if shifts is None else f" less {_digest(centres)}"),
        hook_point=" + ".join(dict.fromkeys(point for _, point in sources)),
        model_name=" + ".join(dict.fromkeys(store.model_name for store, _ in sources)),
    )
    store.factors, store.centres = factors, centres
    dtypes = {one.plan["dtype"] for one in stores}
    store.plan["dtype"] = dtypes.pop() if len(dtypes) == 1 else "float32"
    return store


class _PairedStore(DerivedStore):
    """Sums of rows side by side are known from those of the sources."""

    factors: list[float]
    centres: list[Tensor | None]

    def _sums(self, hook_point: str | None) -> Iterator[tuple[np.ndarray, float]]:
        self.hook_point(hook_point)
        sources = zip(*(store._sums(point) for store, point in self.sources))
        for n_rows, of_shard in zip(self._shard_rows, sources):
            parts = [_about(centre, n_rows, *sums) for centre, sums in zip(self.centres, of_shard)]
            totals = [factor * total for factor, (total, _) in zip(self.factors, parts)]
            yield np.concatenate(totals), sum(f**2 * sq for f, (_, sq) in zip(self.factors, parts))


def _about(
    centre: Tensor | None, n_rows: int, total: np.ndarray, sq_norms: float
) -> tuple[np.ndarray, float]:
    """Sum and summed squared norms of n rows x − centre, from those of x."""
    if centre is None:
        return total, sq_norms
    away = centre.double().numpy()
    return total - n_rows * away, sq_norms - 2 * float(total @ away) + n_rows * float(away @ away)


def _digest(centres: Sequence[Tensor | None]) -> str:
    values = [None if centre is None else centre.tolist() for centre in centres]
    return hashlib.sha256(encode_json({"shifts": values})).hexdigest()[:16]
