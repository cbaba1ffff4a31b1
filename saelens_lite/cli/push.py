"""`saelens-lite push`: SAEs of a run, with a model card, to a repository of the hub."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from saelens_lite.cli.flags import configured
from saelens_lite.cli.shared import print_next


def run(argv: Sequence[str]) -> None:
    """SAEs of a run or a grid to the Hugging Face hub, with a model card"""
    config = configured(PushConfig, "push", argv)
    from saelens_lite.hub.transfer import push_saes

    how = {field.name: getattr(config, field.name) for field in dataclasses.fields(config)}
    pushed = push_saes(how.pop("run"), how.pop("repo"), **how)
    for name, size in pushed.files.items():
        print(f"{size:>15,}  {name}")
    if config.dry_run:
        print(f"\nREADME.md:\n\n{pushed.card}")
        print(f"{config.repo}: would get {len(pushed.files)} files; nothing was sent")
        return
    print(f"{config.repo}: {len(pushed.files)} files, {pushed.url}")
    print_next("pull", config.repo, "FOLDER")


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class PushConfig:
    """Upload the SAE of a run, or those of a grid, with a model card made from their evaluation.json, which
    `evaluate --output RUN/evaluation.json` leaves there. No path, user name or token of this machine is in
    it."""

    run: str
    """Folder of an SAE, or of SAEs such as a grid's."""

    repo: str
    """Repository as owner/name; made where it does not exist."""

    page: str | None = None
    """The feature page that `analyze` made; None takes RUN/features.html, where it is there."""

    store: str | None = None
    """The activation store, for its facts in the card."""

    license: str | None = None
    """An identifier of the hub, such as apache-2.0."""

    private: bool = False
    """Make the repository private, where it is made."""

    revision: str | None = None
    """Branch to push to; None takes the main one."""

    dry_run: bool = False
    """List the files and print the card; nothing is sent."""
