"""Several activation stores as one: their rows are numbered through, in the order of the stores."""

from __future__ import annotations

import shlex
from collections.abc import Sequence

import torch
from torch import Tensor

from saelens_lite.store.layout import data_name
from saelens_lite.store.places import same_place
from saelens_lite.store.reader import ActivationStore


class JoinedStores:
    """The rows of one hook point of stores that agree in it and in its width.

    hook_point: None means the only one of each store
    raises: ValueError for stores that do not go together, with both named
    """

    def __init__(self, stores: Sequence[ActivationStore], hook_point: str | None) -> None:
        self.stores = list(stores)
        first = self.stores[0]
        self.hook_point = first.hook_point(hook_point)
        self.d_model = first.d_model(self.hook_point)
        for other in self.stores[1:]:
            name = other.hook_point(hook_point)
            if not same_place(other.place(name), first.place(self.hook_point)):
                raise ValueError(
                    f"stores that are mixed are expected to share a hook point, {first.path} has "
                    f"{self.hook_point} and {other.path} has {name}: name one that both have as hook_point, "
                    "or train on one"
                )
            if (width := other.d_model(name)) != self.d_model:
                raise ValueError(
                    f"stores that are mixed are expected to have rows of one width at {name}, {first.path} "
                    f"has {self.d_model} and {other.path} has {width}: these are different models"
                )
        sizes = torch.tensor([store.n_rows for store in self.stores])
        self._ends = sizes.cumsum(0)
        self._starts = (self._ends - sizes).tolist()

    @property
    def hf_module(self) -> str:
        return self.stores[0].plan["hook_points"][self.hook_point].get("module_path", "")

    @property
    def shape(self) -> tuple[int, ...] | None:
        """Of rows that are images or series, in C order; None for others, or stores of several shapes."""
        shapes = {
            tuple(s.plan["hook_points"][s.hook_point(self.hook_point)].get("shape", ())) for s in self.stores
        }
        return (shapes.pop() or None) if len(shapes) == 1 else None

    @property
    def model_name(self) -> str:
        """The model that all rows come from; "" for several, or where it is not known."""
        names = {store.model_name for store in self.stores}
        return names.pop() if len(names) == 1 else ""

    @property
    def context_length(self) -> int | None:
        lengths = {store.context_length if store.has_tokens else None for store in self.stores}
        return lengths.pop() if len(lengths) == 1 else None

    def gather(self, rows: Tensor, dtype: torch.dtype = torch.float32, out: Tensor | None = None) -> Tensor:
        """dtype[n d_model] of rows int64[n], in `out` where that is given."""
        out = torch.empty(len(rows), self.d_model, dtype=dtype) if out is None else out
        of_store = torch.searchsorted(self._ends, rows, right=True)
        for number, (store, start) in enumerate(zip(self.stores, self._starts, strict=True)):
            places = (of_store == number).nonzero().view(-1)
            store.gather_into(out, places, rows[places] - start, self.hook_point)
        return out

    def held_out_rows(self, fraction: float) -> list[Tensor]:
        """int64[n], ascending: the rows of held-out documents, of each store."""
        held_out = [store.held_out_rows(fraction) for store in self.stores]
        return [start + rows.nonzero().view(-1) for start, rows in zip(self._starts, held_out, strict=True)]

    def other_rows(self, rows: Sequence[Tensor]) -> list[Tensor]:
        """int64[n], ascending: of each store, all rows but these."""
        found = []
        for store, start, leave in zip(self.stores, self._starts, rows, strict=True):
            kept = torch.ones(store.n_rows, dtype=torch.bool)
            kept[leave - start] = False
            found.append(start + kept.nonzero().view(-1))
        return found

    def check_filled(self, rows: Sequence[Tensor]) -> None:
        """raises: ValueError if one of the stores has none of these rows, which are those to train on"""
        for store, of_store in zip(self.stores, rows, strict=True):
            if not len(of_store):
                raise ValueError(
                    f"{store.path} has no rows to train on, all its documents are held out: leave it out"
                )

    def norms(self, number: int) -> Tensor:
        """float32[n_rows]: of each row of one store."""
        return self.stores[number].all_norms(self.hook_point)

    def rows_above(self, number: int, limit: float) -> Tensor:
        """int64[n], ascending: rows of one store whose norm exceeds the limit."""
        return self._starts[number] + (self.norms(number) > limit).nonzero().view(-1)

    def first_row(self, number: int) -> int:
        """The number that a store's first row has here."""
        return self._starts[number]

    def check_finite(self, rows: Tensor, acts: Tensor, scale: float, what: str) -> None:
        """Look at float32[n d_model] of rows int64[n].

        raises: FloatingPointError: `what`, then shard and row of the first whose norm, scaled, is not finite
        """
        broken = rows[~torch.linalg.vector_norm(acts * scale, dim=1).square().isfinite()]
        if not len(broken):
            return
        first = int(broken.min())
        number = int(torch.searchsorted(self._ends, first, right=True))
        store, first = self.stores[number], first - self._starts[number]
        sizes = store.shard_rows
        ends = torch.tensor(sizes).cumsum(0)
        shard = int(torch.searchsorted(ends, first, right=True))
        row = first - int(ends[shard]) + sizes[shard]
        path = store.folder.describe(data_name(shard, store.hook_point(self.hook_point)))
        raise FloatingPointError(
            f"{what}: row {row} of shard {shard} ({path}, both from 0) holds NaN, infinite or too large "
            f"values. `saelens-lite verify {shlex.quote(str(store.path))}` finds altered files, and --repair "
            "makes them anew; then run the same command again: it resumes at the last checkpoint"
        )
