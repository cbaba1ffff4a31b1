"""Push and pull: SAE folders to a repository of the Hugging Face hub, and from one.

Endpoint, token and offline mode are those of huggingface_hub (HF_ENDPOINT, HF_TOKEN, HF_HUB_OFFLINE).
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from saelens_lite.atomic import temporary_folder
from saelens_lite.errors import CheckpointError
from saelens_lite.hub.card import model_card
from saelens_lite.hub.published import CARD, CFG, EVALUATION, PAGE, published_saes, stage, without_paths
from saelens_lite.store.reader import ActivationStore

_PULLED = ["*.json", "*.safetensors", CARD, PAGE, PAGE.replace(".html", ".data") + "/*"]
"""Nothing else is fetched: no code, no pickle."""


@dataclass(frozen=True, slots=True)
class Pushed:
    """What was pushed, or would be. files: size in bytes by name; url: of the commit, "" for a dry run"""

    repo: str
    files: Mapping[str, int]
    card: str
    url: str = ""


def push_saes(
    run: str | os.PathLike[str],
    repo: str,
    *,
    page: str | os.PathLike[str] | None = None,
    store: str | os.PathLike[str] | ActivationStore | None = None,
    license: str | None = None,
    private: bool = False,
    revision: str | None = None,
    dry_run: bool = False,
) -> Pushed:
    """Upload the SAE of a run, or those of a grid, with a model card made from their evaluation.json.

    run: an SAE's folder, or one of SAEs
    repo: "owner/name"; made where it does not exist
    page: the feature page; None takes features.html of the run, where it is there
    store: the activation store, for its facts in the card
    license: an identifier of the hub, such as "apache-2.0"
    private: of a repository that is made
    dry_run: look at files and card, and send nothing
    raises: CheckpointError for a folder without SAEs, or where the hub refuses; ValueError offline, for a
        repository's name that is none, or a file that holds traces of this machine
    """
    from huggingface_hub import HfApi, constants
    from huggingface_hub.utils import HFValidationError, validate_repo_id

    try:
        validate_repo_id(repo)
    except HFValidationError as error:
        raise ValueError(f"push expected a repository as owner/name, got {repo!r}: {error}") from error
    if constants.HF_HUB_OFFLINE and not dry_run:
        raise ValueError(
            "HF_HUB_OFFLINE is set, so nothing is pushed: unset it, or look at the files with dry_run=True"
        )
    saes = published_saes(run)
    shown = Path(page) if page is not None else Path(run) / PAGE
    if page is not None and not shown.is_file():
        raise ValueError(f"page expected an HTML file, got {shown}, which is none")
    has_page = shown.is_file()
    facts = None if store is None else _facts(store)
    card = model_card(repo, saes, license=license, store=facts, page=has_page)
    with temporary_folder() as place:
        folder = place / "repository"
        folder.mkdir()
        stage(saes, folder, card, shown if has_page else None)
        files = {
            path.relative_to(folder).as_posix(): path.stat().st_size
            for path in sorted(folder.rglob("*"))
            if path.is_file()
        }
        if dry_run:
            return Pushed(repo, files, card)
        api = HfApi(library_name="saelens_lite")
        try:
            api.create_repo(repo, private=private, exist_ok=True)
            done = api.upload_folder(
                repo_id=repo, folder_path=folder, revision=revision, commit_message="SAEs by saelens_lite"
            )
        except Exception as error:  # the hub client raises a dozen unrelated types
            raise CheckpointError(f"cannot push to {repo}: {' '.join(str(error).split())}") from error
    return Pushed(repo, files, card, getattr(done, "commit_url", str(done)))


def pull_saes(
    repo: str,
    folder: str | os.PathLike[str],
    *,
    only: str | None = None,
    revision: str | None = None,
) -> list[Path]:
    """Fetch the SAEs of a repository, with card and page, into a new or empty folder, or one of the same
    repository.

    only: an SAE's folder in it; None takes all
    returns: the folders of SAEs
    raises: CheckpointError where the hub refuses or no SAE is there; ValueError for a folder that holds
        other files
    """
    from huggingface_hub import snapshot_download

    target = Path(folder)
    ours = (target / ".cache" / "huggingface").is_dir()
    if target.exists() and not ours and any(target.iterdir()):
        raise ValueError(f"pull expected a new or empty folder, got {target}, which holds other files")
    patterns = _PULLED if only is None else [f"{only}/{CFG}", f"{only}/{EVALUATION}", f"{only}/*.safetensors"]
    try:
        snapshot_download(repo, local_dir=target, revision=revision, allow_patterns=patterns)
    except Exception as error:  # as above
        raise CheckpointError(f"cannot pull {repo}: {' '.join(str(error).split())}") from error
    found = sorted({cfg.parent for cfg in target.rglob(CFG) if ".cache" not in cfg.parts})
    if not found:
        raise CheckpointError(f"{repo} expected folders with {CFG}, got none; nothing there is an SAE")
    return found


def _facts(store: str | os.PathLike[str] | ActivationStore) -> dict[str, Any]:
    """What a card says of a store."""
    store = store if isinstance(store, ActivationStore) else ActivationStore(store)
    plan = without_paths(store.plan)
    model, dataset = plan.get("model", {}), plan.get("dataset", {})
    sources = [
        str(source.get("name") or source.get("path") or source.get("kind"))
        for source in dataset.get("sources", ())
    ]
    return {
        "model": model.get("name"),
        "revision": model.get("revision"),
        "dataset": ", ".join(sources),
        "rows": store.n_rows,
        "hook points": ", ".join(store.hook_points),
        "dtype": plan.get("dtype"),
    }
