"""The feature table: the strongest firings of each latent, as arrays and as something to read."""

from __future__ import annotations

import html
from collections.abc import Iterator
from dataclasses import dataclass

from torch import Tensor

from ..latents.text_windows import Context, Contexts, visible

_SHOWN_LATENTS = 10
_SHOWN_FIRINGS = 5


@dataclass(frozen=True, slots=True)
class Firing:
    """One token on which a latent fired. value: its activation; the rest says where (see Context)."""

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
    """The strongest firings of one latent, strongest first, and how often it fires.

    n_fired: of n_tokens
    """

    latent: int
    n_fired: int
    n_tokens: int
    firings: tuple[Firing, ...]

    def __iter__(self) -> Iterator[Firing]:
        return iter(self.firings)

    def __len__(self) -> int:
        return len(self.firings)

    def __getitem__(self, i: int) -> Firing:
        return self.firings[i]

    @property
    def density(self) -> float:
        return self.n_fired / self.n_tokens

    def __repr__(self) -> str:
        return "\n".join([self._heading(), *(repr(firing) for firing in self.firings)])

    def _repr_html_(self) -> str:
        """A table without script, for notebooks; every piece of text is escaped."""
        rows = "".join(
            f"<tr><td style='text-align:right'>{firing.value:.3f}</td><td "
            "style='text-align:left;white-space:pre-wrap'>"
            f"<bdi>{_escape(firing.before)}</bdi><b "
            f"style='text-decoration:underline'><bdi>{_escape(firing.token)}</bdi></b>"
            f"<bdi>{_escape(firing.after)}</bdi></td></tr>"
            for firing in self.firings
        )
        return (
            f"<p>{_escape(self._heading())}</p><table><tr><th>activation</th><th>text</th></tr>{rows}</table>"
        )

    def _heading(self) -> str:
        return f"latent {self.latent}: fires on {self.n_fired:,} of {self.n_tokens:,} tokens ({self.density:.3%})"


@dataclass(frozen=True, slots=True, eq=False)
class FeatureTable:
    """The n strongest firings of each latent.

    latents: int64[m]
    values: float[m n], strongest first; equal values in the order of their rows; 0 where it fired fewer than
        n times
    rows: int64[m n], row of the store of each; -1 where it fired fewer than n times
    n_fired: int64[m], tokens on which each latent fired, of n_tokens
    contexts: looks up the text of a row
    """

    latents: Tensor
    values: Tensor
    rows: Tensor
    n_fired: Tensor
    n_tokens: int
    contexts: Contexts

    def latent(self, latent: int, n: int | None = None) -> LatentFirings:
        """The strongest firings of one latent, n or all that the table has, with their text.

        raises: ValueError when the table lacks the latent
        """
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
            tokens = " ".join(
                repr(visible(f.token)) if f.context.tokens else f"row {f.row}"
                for f in self.latent(latent).firings[:_SHOWN_FIRINGS]
            )
            lines.append(
                f"  {latent:>7}  max {self.values[i, 0]:8.3f}  {self.n_fired[i] / self.n_tokens:9.4%}  "
                f"{tokens}"
            )
        return "\n".join(lines + ["  … .latent(i) for one with its text"] * (len(self) > _SHOWN_LATENTS))

    def _repr_html_(self) -> str:
        """A table without script, for notebooks; every piece of text is escaped."""
        rows = "".join(
            f"<tr><td>{latent}</td><td>{self.values[i, 0]:.3f}</td><td>{self.n_fired[i] / self.n_tokens:.4%}</td>"
            "<td style='text-align:left'>"
            + " ".join(
                f"<code><bdi>{_escape(f.token)}</bdi></code>"
                for f in self.latent(latent).firings[:_SHOWN_FIRINGS]
            )
            + "</td></tr>"
            for i, latent in self._shown()
        )
        head = "<tr><th>latent</th><th>max activation</th><th>density</th><th>strongest tokens</th></tr>"
        return f"<p>{_escape(self._heading())}</p><table>{head}{rows}</table>"

    def _shown(self) -> list[tuple[int, int]]:
        """(row of the table, latent) of the latents that a summary shows: those that fire strongest."""
        if self.values.shape[1] == 0:
            return []
        order = self.values[:, 0].argsort(descending=True, stable=True)[:_SHOWN_LATENTS]
        return [(i, int(self.latents[i])) for i in order.tolist()]

    def _heading(self) -> str:
        silent = int((self.n_fired == 0).sum())
        return (
            f"FeatureTable: top {self.values.shape[1]} firings of {len(self):,} latents over "
            f"{self.n_tokens:,} tokens "
            f"({silent:,} never fired); the strongest {len(self._shown())}:"
        )


def _escape(text: str) -> str:
    return html.escape(visible(text), quote=True)
