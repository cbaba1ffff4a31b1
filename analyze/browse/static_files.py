"""The files of a static page: one HTML file, beside it for many latents a folder of scripts that hold data
only.

features.html               all of it, up to EMBEDDED latents
features.html, features.data/0.js, 1.js, …
                            beyond: the table in the HTML, CHUNK latents a script, loaded when one of
                            them is looked at. A script is `saelens_lite_part("0","<base64 of gzip>")`
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from markupsafe import Markup
from torch import Tensor

from saelens_lite.atomic import make_folder, write_file

from ..attribution.lens import LogitLens
from ..index.feature_index import FeatureIndex
from ..render.html import inert_json, policy, rendered, style
from .known_firings import KnownFirings
from .latent_details import Firings, as_shown, latent_details
from .latent_table import latent_table
from .module import module, shell
from .payload import TOKENS, as_text, packed
from .token_texts import TokenTexts

CHUNK, EMBEDDED = 128, 1024
"""Latents of a script, and of a page that needs none."""
_AT_ONCE = 32 * CHUNK
_MADE = "Made by saelens_lite; this page needs no network."
_PART = re.compile(r"\d+\.js")
_CALL = 'saelens_lite_part("'


def part_names(n_latents: int) -> range:
    return range((n_latents + CHUNK - 1) // CHUNK)


def check_folder(folder: Path) -> None:
    """raises: ValueError where a folder of scripts holds anything else"""
    for name in os.listdir(folder) if folder.is_dir() else []:
        file = folder / name
        if not (_PART.fullmatch(name) and file.is_file() and _begins_as_ours(file)):
            raise ValueError(
                f"{folder} expected a page's scripts or nothing, got {file}: choose another name"
            )


def _begins_as_ours(file: Path) -> bool:
    with file.open("rb") as opened:
        return opened.read(len(_CALL)) == _CALL.encode()


def write_page(
    path: Path,
    index: FeatureIndex,
    head: dict[str, Any],
    texts: TokenTexts,
    latents: Tensor,
    *,
    n_examples: int,
    after: int,
    encoded: Firings | None = None,
    lens: Callable[[Tensor], LogitLens | None] | None = None,
    norms: Tensor | None = None,
) -> Path:
    """The page of some latents int64[n], all latents of the index in its table.

    head: of head.py; encoded: gives all firings, where the SAE and the store are at hand; lens: in the place
        of the index's own
    """
    embedded = len(latents) <= EMBEDDED
    folder = path.with_suffix(".data")
    table, used, parts = latent_table(index, norms), _Used(), {}
    used.add(table)
    if not embedded:
        check_folder(folder)
        make_folder(folder)
    blocks = _blocks(index, latents, n_examples, head["before"], after, encoded, lens)
    for name, arrays in blocks:
        used.add(arrays)
        text = as_text(packed(arrays, texts.wide, planes=True))
        if embedded:
            parts[str(name)] = text
        else:
            (folder / f"{name}.js").write_text(f'{_CALL}{name}","{text}");\n', encoding="ascii")
    whole = len(latents) == len(index) and bool((latents == torch.arange(len(index))).all())
    head = head | {
        "can": [],
        "panels": None if whole else latents.tolist(),
        "chunk": CHUNK,
        "embedded": embedded,
        "files": folder.name,
        "exact": encoded is not None,
        "texts": texts.of(used.ids()),
    }
    parts["table"] = as_text(packed(table, texts.wide, planes=True))
    written = write_file(path, page_text("static", head, parts, from_files=not embedded))
    if folder.is_dir():  # what an earlier page had beyond
        check_folder(folder)
        for name in os.listdir(folder):
            if embedded or int(name.removesuffix(".js")) >= len(part_names(len(latents))):
                (folder / name).unlink()
    return written


def page_text(host: str, head: dict[str, Any] | None, parts: dict[str, str], from_files: bool = False) -> str:
    """The HTML of a page. parts: base64 by name; from_files: whether it loads scripts from beside it"""
    script = module()
    return rendered(
        "feature_page.html",
        title=head["title"] if head else "Features",
        policy=page_policy(host, from_files),
        style=style("page"),
        script=Markup(script),
        shell=shell(host, _MADE if host == "static" else ""),
        data=None if head is None else inert_json(head),
        parts=list(parts.items()),
    )


def page_policy(host: str, from_files: bool = False) -> str:
    """The content security policy of a page: its own script, and of a live one requests to its server."""
    scripts = ["'self'"] if from_files else []
    return policy(style("page"), module(), *scripts, connect="'self'" if host == "server" else "")


class _Used:
    """The token ids that some arrays hold."""

    def __init__(self) -> None:
        self._there = np.zeros(0, dtype=bool)

    def add(self, arrays: dict[str, Tensor]) -> None:
        for name in TOKENS:
            if name in arrays and arrays[name].numel():
                ids = arrays[name].numpy().ravel()
                most = int(ids.max()) + 1
                if most > len(self._there):
                    self._there = np.pad(self._there, (0, most - len(self._there)))
                self._there[ids[ids >= 0]] = True

    def ids(self) -> list[int]:
        return np.flatnonzero(self._there).tolist()


def _blocks(
    index: FeatureIndex,
    latents: Tensor,
    n_examples: int,
    before: int,
    after: int,
    encoded: Firings | None,
    lens: Callable[[Tensor], LogitLens | None] | None,
) -> Iterator[tuple[int, dict[str, Tensor]]]:
    """(name, arrays) of each CHUNK of the latents, in order; _AT_ONCE of them are looked up together."""
    known, first = encoded or KnownFirings(index), 0
    for some in latents.split(_AT_ONCE):
        found = latent_details(
            index,
            some,
            known,
            n_examples=n_examples,
            before=before,
            after=after,
            lens=None if lens is None else lens(some),
        )
        shown = as_shown(found)
        for start in range(0, len(some), CHUNK):
            yield first, cut(shown, start, min(start + CHUNK, len(some)))
            first += 1


def cut(details: dict[str, Tensor], start: int, stop: int) -> dict[str, Tensor]:
    """The arrays of latents start to stop of a block."""
    n, found = len(details["latents"]), {}
    for name, array in details.items():
        kind, _, what = name.partition("_")
        if kind in ("far", "near") and what in ("place", "act"):
            sizes = details[f"{kind}_firings"].view(n, -1).long().sum(1).cumsum(0)
            span = slice(int(sizes[start - 1]) if start else 0, int(sizes[stop - 1]))
            found[name] = array[span]
        else:
            found[name] = array[start:stop]
    return found
