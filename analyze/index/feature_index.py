"""Reading a feature index: everything about one latent, or one number of all latents, mapped from disk."""

from __future__ import annotations

import math
import os
import re
import shlex
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from saelens_lite.errors import FeatureIndexError
from saelens_lite.misfits import names_misfits
from saelens_lite.sae.autoencoder import SparseAutoencoder
from saelens_lite.store.folder import LocalFolder
from saelens_lite.store.reader import ActivationStore

from ..attribution.lens import LogitLens
from ..latents.density import LatentDensity
from ..latents.text_windows import Contexts
from ..render.html import rendered
from .folder import INDEX, PARTS, check_same_sae, identity, index_folder, open_tensors, read_index
from .intervals import intervals, quantile_edges
from .labels import Labels
from .latent_facts import N_QUANTILES, LatentFacts
from .search import Match, fires_on_regex, fires_on_token
from .tally import Tally
from .token_sample import TokenSample
from .token_table import TokenTable
from .unigram import UnigramShare, is_unigram

_SHOWN_LATENTS = 10
_ANALYZE = "`saelens-lite analyze` with the same --sae, --store and --index, and --model"
_OF_MODEL = {f"{end}_{what}": _ANALYZE for end in ("promoted", "demoted") for what in ("ids", "logits")}
_OF_MODEL["output_score"] = f"{_ANALYZE} --output-score"
"""What an index made without a model lacks, and what adds it."""


class FeatureIndex:
    """A finished feature index, open for reading; all data is memory-mapped.

        index = FeatureIndex.open("index/")
        index[1234]                    # everything about one latent
        index.column("counts")         # one number of every latent

    raises, from `open`: FeatureIndexError if the folder is no index, is unfinished, or a file is missing or
        altered
    """

    @names_misfits
    def __init__(
        self, folder: LocalFolder, facts: dict[str, Any], tokenizer: Any, context_tokens: int
    ) -> None:
        self.folder, self._facts = folder, facts
        self.plan: dict[str, Any] = facts["plan"]
        files = facts["files"]
        self._latents = open_tensors(folder, files["latents"]["file"], files["latents"]["bytes"])
        self._tokens = open_tensors(folder, files["tokens"]["file"], files["tokens"]["bytes"])
        self._names = set(self._latents.keys())
        tokenizer_name, bos_id = self.plan["store"]["tokenizer"], facts.get("bos_id")
        if tokenizer_name.startswith("./"):  # of an import, which keeps its own
            tokenizer_name = str(folder.root / tokenizer_name)
        self.tokens = TokenTable(self._tokens, self.path, tokenizer_name, bos_id)
        self.contexts = Contexts(self.tokens, tokenizer, context_tokens, context_tokens // 2)
        self.labels = labels_of(folder, facts)

    @classmethod
    @names_misfits
    def open(
        cls, path: str | os.PathLike[str], tokenizer: Any = None, context_tokens: int = 16
    ) -> FeatureIndex:
        """The index in a folder.

        tokenizer: None loads the store's own when text is first shown
        context_tokens: tokens shown before the firing one; half as many after it
        """
        folder = index_folder(path)
        facts = read_index(folder)
        if facts is None:
            if folder.sizes(PARTS):
                raise FeatureIndexError(
                    f"the index {path} is unfinished: run the same command again, and it resumes"
                )
            makes = f"`saelens-lite analyze STORE SAE --index {shlex.quote(str(path))}`"
            raise FeatureIndexError(f"the index {path} does not exist; {makes} makes it")
        return cls(folder, facts, tokenizer, context_tokens)

    @property
    def path(self) -> Path:
        return self.folder.root

    @property
    def sae(self) -> dict[str, Any]:
        """What the SAE is, with the sha256 of its weights."""
        return self.plan["sae"]

    @property
    def hook_point(self) -> str:
        return self.plan["hook_point"]

    @property
    def n_tokens(self) -> int:
        """Rows that the counts are over."""
        return self.plan["rows"]

    def __len__(self) -> int:
        return self.sae["d_sae"]

    def __iter__(self) -> Iterator[LatentFacts]:
        return (self[latent] for latent in range(len(self)))

    def __repr__(self) -> str:
        extras = " and ".join(name for name, there in sorted(self._facts["has"].items()) if there)
        return (
            f"FeatureIndex({str(self.path)!r}, {len(self):,} latents of {self.hook_point} over "
            f"{self.n_tokens:,} tokens{f', with {extras}' if extras else ''})"
        )

    def _repr_html_(self) -> str:
        """For notebooks: the latents that fire most strongly, a line each, as HTML without script."""
        strongest = self.column("top_values")[:, 0].argsort(descending=True, stable=True)[:_SHOWN_LATENTS]
        return rendered(
            "index.html",
            index=repr(self),
            latents=[self[latent] for latent in strongest.tolist()],
            has_score=self.has("output_score"),
            has_lens=self.has("lens"),
        )

    @names_misfits
    def check(self, sae: SparseAutoencoder, store: ActivationStore | None = None) -> None:
        """raises: ValueError naming both unless this is the index of that SAE, and over that store where one
        is given"""
        check_same_sae(self.folder, self.sae, identity(sae), "open the index of this SAE, or make one")
        if store is not None and store.fingerprint != self.plan["store"]["sha256"]:
            raise ValueError(
                f"{self.path} is an index over the store {self.plan['store']['sha256'][:8]}, not over "
                f"{store.path} ({store.fingerprint[:8]}): make one over this store"
            )

    @names_misfits
    def column(self, name: str) -> Tensor:
        """One tensor of all latents, by its name in the file (see folder.py): [d_sae ...].

        raises: ValueError for a name that this index lacks
        """
        self._known(name)
        return self._latents.get_tensor(name)

    def _known(self, name: str) -> None:
        """raises: ValueError for a column that this index lacks"""
        if name not in self._names:
            if name in _OF_MODEL:
                raise ValueError(
                    f"{self.path} has no {name!r}: {_OF_MODEL[name]} adds it, without another pass"
                )
            raise ValueError(f"{self.path} has no {name!r}: expected one of {', '.join(sorted(self._names))}")

    @names_misfits
    def row(self, name: str, latent: int) -> Tensor:
        """What a column holds of one latent, read without the others: [...].

        raises: ValueError for a name that this index lacks, or a latent out of range
        """
        self._known(name)
        latent = self._checked(latent)
        return self._latents.get_slice(name)[latent : latent + 1][0]

    @names_misfits
    def has(self, what: str) -> bool:
        """Whether it was made with "lens" or "output_score"."""
        if what not in self._facts["has"]:
            raise ValueError(f"has expected one of {list(self._facts['has'])}, got {what!r}")
        return bool(self._facts["has"][what])

    @property
    def token_positions(self) -> list[int]:
        """Rows by number of binary digits of their position in the context; zeros for rows without
        positions."""
        return self._facts["token_positions"]

    @names_misfits
    def further(self, name: str) -> dict[str, Tensor] | None:
        """The tensors of a further file, such as the "dashboards" that an import keeps; None where the index
        has no such file."""
        if name not in self._facts["files"]:
            return None
        of = self._facts["files"][name]
        file = open_tensors(self.folder, of["file"], of["bytes"])
        return {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (no dict)

    @cached_property
    def tally(self) -> Tally:
        """The counts of the pass; read it, do not write to it."""
        names = ("counts", "first_fired", "last_fired", "histogram", "positions")
        tensors = {
            name: self.column(name)
            for name in (*names, "top_values", "top_rows", "sample_values", "sample_rows")
        }
        tensors["token_positions"] = torch.tensor(self.token_positions)
        return Tally.from_tensors(
            tensors | {"n_tokens": torch.tensor([self.n_tokens])}, self.plan["settings"]["seed"]
        )

    @cached_property
    def token_sample(self) -> TokenSample:
        """The rows whose firings are kept together."""
        names = [name for name in self._tokens.keys() if name.startswith("token_sample_")]  # noqa: SIM118
        return TokenSample.from_tensors({name: self._tokens.get_tensor(name) for name in names})

    @names_misfits
    def lens(self, latents: Tensor | None = None, tokenizer: Any = None) -> LogitLens | None:
        """The logit lens of latents int64[m], None for all; None where the index has none."""
        if "promoted_ids" not in self._names:
            return None
        latents = torch.arange(len(self)) if latents is None else latents
        if latents.is_floating_point() or latents.ndim != 1:
            raise ValueError(f"lens expected latents int64[m], got {latents.dtype} {list(latents.shape)}")
        ends = (
            self.column(name)[latents]
            for name in ("promoted_ids", "promoted_logits", "demoted_ids", "demoted_logits")
        )
        return LogitLens(latents, *ends, tokenizer=tokenizer or self.contexts.tokenizer)

    @property
    def density(self) -> LatentDensity:
        """How often each latent fires."""
        return LatentDensity(self.column("counts"), self.n_tokens)

    @property
    def unigram(self) -> UnigramShare:
        """Which latents fire on one token nearly always. raises: ValueError for rows without text, or without
        samples"""
        if not self.tokens.has_tokens:
            raise ValueError(f"{self.path} is of rows without text: no latent of it fires on a token")
        if not self.plan["settings"]["n_sample"]:
            raise ValueError(
                f"{self.path} sampled no firings, of which shares are taken: index with n_sample of 1 or more"
            )
        counts = self.column("counts")
        return UnigramShare(
            is_unigram(counts, self.column("token_share"), self.column("top_token_share")), counts
        )

    @names_misfits
    def token(self, token: str | int, n: int = 10) -> list[Match]:
        """The latents that mark a token best: `fires_on_token`. index.token(" Lily")"""
        return fires_on_token(self, token, n)

    @names_misfits
    def regex(self, pattern: str, n: int = 10) -> list[Match]:
        """The latents that mark the matches of a regular expression best: `fires_on_regex`."""
        return fires_on_regex(self, pattern, n)

    @names_misfits
    def text(self, text: str, n: int = 10) -> list[Match]:
        """The latents that mark a text best where it occurs; `encode_text` says what fires on a text of your
        own.

        raises: ValueError for an empty text, or an index without tokens
        """
        return fires_on_regex(self, re.escape(text), n)

    def _checked(self, latent: int) -> int:
        if not hasattr(latent, "__index__") or not 0 <= latent < len(self):
            raise ValueError(
                f"expected a latent from 0 to {len(self) - 1}, got {latent}: {self.path} has {len(self):,}"
            )
        return latent

    @names_misfits
    def __getitem__(self, latent: int) -> LatentFacts:
        """Everything about one latent, whatever their number. raises: ValueError for one out of range"""
        latent = self._checked(latent)

        def of(name: str) -> Tensor:
            return self.row(name, latent)

        n_fired, histogram, largest = int(of("counts")), of("histogram"), float(of("top_values")[0])
        sample_values, sample_rows = of("sample_values"), of("sample_rows")
        filled, sampled = histogram.nonzero().flatten().tolist(), sample_values[sample_rows >= 0]
        return LatentFacts(
            latent=latent,
            n_fired=n_fired,
            n_tokens=self.n_tokens,
            first_fired=int(of("first_fired")),
            last_fired=int(of("last_fired")),
            strongest=tuple((value, row) for row, value in _pairs(of("top_rows"), of("top_values"))),
            intervals=intervals(histogram, sample_values, sample_rows, n_fired, largest),
            quantiles=tuple(quantile_edges(histogram, sampled, n_fired, largest, N_QUANTILES))
            if n_fired
            else (),
            contrast_rows=tuple(row for row in of("contrast_rows").tolist() if row >= 0),
            first_bin=filled[0] if filled else 0,
            bin_counts=tuple(histogram[filled[0] : filled[-1] + 1].tolist()) if filled else (),
            positions=tuple(of("positions").tolist()),
            token_entropy=float(of("token_entropy")),
            common_token_id=int(of("common_token")),
            **{name: float(of(name)) for name in ("token_share", "top_token_share", "pair_share")},
            **{name: _pairs(of(f"{name}_ids"), of(name)) for name in ("jaccard", "pmi", "cosine")},
            **{
                f"{end}_ids": _pairs(of(f"{end}_ids"), of(f"{end}_logits"))
                if f"{end}_ids" in self._names
                else ()
                for end in ("promoted", "demoted")
            },
            output_score=float(of("output_score")) if "output_score" in self._names else math.nan,
            label=self.labels.get(latent),
            contexts=self.contexts,
        )


def _pairs(ids: Tensor, scores: Tensor) -> tuple[tuple[int, float], ...]:
    return tuple((i, score) for i, score in zip(ids.tolist(), scores.tolist()) if i >= 0)


def labels_of(folder: LocalFolder, facts: dict[str, Any]) -> Labels:
    """The labels beside an index, whose facts are those of index.json."""
    return Labels(folder.root / "labels.sqlite", facts["plan"]["sae"] | {"decoder": facts.get("decoder")})


def verify_index(path: str | os.PathLike[str]) -> list[str]:
    """Read every byte of an index. Returns the problems, each naming its file; empty if all is well."""
    folder, problems = index_folder(path), []
    try:
        facts = read_index(folder)
    except FeatureIndexError as error:
        return [str(error)]
    if facts is None:
        return [f"{folder.describe(INDEX)} is missing"]
    for of in facts["files"].values():
        try:
            open_tensors(folder, of["file"], of["bytes"])
            if of.get("sha256") not in (None, folder.sha256(of["file"])):
                problems.append(f"{folder.describe(of['file'])} has another sha256 than {INDEX} records")
        except FeatureIndexError as error:
            problems.append(str(error))
    try:
        labels_of(folder, facts).check()
    except FeatureIndexError as error:
        problems.append(str(error))
    return problems
