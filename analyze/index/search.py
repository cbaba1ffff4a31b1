"""Finding latents: by the token, text or regular expression they fire on, by a direction, by their numbers.

Searches by token read the rows that the index keeps whole (token_sample.py): they need no model, and rare
tokens may be missing. To find what fires on your own text, give SAE and model: one forward pass.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from saelens_lite.arguments import takes_folders
from saelens_lite.lm.token_text import id_reading, token_strings
from saelens_lite.misfits import names_misfits
from saelens_lite.sae.autoencoder import SparseAutoencoder

from ..latents.density import LatentDensity
from ..latents.text_latents import TokenFirings, encode_text
from ..latents.text_windows import Contexts, token_text, visible
from .latent_facts import LatentFacts
from .token_sample import TokenSample
from .token_table import TokenTable, token_ids
from .unigram import UnigramLatent, UnigramShare

NUMBERS = ("density", "max", "token_entropy", "token_share", "top_token_share", "pair_share", "output_score")


class Searchable(Protocol):
    """What a search reads of a FeatureIndex."""

    tokens: TokenTable
    contexts: Contexts

    @property
    def path(self) -> Path: ...

    @property
    def token_sample(self) -> TokenSample: ...

    @property
    def density(self) -> LatentDensity: ...

    @property
    def unigram(self) -> UnigramShare: ...

    def column(self, name: str) -> Tensor: ...

    def __len__(self) -> int: ...

    def __getitem__(self, latent: int) -> LatentFacts: ...


@dataclass(frozen=True, slots=True)
class Match:
    """A latent and how well it fits: f1 of firing as a sign of the rows asked for, and what that is made of.

    fired: of the rows asked for, those it fired on; n_rows: those asked for; elsewhere: other sampled rows it
        fired on
    mean: its mean activation on `fired`
    """

    latent: int
    fired: int
    n_rows: int
    elsewhere: int
    mean: float

    @property
    def f1(self) -> float:
        return 2 * self.fired / (self.fired + self.elsewhere + self.n_rows)

    def __repr__(self) -> str:
        return (
            f"latent {self.latent:>7}  f1 {self.f1:.3f}  mean {self.mean:.3g}  fires on {self.fired} of "
            f"{self.n_rows} and on {self.elsewhere} others"
        )


def fires_on_rows(index: Searchable, asked: Tensor, n: int = 10) -> list[Match]:
    """The latents that mark the sampled rows in `asked` best, by f1; at equal f1 the lower latent first.

    asked: bool[len(index.token_sample.rows)]
    """
    sample, n_rows = index.token_sample, int(asked.sum())
    counts, inside = sample.counts(len(index)), asked[sample.row_ids()]
    fired = torch.bincount(sample.latents[inside], minlength=len(index))
    total = torch.bincount(
        sample.latents[inside], weights=sample.values[inside].double(), minlength=len(index)
    )
    f1 = 2 * fired / (counts + n_rows).clamp_min(1).double()
    best = f1.argsort(descending=True, stable=True)[:n]
    return [
        Match(i, int(fired[i]), n_rows, int(counts[i] - fired[i]), float(total[i] / fired[i]))
        for i in best.tolist()
        if fired[i]
    ]


@names_misfits
def fires_on_token(index: Searchable, token: str | int, n: int = 10) -> list[Match]:
    """The latents that mark a token best among the sampled rows.

    token: its id, or its text as it stands in a text (" Paris"), which must be one token
    raises: ValueError for text of no token or of several, or an index without tokens
    """
    _check_tokens(index)
    return fires_on_rows(index, token_ids(index.tokens, index.token_sample.rows) == _one_id(index, token), n)


@names_misfits
def fires_on_regex(index: Searchable, pattern: str, n: int = 10) -> list[Match]:
    """The latents that mark tokens within matches of a regular expression best among the sampled rows.

    A token counts when it shares a character with a match in the text of its context; every context with a
    sampled row is read.
    raises: ValueError for a pattern that is empty or no regular expression, or an index without tokens
    """
    if not pattern:
        raise ValueError("expected a regular expression, got an empty text: it would match everywhere")
    try:
        expression = re.compile(pattern)
    except re.error as error:
        raise ValueError(f"expected a regular expression, got {pattern!r}: {error}") from error
    rows = index.token_sample.rows
    return fires_on_rows(index, _matched(index, rows, expression), n)


@takes_folders
@names_misfits
def fires_on_text(
    sae: SparseAutoencoder,
    model: nn.Module,
    tokenizer: Any,
    text: str,
    n: int = 5,
    *,
    hook_point: str | None = None,
) -> list[TokenFirings]:
    """The latents that fire on each token of a text, the n strongest of each: `encode_text(…).top(n)`."""
    return encode_text(model, tokenizer, sae, text, hook_point=hook_point).top(n)


@takes_folders
@names_misfits
def nearest_to(sae: SparseAutoencoder, direction: Tensor, n: int = 10) -> list[tuple[int, float]]:
    """(latent, cosine) of the decoder rows that point most nearly along a direction float[d_model].

    raises: ValueError for another shape, or a direction that is zero or not finite
    """
    direction = torch.as_tensor(direction).detach().float().cpu()
    if direction.shape != (sae.d_model,) or not direction.isfinite().all() or not direction.any():
        raise ValueError(
            f"expected a finite direction [d_model={sae.d_model}] that is not zero, got "
            f"{list(direction.shape)}{'' if direction.isfinite().all() else ' with nan or infinity'}"
        )
    with torch.no_grad():
        cosines = torch.cosine_similarity(sae.W_dec.float().cpu(), direction, dim=1)
    best = cosines.argsort(descending=True, stable=True)[:n]
    return [(i, float(cosines[i])) for i in best.tolist()]


@names_misfits
def promotes_token(
    index: Searchable, token: str | int, n: int = 10, demotes: bool = False
) -> list[tuple[int, float]]:
    """(latent, logit) of the latents whose logit lens has a token among its top (or bottom) ones, strongest
    first.

    raises: ValueError for text of no token or of several, or an index without logit lens
    """
    end = "demoted" if demotes else "promoted"
    ids, logits = index.column(f"{end}_ids"), index.column(f"{end}_logits")
    latents, places = (ids == _one_id(index, token)).nonzero(as_tuple=True)
    values = logits[latents, places]
    order = values.argsort(descending=not demotes, stable=True)[:n]
    return list(zip(latents[order].tolist(), values[order].tolist(), strict=True))


@names_misfits
def unigram_latents(index: Searchable, text: str = "", n: int = 10) -> list[UnigramLatent]:
    """The latents that fire on one token nearly always (see unigram.py), those that fire most first.

    text: only those whose token holds it, in any case
    raises: ValueError for an index of rows without text
    """
    counts, found = index.column("counts"), []
    flagged, tokens = index.unigram.flagged.nonzero().flatten(), index.column("common_token")
    for latent in flagged[counts[flagged].argsort(descending=True, stable=True)].tolist():
        token = token_text(index.contexts.tokenizer, int(tokens[latent]))
        if text.casefold() in token.casefold():
            of = index[latent]
            shares = (of.token_share, of.top_token_share, of.pair_share)
            found.append(UnigramLatent(latent, visible(token), of.n_fired, *shares))
        if len(found) == n:
            break
    return found


def numbers(index: Searchable, by: str) -> Tensor:
    """One number of every latent: float64[d_sae]. by: one of NUMBERS; max is the largest activation.

    raises: ValueError for another name, or one that the index lacks
    """
    if by not in NUMBERS:
        raise ValueError(f"expected a number of {', '.join(NUMBERS)}, got {by!r}")
    if by == "density":
        return index.density.density
    return (index.column("top_values")[:, 0] if by == "max" else index.column(by)).double()


@names_misfits
def by_number(
    index: Searchable,
    by: str,
    low: float = -math.inf,
    high: float = math.inf,
    n: int = 10,
    ascending: bool = False,
) -> list[tuple[int, float]]:
    """(latent, number) of the latents with low <= number <= high, largest first; nan counts as none. by: one
    of NUMBERS."""
    values = numbers(index, by)
    within = ((values >= low) & (values <= high)).nonzero().flatten()
    order = within[values[within].argsort(descending=not ascending, stable=True)][:n]
    return [(i, float(values[i])) for i in order.tolist()]


def _check_tokens(index: Searchable) -> None:
    if not index.tokens.has_tokens:
        raise ValueError(f"{index.path} is of rows without text: search by direction or by numbers")


def _one_id(index: Searchable, token: str | int) -> int:
    """The id of a token. raises: ValueError for text of no token or of several."""
    if isinstance(token, int):
        return token
    tokenizer = index.contexts.tokenizer
    if not token or tokenizer is None:
        raise ValueError(
            f"expected the text of a token, got {token!r}" if tokenizer else "no tokenizer: give a token's id"
        )
    if (found := id_reading(tokenizer, token)) is not None:
        return found
    if id_reading(tokenizer, spaced := f" {token}") is not None:
        raise ValueError(
            f"expected the text of one token, {token!r} is none but {spaced!r} is: search that, or by regex"
        )
    pieces = token_strings(tokenizer, tokenizer(token, add_special_tokens=False).input_ids)
    raise ValueError(
        f"expected the text of one token, {token!r} is {len(pieces)}: {pieces}; search one of them, or the "
        "text by regex"
    )


def _matched(index: Searchable, rows: Tensor, expression: re.Pattern[str]) -> Tensor:
    """Which of the rows int64[n], ascending, lie in a match within their context: bool[n]."""
    _check_tokens(index)
    matched, first_row = torch.zeros(len(rows), dtype=torch.bool), 0
    for shard, n_rows in enumerate(index.tokens.shard_rows):
        start, stop = torch.searchsorted(rows, torch.tensor([first_row, first_row + n_rows])).tolist()
        tokens = index.tokens.tokens(shard)
        sequences, positions = tokens.kept.nonzero(as_tuple=True)
        local = rows[start:stop] - first_row
        for sequence in sequences[local].unique().tolist():
            within = (sequences[local] == sequence).nonzero().flatten()
            length = int(tokens.attended[sequence].sum())
            hit = _tokens_matched(
                index.contexts.strings(tokens.input_ids[sequence, :length].tolist()), expression
            )
            matched[start + within] = hit[positions[local[within]]]
        first_row += n_rows
    return matched


def _tokens_matched(pieces: Sequence[str], expression: re.Pattern[str]) -> Tensor:
    """Which tokens share a character with a match in the text that their pieces make: bool[n]."""
    ends = torch.tensor([len(piece) for piece in pieces]).cumsum(0)
    starts = ends - torch.tensor([len(piece) for piece in pieces])
    hit = torch.zeros(len(pieces), dtype=torch.bool)
    for found in expression.finditer("".join(pieces)):
        if found.end() > found.start():  # an empty match, as of "x*" between letters, shares no character
            hit |= (starts < found.end()) & (ends > found.start())
    return hit
