"""The releases of SAEs that people know by name, and which of them open here.

The table is that of sae-lens 6.54.12 (`sae_lens/pretrained_saes.yaml`, MIT, Copyright (c) 2023 Joseph Bloom;
its notice lies in the data), written by tests/bench/make_registry.py into releases.json.xz. It has no
licences, widths or hook points: the latter two follow from names by rule, or are left open.
"""

from __future__ import annotations

import json
import lzma
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from math import log2
from pathlib import Path
from typing import Any, NamedTuple

from saelens_lite.errors import CheckpointError, nearest

OPENS, REFUSED = "opens", "refused"

_FORMATS = {
    "sae_lens": "saelens",
    "gemma_2": "gemma_scope",
    "gemma_3": "gemma_scope_2",
    "qwen_scope": "qwen_scope",
    "llama_scope": "llama_scope",
    "llama_scope_r1_distill": "llamascopium",
    "dictionary_learning_1": "dictionary_learning",
    "goodfire": "goodfire",
    "deepseek_r1": "goodfire",
    "gemma_2_transcoder": "gemma_scope",
    "mwhanna_transcoder": "circuit_tracer",
}
"""sae-lens' loader -> the format here."""
_WHY = {
    "temporal": "its latents depend on the tokens before, by attention",
    "mntss_clt_layer_transcoder": "its latents write to all layers that follow, a cross-layer transcoder",
    "connor_rob_hook_z": "a format of its own, two files without a common name",
}
_SITES = {
    "res": "hook_resid_post", "lxr": "hook_resid_post", "qwen": "hook_resid_post",
    "goodfire": "hook_resid_post", "andyrdt": "hook_resid_post", "distill": "hook_resid_post",
    "mlp": "hook_mlp_out", "lxm": "hook_mlp_out", "att": "attn.hook_z", "lxa": "hook_attn_out",
    "transcoders": "mlp.hook_in",
}  # fmt: skip
_D_LLAMA = 4096


class Listed(NamedTuple):
    """One SAE of a release; scale: what its input is multiplied by, where its own folder leaves that out."""

    id: str
    path: str
    l0: float | None
    scale: float | None


@dataclass(frozen=True, slots=True)
class Release:
    """overrides: what of an SAE's configuration the table knows better than its own file"""

    name: str
    repo: str
    model: str
    loader: str
    overrides: Mapping[str, Any]
    saes: tuple[Listed, ...]

    @property
    def status(self) -> str:
        """OPENS or REFUSED."""
        return OPENS if self.loader in _FORMATS else REFUSED

    @property
    def why(self) -> str:
        """The reason, for a release that does not open, or not whole."""
        if any(is_embedding(sae) for sae in self.saes):
            return "but for the SAEs of token embeddings, whose scale its sources leave open"
        return _WHY.get(self.loader, "")

    @property
    def transcodes(self) -> bool:
        """Whether they are transcoders, which Transcoder.load opens."""
        return "transcoders" in self.name

    @property
    def format(self) -> str:
        return _FORMATS[self.loader]

    def hook_point(self, sae: Listed) -> str:
        """Where it reads, "" where no name says it."""
        if is_embedding(sae):
            return "hook_embed"
        if told := re.search(r"blocks\.(\d+)\.(hook_(?:z|resid_pre|resid_mid|resid_post|\w+?_out))", sae.id):
            return f"blocks.{told[1]}.{'attn.hook_z' if told[2] == 'hook_z' else told[2]}"
        layer = re.search(r"layer_?(\d+)|^l(\d+)[rma]", sae.id)
        site = next((_SITES[word] for word in re.split(r"[-_]", self.name) if word in _SITES), None)
        return f"blocks.{layer[1] or layer[2]}.{site}" if layer and site else ""

    def width(self, sae: Listed) -> int | None:
        """Its number of latents, where a name says it."""
        names = f"{sae.path} {self.repo} {self.name}"
        if told := re.search(r"2pow(\d+)", names):
            return 2 ** int(told[1])
        if told := re.search(r"width_(\d+)(k|m)(?![a-z])", names):  # 65k is 2¹⁶
            return 2 ** round(log2(int(told[1]) * (1e3 if told[2] == "k" else 1e6)))
        if told := re.search(r"(?:[-_]w-?|v5[-_])(\d+)k(?![a-z])", names.lower()):
            return int(told[1]) * 1024
        if told := re.search(r"hook_\w+?_(\d{3,6})(?!\d)", names):
            return int(told[1])
        if self.loader == "llama_scope" and (told := re.search(r"(\d+)x", names)):
            return int(told[1]) * _D_LLAMA
        return None


def is_embedding(sae: Listed) -> bool:
    return sae.path.startswith("embedding/")


@cache
def releases() -> dict[str, Release]:
    """All of them by name."""
    file = Path(__file__).with_name("releases.json.xz")
    table = json.loads(lzma.decompress(file.read_bytes()))["releases"]
    return {
        name: Release(name, saes=tuple(_listed(*sae) for sae in facts.pop("saes")), **facts)
        for name, facts in table.items()
    }


def _listed(id: str, path: str | int, l0: float | None, scale: float | None) -> Listed:
    """The table has layers of a cross-layer transcoder by number."""
    return Listed(id, str(path), l0, scale)


def find(name: str, sae_id: str | None) -> tuple[Release, Listed] | None:
    """The SAE of a release, as ("release", "id") or "release/id"; None where there is no such release.

    raises: CheckpointError for an id that the release has not, naming the nearest; ValueError for an SAE that
        is not opened here
    """
    head, _, tail = name.partition("/")
    release = releases().get(head)
    if release is None:
        return None
    wanted = "/".join(part for part in (tail, sae_id) if part)
    by_id = {sae.path: sae for sae in release.saes} | {sae.id: sae for sae in release.saes}
    if not wanted and len(release.saes) == 1:
        wanted = release.saes[0].id
    if wanted not in by_id:
        some = ", ".join(sae.id for sae in release.saes[:5])
        raise CheckpointError(
            f"release {head} expected one of its {len(release.saes)} SAEs, got {wanted or 'none'!r}"
            f"{nearest(wanted, by_id)}: {some}, …; `saelens-lite saes {head}` lists them"
        )
    sae = by_id[wanted]
    if release.status != OPENS or is_embedding(sae):
        status = release.status if release.status != OPENS else REFUSED
        raise ValueError(f"{head}/{wanted}: {status}: {release.why.removeprefix('but for ')}")
    return release, sae


def of_repository(repo: str, path: str) -> tuple[Release, Listed] | None:
    """The release whose SAE lies at this path of this repository, if the table has one."""
    found = (
        (release, sae)
        for release in releases().values()
        if release.repo == repo
        for sae in release.saes
        if sae.path == path
    )
    return next(found, None)
