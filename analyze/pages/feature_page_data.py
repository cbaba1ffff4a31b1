"""What a feature page says of each latent, from an index and the store, as short as JSON can say it;
feature.js draws it.

A token is a number, its place in the page's vocabulary. An example is a list: [activation, row of the store,
document, position in its context, place of the row's token in the window, tokens of the window, activations
in the window]. The last is flat, place, activation, place, activation, …, of those that are not zero; null
stands where a token has no row.
"""

from __future__ import annotations

import math
from array import array
from typing import Any

import torch
from torch import Tensor

from saelens_lite.sae.autoencoder import SparseAutoencoder
from saelens_lite.store.reader import ActivationStore
from saelens_lite.text_table import rounded

from ..attribution.lens import LogitLens
from ..index.feature_index import FeatureIndex
from ..index.latent_facts import N_QUANTILES, LatentFacts
from ..index.token_table import token_ids
from ..latents.store_pass import BLOCK_ROWS, to_cpu
from ..latents.text_windows import Contexts, token_text, visible

BEFORE_TOKENS, AFTER_TOKENS = 24, 12
"""Around the strongest firings; half as many around other examples."""
INTERVAL_EXAMPLES = 5
COMMON_TOKENS = 5


class Vocabulary:
    """The distinct tokens of a page, numbered as they come. texts: visible; ids: in the tokenizer, -1 for
    unknown"""

    def __init__(self) -> None:
        self.texts: list[str] = []
        self.ids: list[int] = []
        self._places: dict[tuple[str, int], int] = {}

    def place(self, text: str, token_id: int = -1) -> int:
        """The number of a token."""
        key = (text, token_id)
        if key not in self._places:
            self._places[key] = len(self.texts)
            self.texts.append(visible(text))
            self.ids.append(token_id)
        return self._places[key]


class Examples:
    """Windows of text around rows, with one latent's activations in them, which `fill` looks up for all at
    once."""

    def __init__(self, contexts: Contexts, vocabulary: Vocabulary, d_sae: int) -> None:
        near = Contexts(
            contexts.store, contexts.tokenizer, contexts.before_tokens // 2, contexts.after_tokens // 2
        )
        self._contexts, self._vocabulary, self._d_sae = {False: contexts, True: near}, vocabulary, d_sae
        self._windows: dict[tuple[bool, int], tuple[list[Any], list[int]]] = {}
        self._made: list[tuple[list[Any], int]] = []  # each example, and how many tokens of it have a row
        self._keys = array("q")  # row · d_sae + latent of each of these tokens

    def around(self, latent: int, value: float, row: int, near: bool = False) -> list[Any]:
        """One example, without the activations of its window. near: half the tokens"""
        if (near, row) not in self._windows:
            contexts = self._contexts[near]
            context = contexts.at(row)
            pieces = zip(context.tokens, contexts.ids_of(context), strict=True)
            window = [self._vocabulary.place(text, token_id) for text, token_id in pieces]
            facts = [row, context.document, context.position, context.at, window]
            self._windows[near, row] = facts, contexts.rows_of(context)
        facts, rows = self._windows[near, row]
        acts = [part for at, other in enumerate(rows) if other < 0 for part in (at, None)]
        known = [other for other in rows if other >= 0]
        example = [rounded(value), *facts, acts]
        self._keys.extend(other * self._d_sae + latent for other in known)
        self._made.append((example, len(known)))
        return example

    def fill(self, sae: SparseAutoencoder, store: ActivationStore, hook_point: str) -> None:
        """Encode the rows of all windows, each once, and write the activations into the examples."""
        keys = (
            torch.frombuffer(self._keys, dtype=torch.int64)
            if self._keys
            else torch.zeros(0, dtype=torch.int64)
        )
        wanted, places = keys.unique(return_inverse=True)
        values = torch.zeros(len(wanted), dtype=torch.float64)
        for rows in (wanted // self._d_sae).unique_consecutive().split(BLOCK_ROWS):
            with torch.no_grad():
                found = to_cpu(sae.encode(store.gather(rows, hook_point).to(sae.device)))
            fired = rows[found.row_ids()] * self._d_sae + found.indices
            at = torch.searchsorted(wanted, fired).clamp_max(len(wanted) - 1)
            hit = (wanted[at] == fired) & (found.values > 0)
            values[at[hit]] = found.values[hit].double()
        start = 0
        for example, n_known in self._made:
            window = values[places[start : start + n_known]]
            without_row = set(example[6][::2])
            known = [at for at in range(len(example[5])) if at not in without_row]
            for at in window.nonzero().flatten().tolist():
                example[5] = self._seen(example[5], known[at])
                example[6] += [known[at], rounded(float(window[at]))]
            start += n_known

    def _seen(self, window: list[int], at: int) -> list[int]:
        """The window with the bytes of a token that is part of a character shown, where it fires."""
        texts, ids = self._vocabulary.texts, self._vocabulary.ids
        if texts[window[at]]:
            return window
        text = self._contexts[False].spelled(ids[window[at]], "")
        return [*window[:at], self._vocabulary.place(text, ids[window[at]]), *window[at + 1 :]]


def features(
    sae: SparseAutoencoder,
    store: ActivationStore,
    hook_point: str,
    index: FeatureIndex,
    latents: Tensor,
    contexts: Contexts,
    vocabulary: Vocabulary,
    n_examples: int,
    lens: LogitLens | None,
) -> list[dict[str, Any]]:
    """What the page shows of each latent. vocabulary: receives the tokens; n_examples: strongest firings of
    each"""
    examples = Examples(contexts, vocabulary, sae.d_sae)
    norms = sae.W_dec[latents.to(sae.device)].detach().float().norm(dim=1).tolist()
    common = _common_tokens(index, latents, contexts, vocabulary)
    found = []
    for place, latent in enumerate(latents.tolist()):
        of = index[latent]
        feature = _numbers(of) | {"norm": rounded(norms[place]), "tokens": common[place]}
        if lens is not None:
            for end in ("top", "bottom"):
                pairs = getattr(lens, end)(latent)
                feature[end] = [[vocabulary.place(token), round(logit, 3)] for token, logit in pairs]
        if of.label is not None:
            feature["label"] = [of.label.label, of.label.notes, of.label.starred]
        feature |= _examples(of, examples, n_examples)
        found.append(feature)
    examples.fill(sae, store, hook_point)
    return found


def _numbers(of: LatentFacts) -> dict[str, Any]:
    """The numbers of one latent, those that are nan left out."""
    n_positions = max((place + 1 for place, n in enumerate(of.positions) if n), default=0)
    numbers: dict[str, Any] = {
        "id": of.latent,
        "fired": of.n_fired,
        "interval": [rounded(end) for end in of.density_interval],
        "first": of.first_fired,
        "last": of.last_fired,
        "max": rounded(of.largest),
        "bins": [of.first_bin, list(of.bin_counts)],
        "positions": list(of.positions[:n_positions]),
        "entropy": rounded(of.token_entropy),
        "share": rounded(of.token_share),
    }
    if of.unigram:
        numbers["unigram"] = True
    if of.quantiles:
        numbers["quantiles"] = [
            rounded(of.quantiles[N_QUANTILES // 2]),
            rounded(of.quantiles[N_QUANTILES - 1]),
        ]
    numbers["score"] = rounded(of.output_score)
    for name in ("cosine", "jaccard", "pmi"):
        numbers[name] = [[other, round(score, 3)] for other, score in getattr(of, name)]
    return {
        name: value for name, value in numbers.items() if not (isinstance(value, float) and math.isnan(value))
    }


def _examples(of: LatentFacts, examples: Examples, n_examples: int) -> dict[str, Any]:
    """The strongest firings, those of each interval [low, high, firings if known, examples], strongest
    interval first, and rows on which it does not fire."""
    whole = sum(len(one.rows) for one in of.intervals) == of.n_fired
    found = []
    for one in reversed(of.intervals):
        shown = [examples.around(of.latent, *firing, near=True) for firing in one.examples(INTERVAL_EXAMPLES)]
        found.append([rounded(one.low), rounded(one.high), len(one.rows) if whole else None, shown])
    strongest = [examples.around(of.latent, *firing) for firing in of.strongest[:n_examples]]
    silent = [examples.around(of.latent, 0.0, row, near=True) for row in of.contrast_rows]
    return {"examples": strongest, "intervals": found, "contrast": silent}


def _common_tokens(
    index: FeatureIndex, latents: Tensor, contexts: Contexts, vocabulary: Vocabulary
) -> list[list[Any]]:
    """Of each latent, how many firings were sampled and the commonest tokens of these: [n, [[token, firings],
    …]]."""
    if not index.tokens.has_tokens or not len(latents):
        return [[0, []] for _ in latents]
    sampled = torch.stack([index.row("sample_rows", latent) for latent in latents.tolist()])
    found = []
    for ids in token_ids(index.tokens, sampled):
        kinds, counts = ids[ids >= 0].unique(return_counts=True)
        order = counts.argsort(descending=True, stable=True)[:COMMON_TOKENS]
        places = [vocabulary.place(token_text(contexts.tokenizer, i), i) for i in kinds[order].tolist()]
        found.append([int(counts.sum()), [list(pair) for pair in zip(places, counts[order].tolist())]])
    return found
