"""The feature table: the strongest firings of each latent, as arrays and as something to read."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from saelens_lite.misfits import names_misfits
from saelens_lite.text_table import Tabular

from ..latents.text_windows import Context, Contexts, visible
from ..render.html import rendered

_SHOWN_LATENTS = 10
_SHOWN_FIRINGS = 5


@dataclass(frozen=True, slots=True)
class Firing:
    """One token on which a latent fired. value: its activation"""

    value: float
    context: Context

    @property
    def token(self) -> str:
        return self.context.token

    @property
    def before(self) -> str:
        return self.context.before

    @property
    def after(self) -> str:
        return self.context.after

    @property
    def row(self) -> int:
        return self.context.row

    @property
    def document(self) -> int:
        return self.context.document

    @property
    def position(self) -> int:
        return self.context.position

    def __repr__(self) -> str:
        if not self.context.tokens:
            return f"{self.value:9.3f}  row {self.row}"
        return f"{self.value:9.3f}  {visible(self.before)}⟦{visible(self.token)}⟧{visible(self.after)}"


@dataclass(frozen=True, slots=True)
class LatentFirings:
    """The strongest firings of one latent, strongest first, and on how many of n_tokens it fires."""

    latent: int
    n_fired: int
    n_tokens: int
    firings: tuple[Firing, ...]

    def __iter__(self) -> Iterator[Firing]:
        return iter(self.firings)

    def __len__(self) -> int:
        return len(self.firings)

    @names_misfits
    def __getitem__(self, i: int) -> Firing:
        return self.firings[i]

    @property
    def density(self) -> float:
        return self.n_fired / self.n_tokens

    def __repr__(self) -> str:
        return "\n".join([self._heading(), *(repr(firing) for firing in self.firings)])

    def _repr_html_(self) -> str:
        return rendered("latent_firings.html", heading=self._heading(), firings=self.firings)

    def _heading(self) -> str:
        share = f"{self.n_fired:,} of {self.n_tokens:,} tokens ({self.density:.3%})"
        return f"latent {self.latent}: fires on {share}"


@dataclass(frozen=True, slots=True, eq=False)
class FeatureTable(Tabular):
    """The n strongest firings of each latent.

    latents, n_fired: int64[m], the tokens on which each fired, of n_tokens
    values: float[m n], strongest first, equal ones by row; 0 where it fired fewer than n times
    rows: int64[m n], of the store; -1 where it fired fewer than n times
    """

    latents: Tensor
    values: Tensor
    rows: Tensor
    n_fired: Tensor
    n_tokens: int
    contexts: Contexts

    @names_misfits
    def latent(self, latent: int, n: int | None = None) -> LatentFirings:
        """The n strongest firings of one latent, or all of the table. raises: ValueError if it lacks it"""
        found = (self.latents == latent).nonzero()
        if not len(found):
            raise ValueError(
                f"latent {latent} is not in this table of {len(self.latents)} latents; "
                "ask max_activating_tokens for it, or leave latents= out to have all"
            )
        i = int(found[0])
        kept = zip(self.values[i, :n].tolist(), self.rows[i, :n].tolist())
        firings = tuple(Firing(value, self.contexts.at(row)) for value, row in kept if row >= 0)
        return LatentFirings(latent, int(self.n_fired[i]), self.n_tokens, firings)

    def __len__(self) -> int:
        return len(self.latents)

    def __repr__(self) -> str:
        lines = [self._heading()]
        for i, latent in self._shown():
            shown = self.latent(latent, _SHOWN_FIRINGS)
            tokens = " ".join(repr(visible(f.token)) if f.context.tokens else f"row {f.row}" for f in shown)
            largest, density = self.values[i, 0], self.n_fired[i] / self.n_tokens
            lines.append(f"  {latent:>7}  max {largest:8.3f}  {density:9.4%}  {tokens}")
        return "\n".join(lines + ["  … .latent(i) for one with its text"] * (len(self) > _SHOWN_LATENTS))

    def _repr_html_(self) -> str:
        shown, values = self._shown(), self.values
        rows = [(latent, values[i, 0].item(), self.latent(latent, _SHOWN_FIRINGS)) for i, latent in shown]
        return rendered("feature_table.html", heading=self._heading(), rows=rows)

    def _records(self) -> list[dict[str, Any]]:
        """The firings, a row each."""
        names = ("row", "document", "position", "before", "token", "after")
        return [
            {"latent": latent, "value": firing.value} | {name: getattr(firing, name) for name in names}
            for latent in self.latents.tolist()
            for firing in self.latent(latent)
        ]

    def _shown(self) -> list[tuple[int, int]]:
        """(row of the table, latent) of the latents that fire strongest."""
        if self.values.shape[1] == 0:
            return []
        order = self.values[:, 0].argsort(descending=True, stable=True)[:_SHOWN_LATENTS]
        return [(i, int(self.latents[i])) for i in order.tolist()]

    def _heading(self) -> str:
        silent = int((self.n_fired == 0).sum())
        return (
            f"FeatureTable: top {self.values.shape[1]} firings of {len(self):,} latents "
            f"over {self.n_tokens:,} tokens ({silent:,} never fired); the strongest {len(self._shown())}:"
        )
