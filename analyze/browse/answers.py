"""What a live page asks and what it gets: from an index, and from the model and the SAE where they are at
hand.

A question has a name and parameters, which are data from outside: each is held to a form, and none names a
file. One question at a time uses the model.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from saelens_lite.json_data import Form, misfit
from saelens_lite.lm.token_text import token_of
from saelens_lite.sae.autoencoder import SparseAutoencoder

from ..evaluation.recorded import recorded_evaluation
from ..evaluation.result import Evaluation
from ..index.feature_index import FeatureIndex
from ..latents.compatibility import fits
from ..latents.geometry import decoder_norms
from ..latents.text_latents import encode_text
from ..latents.text_windows import visible
from ..matching import IndexMatch
from .head import page_head
from .known_firings import KnownFirings
from .latent_details import as_shown, latent_details
from .latent_table import latent_table
from .payload import TOKENS, packed
from .steering import SteeringPlan, continuations, probability_change
from .token_texts import TokenTexts

BEFORE, AFTER, N_EXAMPLES = 24, 12, 20
MOST_LATENTS, MOST_TOKENS, MOST_TEXT = 64, 1000, 200_000
_WAIT_S = 20.0
_STEERING: Form = {
    "latents": [int], "mode": str, "dose": float, "where": str, "prompt": str, "max_new_tokens?": int,
    "temperature?": float, "seed?": int, "token?": str,
}  # fmt: skip
FORMS: dict[str, Form] = {
    "start": {},
    "latents": {"latents": [int]},
    "mark": {"latent": int, "label": str, "notes": str, "starred": bool},
    "search": {"text": str},
    "text": {"text": str},
    "steer": _STEERING,
    "effect": _STEERING,
    "compare": {},
    "other": {"latents": [int]},
}
"""The questions, and the form of the parameters of each."""


@dataclass(frozen=True, slots=True)
class Comparison:
    """Another index of the same store, and which latents are one."""

    index: FeatureIndex
    match: IndexMatch


class Answers:
    """Answers questions about an index.

    model, sae: for text of the reader's own and steering; both or neither
    evaluation: one of the SAE, or its file, for the head of the page
    raises: ValueError where SAE, model, index and evaluation do not belong together
    """

    def __init__(
        self,
        index: FeatureIndex,
        model: nn.Module | None = None,
        sae: SparseAutoencoder | None = None,
        *,
        evaluation: Evaluation | str | os.PathLike[str] | None = None,
        compared: Comparison | None = None,
    ) -> None:
        if (model is None) != (sae is None):
            raise ValueError(
                "a live page expected model and sae, or neither of them: it needs both to read text"
            )
        if sae is not None:
            index.check(sae)
            fits(sae, model, index.hook_point)
        self.index, self.model, self.sae = index, model, sae
        self._evaluation = None
        if evaluation is not None:
            self._evaluation = recorded_evaluation(evaluation, index.hook_point)
        self._compared = compared
        self._texts, self._known, self._other_known = TokenTexts(index.contexts.tokenizer), None, None
        self._one_at_a_time = threading.Lock()

    @property
    def can(self) -> list[str]:
        """What a page may offer."""
        live = (
            ["text", "steer"] if self.model is not None and self.index.contexts.tokenizer is not None else []
        )
        found = ["mark", *(["search"] if self.index.tokens.has_tokens else []), *live]
        return found + ["compare"] * (self._compared is not None)

    def answer(self, name: str, params: Any) -> bytes | dict[str, Any] | Iterator[dict[str, Any]]:
        """Arrays as bytes, JSON, or JSON that comes in pieces; closing these ends the work.

        raises: ValueError for a question that there is not, or parameters that are not of its form;
            RuntimeError where the model is busy
        """
        if name not in FORMS or (name in ("text", "steer", "effect") and "text" not in self.can):
            raise ValueError(
                f"expected a question of {', '.join(FORMS)} that has an answer here, got {name!r:.40}"
            )
        if wrong := misfit(params, FORMS[name]):
            raise ValueError(f"{name}: {wrong}")
        return getattr(self, f"_{name}")(params)

    def _start(self, params: dict[str, Any]) -> bytes:
        table = latent_table(self.index, None if self.sae is None else decoder_norms(self.sae))
        head = page_head(self.index, self._texts, BEFORE, AFTER, evaluation=self._evaluation)
        head |= {"can": self.can, "panels": None, "chunk": 0, "embedded": False, "exact": False}
        return packed(table, self._texts.wide, head | {"texts": self._texts_of(table)})

    def _latents(self, params: dict[str, Any]) -> bytes:
        self._known = self._known or KnownFirings(self.index)
        return self._details(self.index, self._known, params)

    def _details(self, index: FeatureIndex, known: KnownFirings, params: dict[str, Any]) -> bytes:
        latents = self._checked(params["latents"], index)
        found = latent_details(
            index, torch.tensor(latents), known, n_examples=N_EXAMPLES, before=BEFORE, after=AFTER
        )
        return packed(as_shown(found), self._texts.wide, {"texts": self._texts_of(found)})

    def _mark(self, params: dict[str, Any]) -> dict[str, Any]:
        latent, label, notes, starred = (params[name] for name in ("latent", "label", "notes", "starred"))
        if label or notes or starred:
            self.index.labels.set(latent, label, notes, starred)
        else:
            self.index.labels.remove(latent)
        return {}

    def _search(self, params: dict[str, Any]) -> dict[str, Any]:
        """Latents that mark a text where it occurs among the sampled tokens."""
        text = params["text"][:MOST_TOKENS]
        if not text or not self.index.tokens.has_tokens:
            return {"latents": []}
        return {"latents": [match.latent for match in self.index.text(text, MOST_LATENTS)]}

    def _text(self, params: dict[str, Any]) -> bytes:
        assert self.model is not None and self.sae is not None
        with self._model():
            found = encode_text(
                self.model, self.index.contexts.tokenizer, self.sae, params["text"][:MOST_TEXT],
                hook_point=self.index.hook_point,
            )  # fmt: skip
        latents = found.latents
        fires = latents.values > 0
        arrays = {
            "at": latents.row_ids()[fires].int(),
            "latent": latents.indices[fires].int(),
            "act": latents.values[fires].float(),
        }
        said = {"pieces": [visible(token) for token in found.tokens], "n_special": found.n_bos}
        return packed(arrays, True, said)

    def _steer(self, params: dict[str, Any]) -> Iterator[dict[str, Any]]:
        plan, n = self._plan(params), min(params.get("max_new_tokens") or 60, MOST_TOKENS)
        assert self.model is not None and self.sae is not None
        pieces = continuations(
            self.model, self.index.contexts.tokenizer, self.sae, plan, params["prompt"][:MOST_TEXT],
            hook_point=self.index.hook_point, max_new_tokens=n,
            temperature=max(0.0, params.get("temperature") or 0.0), seed=params.get("seed") or 0,
        )  # fmt: skip
        return self._shown(pieces)

    def _shown(self, pieces: Iterator[dict[str, Any]]) -> Iterator[dict[str, Any]]:
        with self._model():
            yield from pieces

    def _effect(self, params: dict[str, Any]) -> dict[str, Any]:
        assert self.model is not None and self.sae is not None
        plan, tokenizer = self._plan(params), self.index.contexts.tokenizer
        token = token_of(tokenizer, params.get("token") or "")
        with self._model():
            return probability_change(
                self.model, tokenizer, self.sae, plan, params["prompt"][:MOST_TEXT], token,
                hook_point=self.index.hook_point,
            )  # fmt: skip

    def _plan(self, params: dict[str, Any]) -> SteeringPlan:
        return SteeringPlan(
            latents=tuple(self._checked(params["latents"], self.index)),
            mode=params["mode"],
            dose=float(params["dose"]),
            where=params["where"] if params["where"] in ("all", "prompt", "generated") else "all",
            max_act=self.index.column("top_values")[:, 0].float(),
            rates=self.index.density.density,
        )

    def _compare(self, params: dict[str, Any]) -> bytes:
        compared = self._comparison()
        match, other = compared.match, latent_table(compared.index)
        arrays = {
            "a": match.latents_a.int(), "b": match.latents_b.int(), "cosine": match.cosine.float(),
            "correlation": match.correlation.float(), "only_a": match.unmatched_a.int(),
            "only_b": match.unmatched_b.int(), "gist": other["gist"], "fired": other["fired"], "max":
            other["max"],
        }  # fmt: skip
        labels = [[one.latent, one.label] for one in compared.index.labels.all() if one.label]
        said = {"name": compared.index.path.name, "own": self.index.path.name, "labels": labels}
        said["found"] = match.in_words()
        return packed(arrays, self._texts.wide, said | {"texts": self._texts_of(arrays)})

    def _other(self, params: dict[str, Any]) -> bytes:
        index = self._comparison().index
        self._other_known = self._other_known or KnownFirings(index)
        return self._details(index, self._other_known, params)

    def _comparison(self) -> Comparison:
        if self._compared is None:
            raise ValueError("expected a second index to compare with, there is none: give --compare INDEX")
        return self._compared

    def _model(self) -> _Held:
        return _Held(self._one_at_a_time)

    def _texts_of(self, arrays: dict[str, Any]) -> dict[int, str | list[int]]:
        ids = [arrays[name].flatten() for name in TOKENS if name in arrays]
        return self._texts.of(torch.cat(ids).unique().tolist()) if ids else {}

    def _checked(self, latents: list[int], index: FeatureIndex) -> list[int]:
        beyond = [latent for latent in latents if latent >= len(index)]
        if beyond or not latents or len(latents) > MOST_LATENTS:
            raise ValueError(
                f"expected 1 to {MOST_LATENTS} latents from 0 to {len(index) - 1}, got {latents[:8]}"
            )
        return latents


class _Held:
    """The model, for one question at a time. raises: RuntimeError where another keeps it"""

    def __init__(self, lock: threading.Lock) -> None:
        self._lock = lock

    def __enter__(self) -> None:
        if not self._lock.acquire(timeout=_WAIT_S):
            raise RuntimeError("the model is busy with another question: stop that one first")

    def __exit__(self, *_: Any) -> None:
        self._lock.release()
