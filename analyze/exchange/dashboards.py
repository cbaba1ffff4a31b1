"""Dashboards of latents as columns, which every format is written from and read into.

What a dashboard says of a latent: how often it fires and how strongly, its firings with the tokens around
them, the tokens it promotes, the neurons and latents near it. Lists whose lengths differ from latent to
latent lie flat in one array, so that nothing is done number by number.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from saelens_lite.json_data import loads

INTEGERS = ("neuron_alignment_indices", "correlated_neurons_indices", "correlated_features_indices")
TOKENS = ("pos_str", "neg_str")
NUMBERS = (
    "neuron_alignment_values", "neuron_alignment_l1",
    "correlated_neurons_l1", "correlated_neurons_pearson",
    "correlated_features_l1", "correlated_features_pearson",
    "neg_values", "pos_values",
    "freq_hist_data_bar_values", "freq_hist_data_bar_heights",
    "logits_hist_data_bar_heights", "logits_hist_data_bar_values",
    "decoder_weights_dist", "vector",
)  # fmt: skip
LISTS = (*INTEGERS, *TOKENS, *NUMBERS)
"""What is a list for each latent, by its name in SAEDashboard's batches. TOKENS are ids here."""


class Ragged(NamedTuple):
    """Lists of different lengths: list i is values[offsets[i]:offsets[i + 1]]."""

    values: np.ndarray
    offsets: np.ndarray

    @classmethod
    def of(cls, lists: Sequence[Sequence[Any]], dtype: type) -> Ragged:
        offsets = np.zeros(len(lists) + 1, dtype=np.int64)
        np.cumsum([len(one) for one in lists], out=offsets[1:])
        return cls(np.array([value for one in lists for value in one], dtype=dtype), offsets)

    @classmethod
    def of_rows(cls, rows: np.ndarray, there: np.ndarray | None = None) -> Ragged:
        """Of an array [n m], without the places where `there` is False."""
        sizes = np.full(len(rows), rows.shape[1]) if there is None else there.sum(1)
        offsets = np.zeros(len(rows) + 1, dtype=np.int64)
        np.cumsum(sizes, out=offsets[1:])
        return cls(rows.reshape(-1) if there is None else rows[there], offsets)

    @classmethod
    def empty(cls, n: int, dtype: type) -> Ragged:
        return cls(np.zeros(0, dtype), np.zeros(n + 1, dtype=np.int64))

    def lists(self) -> list[list[Any]]:
        return cut(self.values.tolist(), self.offsets)


def cut(flat: list[Any], offsets: np.ndarray) -> list[list[Any]]:
    return [flat[start:end] for start, end in pairwise(offsets.tolist())]


def places(
    values: Sequence[Sequence[float]], bins: Sequence[Sequence[float]], *readings: Sequence[int]
) -> list[int]:
    """The place in each window of the token that it was chosen for: of several readings of a file, or each
    window's strongest token, that under which most windows hold a value of their interval; of equal ones the
    first. Where it lies outside a window, the strongest.

    values: of the tokens of each window; bins: (low, high, …) of its interval
    """

    def fits(of: Sequence[float], bin_: Sequence[float], at: int) -> bool:
        return 0 <= at < len(of) and of[at] > 0 and bin_[0] - 1e-3 <= of[at] <= bin_[1] + 1e-3

    strongest = [max(range(len(of)), key=of.__getitem__) for of in values]
    best = max([*readings, strongest], key=lambda at: sum(map(fits, values, bins, at)))
    return [
        at if 0 <= at < len(of) else most for of, at, most in zip(values, best, strongest, strict=True)
    ]


@dataclass(frozen=True, slots=True, eq=False)
class Dashboards:
    """Dashboards of n latents, with w windows of text and t tokens in them.

    facts: where they come from: model_id, layer, sae_set, sae_id_suffix, hook_name, dataset,
        n_prompts_total, n_tokens_in_prompt, created_at
    latents: int64[n]; d_sae: latents of the dictionary, of which these may be some
    frac_nonzero, largest: float64[n], share of tokens on which it fires, and its largest activation
    lists: by name (LISTS), a list a latent
    windows: int64[n + 1], the span of each latent among the windows
    bins: float64[w 3], the interval that a window was chosen from: low, high, and the share of tokens in it;
        −1, the largest activation and −1 for the strongest firings
    prompt, position, at: int64[w], which text, where in it, and the place of that token among the window's
    tokens: ids of each window's tokens; acts, logits: float64[t], activation and lens logit of each; no
        logits where they are not known
    texts: the text of each id
    """

    facts: dict[str, Any]
    latents: np.ndarray
    d_sae: int
    frac_nonzero: np.ndarray
    largest: np.ndarray
    lists: dict[str, Ragged]
    windows: np.ndarray
    bins: np.ndarray
    prompt: np.ndarray
    position: np.ndarray
    at: np.ndarray
    tokens: Ragged
    acts: np.ndarray
    logits: np.ndarray
    texts: dict[int, str]

    def window_texts(self) -> list[list[str]]:
        """The tokens of each window as text."""
        return cut([self.texts[i] for i in self.tokens.values.tolist()], self.tokens.offsets)

    def list_texts(self, name: str) -> list[list[str]]:
        """The tokens of one of TOKENS as text."""
        return [[self.texts[i] for i in ids] for ids in self.lists[name].lists()]

    def rounded(self, name: str, decimals: int) -> list[list[Any]]:
        """One of the lists as Python numbers."""
        of = self.lists[name]
        values = of.values if of.values.dtype.kind == "i" else np.round(of.values, decimals) + 0.0
        return cut(values.tolist(), of.offsets)

    def tensors(self) -> dict[str, Tensor]:
        """Everything as tensors by name, for a safetensors file."""
        arrays = {name: getattr(self, name) for name in _ARRAYS} | {
            "token_ids": self.tokens.values,
            "token_offsets": self.tokens.offsets,
        }
        for name, of in self.lists.items():
            arrays |= {f"{name}.values": of.values, f"{name}.offsets": of.offsets}
        words = {"facts": self.facts, "d_sae": self.d_sae, "texts": [*self.texts.items()]}
        arrays["words"] = np.frombuffer(json.dumps(words).encode(), dtype=np.uint8)
        return {name: torch.from_numpy(np.array(array)) for name, array in arrays.items()}

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor]) -> Dashboards:
        """From what `tensors` gave."""
        arrays = {name: tensor.numpy() for name, tensor in tensors.items()}
        words = loads(arrays["words"].tobytes())
        return cls(
            **{name: arrays[name] for name in _ARRAYS},
            facts=words["facts"],
            d_sae=words["d_sae"],
            texts=dict(words["texts"]),
            tokens=Ragged(arrays["token_ids"], arrays["token_offsets"]),
            lists={name: Ragged(arrays[f"{name}.values"], arrays[f"{name}.offsets"]) for name in LISTS},
        )


_ARRAYS = (
    "latents", "frac_nonzero", "largest", "windows", "bins", "prompt", "position", "at", "acts", "logits",
)  # fmt: skip


class TextIds:
    """Ids for texts that came without: their places in the order in which they come."""

    def __init__(self) -> None:
        self._ids: dict[str, int] = {}

    def of(self, texts: Sequence[str]) -> list[int]:
        ids = self._ids
        return [ids.setdefault(text, len(ids)) for text in texts]

    def texts(self) -> dict[int, str]:
        return {i: text for text, i in self._ids.items()}
