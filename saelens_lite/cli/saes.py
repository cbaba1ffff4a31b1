"""`saelens-lite saes`: the releases of SAEs that others published, or the SAEs of one; fetches nothing."""

from __future__ import annotations

import dataclasses
import re
from collections import Counter
from collections.abc import Sequence
from typing import Any, Literal

from saelens_lite.cli.flags import configured
from saelens_lite.cli.shared import print_next
from saelens_lite.config import check_fields
from saelens_lite.errors import nearest
from saelens_lite.sae.registry import (
    OPENS,
    REFUSED,
    Release,
    is_embedding,
    releases,
)
from saelens_lite.text_table import Lines, Tabular, cell, in_format

_SAID = {OPENS: "open here", REFUSED: "refused"}
_LICENCE = "not recorded"


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class SaesConfig:
    """List published SAEs, each with whether it opens here."""

    release: str | None = None
    """List the SAEs of this release, such as gpt2-small-res-jb."""

    model: str | None = None
    """Only of models whose name holds this, such as gemma-2-2b."""

    format: Literal["table", "markdown", "csv", "json"] = "table"
    """How the list is printed; all but table print nothing else."""

    def __post_init__(self) -> None:
        check_fields(self)
        if self.release is not None and self.model is not None:
            raise ValueError("saes expected a release or --model, got both: a release is of one model")


def run(argv: Sequence[str]) -> None:
    """Published SAEs, and which of them open here"""
    config = configured(SaesConfig, "saes", argv)
    shown = _Releases(_of_model(config.model)) if config.release is None else _Saes(_named(config.release))
    print(in_format(shown, config.format))
    if config.format == "table" and isinstance(shown, _Releases):
        print_next("saes", shown.releases[0].name)


def _of_model(model: str | None) -> list[Release]:
    found = [release for release in releases().values() if (model or "").lower() in release.model.lower()]
    if not found:
        models = sorted({release.model for release in releases().values()})
        raise ValueError(
            f"saes --model expected a part of a model's name, got {model!r}{nearest(str(model), models)}; "
            f"there are {', '.join(models)}"
        )
    return found


def _named(name: str) -> Release:
    if name not in releases():
        hint = nearest(name, releases())
        raise ValueError(f"saes expected a release, got {name!r}{hint}; without one it lists them all")
    return releases()[name]


@dataclasses.dataclass(frozen=True, slots=True)
class _Releases(Tabular):
    releases: list[Release]

    _left = 6
    __str__ = Tabular.table

    def _records(self) -> list[dict[str, Any]]:
        return [
            {
                "release": of.name, "repository": of.repo, "model": of.model, "n_saes": len(of.saes),
                "where": _sites(of), "latents": _widths(of), "status": of.status, "why": of.why,
                "licence": _LICENCE,
            }
            for of in self.releases
        ]  # fmt: skip

    def _tables(self) -> list[tuple[str, Lines]]:
        heads = ["release", "model", "SAEs", "where", "latents", "here"]
        lines = [
            [of.name, of.model, cell(len(of.saes)), ", ".join(_sites(of)), _span(_widths(of)), _status(of)]
            for of in self.releases
        ]
        return [("", [heads, *lines])]

    def _notes(self) -> list[str]:
        counts = Counter(release.status for release in self.releases)
        told = ", ".join(f"{counts[status]} {said}" for status, said in _SAID.items() if counts[status])
        n_saes = sum(len(release.saes) for release in self.releases)
        return [
            f"{len(self.releases)} releases of {n_saes:,} SAEs: {told}",
            f"licences: {_LICENCE}; each repository says its own. The table is sae-lens 6.54.12's (MIT)",
        ]


@dataclasses.dataclass(frozen=True, slots=True)
class _Saes(Tabular):
    release: Release

    _left = 2
    __str__ = Tabular.table

    def _records(self) -> list[dict[str, Any]]:
        of = self.release
        return [
            {
                "id": sae.id, "path": sae.path, "where": of.hook_point(sae) or None, "latents": of.width(sae),
                "l0": sae.l0, "status": REFUSED if is_embedding(sae) else of.status,
            }
            for sae in of.saes
        ]  # fmt: skip

    def _tables(self) -> list[tuple[str, Lines]]:
        heads = ["id", "where", "latents", "l0", "status"]
        return [("", [heads, *([cell(record[name]) for name in heads] for record in self._records())])]

    def _notes(self) -> list[str]:
        of = self.release
        notes = [
            f"{of.name}: {_status(of)}; model {of.model}; licence: {_LICENCE}",
            f"from https://huggingface.co/{of.repo}",
        ]
        opening = next((sae for sae in of.saes if not is_embedding(sae)), None)
        if of.status == OPENS and opening is not None:
            model = ", model=model" if of.loader == "gemma_2_transcoder" else ""
            cls = "saelens_lite.sae.Transcoder" if of.transcodes else "sl.SparseAutoencoder"
            notes.append(f'sae = {cls}.load("{of.name}", "{opening.id}"{model})')
        return notes


def _sites(release: Release) -> list[str]:
    """Each kind of hook point once, without the number of its block."""
    points = (release.hook_point(sae) for sae in release.saes)
    return list(dict.fromkeys(re.sub(r"^blocks\.\d+\.", "", point) or "–" for point in points))


def _widths(release: Release) -> list[int]:
    return sorted({width for sae in release.saes if (width := release.width(sae)) is not None})


def _span(widths: list[int]) -> str:
    return "–" if not widths else cell(widths[0]) if len(widths) == 1 else f"{widths[0]:,} to {widths[-1]:,}"


def _status(release: Release) -> str:
    return f"{release.status}: {release.why}" if release.why else release.status
