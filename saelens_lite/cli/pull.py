"""`saelens-lite pull`: SAEs of a repository of the hub into a folder."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from saelens_lite.cli.flags import configured
from saelens_lite.cli.shared import print_next


def run(argv: Sequence[str]) -> None:
    """SAEs of a repository of the Hugging Face hub into a folder"""
    config = configured(PullConfig, "pull", argv)
    from saelens_lite.hub.transfer import pull_saes

    found = pull_saes(config.repo, config.folder, only=config.only, revision=config.revision)
    for folder in found:
        print(f"{folder}: an SAE of {config.repo}")
    print_next("evaluate", sae=tuple(map(str, found)), store="STORE")


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class PullConfig:
    """Fetch the SAEs of a repository with their card and page; weights and JSON only, no code."""

    repo: str
    """Repository as owner/name."""

    folder: str
    """New or empty folder, or one of the same repository."""

    only: str | None = None
    """Only the SAE of this folder in the repository."""

    revision: str | None = None
    """Branch, tag or commit; None takes the main one."""
