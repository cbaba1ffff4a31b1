"""`saelens-lite saes`: the releases of SAEs that others published, or the SAEs of one; fetches nothing."""

from __future__ import annotations

import dataclasses
import re
from collections import Counter
from collections.abc import Sequence

from saelens_lite.cli.flags import configured
from saelens_lite.cli.shared import print_next
from saelens_lite.errors import nearest
from saelens_lite.sae.registry import NEEDS_TRANSCODERS, OPENS, REFUSED, Release, is_embedding, releases
from saelens_lite.text_table import aligned, cell

_SAID = {OPENS: "open here", NEEDS_TRANSCODERS: "need transcoders", REFUSED: "refused"}


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class SaesConfig:
    """List published SAEs, each with whether it opens here."""

    release: str | None = None
    """List the SAEs of this release, such as gpt2-small-res-jb."""

    model: str | None = None
    """Only of models whose name holds this, such as gemma-2-2b."""


def run(argv: Sequence[str]) -> None:
    """Published SAEs, and which of them open here"""
    config = configured(SaesConfig, "saes", argv, leading=("release",))
    if config.release is not None:
        _print_saes(config.release)
        return
    shown = [of for of in releases().values() if (config.model or "").lower() in of.model.lower()]
    if not shown:
        models = sorted({release.model for release in releases().values()})
        raise ValueError(
            f"saes --model expected a part of a model's name, got {config.model!r}"
            f"{nearest(str(config.model), models)}; there are {', '.join(models)}"
        )
    head = ("release", "model", "SAEs", "where", "latents", "here")
    lines = [(r.name, r.model, cell(len(r.saes)), _sites(r), _widths(r), _status(r)) for r in shown]
    print(aligned([head, *lines], left=len(head)))
    statuses = Counter(release.status for release in shown)
    told = ", ".join(f"{statuses[status]} {said}" for status, said in _SAID.items() if statuses[status])
    print(f"\n{len(shown)} releases of {sum(len(r.saes) for r in shown):,} SAEs: {told}")
    print("licences: not recorded; each repository says its own. The table is sae-lens 6.54.12's (MIT)")
    print_next("saes", shown[0].name)


def _print_saes(name: str) -> None:
    release = releases().get(name)
    if release is None:
        raise ValueError(
            f"saes expected a release, got {name!r}{nearest(name, releases())}; without one it lists them all"
        )
    head = ("id", "where", "latents", "l0", "here")
    lines = [
        (sae.id, release.hook_point(sae) or "–", cell(release.width(sae)), cell(sae.l0),
         REFUSED if is_embedding(sae) else release.status)
        for sae in release.saes
    ]  # fmt: skip
    print(aligned([head, *lines], left=2))
    print(f"\n{name}: {_status(release)}; model {release.model}; licence: not recorded")
    print(f"from https://huggingface.co/{release.repo}")
    opening = next((sae for sae in release.saes if not is_embedding(sae)), None)
    if release.status == OPENS and opening is not None:
        print(f'sae = sl.SparseAutoencoder.load("{name}", "{opening.id}")')


def _sites(release: Release) -> str:
    """Each kind of hook point once, without the number of its block."""
    points = (release.hook_point(sae) for sae in release.saes)
    return ", ".join(dict.fromkeys(re.sub(r"^blocks\.\d+\.", "", point) or "–" for point in points))


def _widths(release: Release) -> str:
    widths = sorted({width for sae in release.saes if (width := release.width(sae)) is not None})
    return "–" if not widths else cell(widths[0]) if len(widths) == 1 else f"{widths[0]:,} to {widths[-1]:,}"


def _status(release: Release) -> str:
    return f"{release.status}: {release.why}" if release.why else release.status
