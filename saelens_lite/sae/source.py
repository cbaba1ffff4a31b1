"""Where the files of an SAE are: a path on this machine, a known release, or a repository on the hub."""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from posixpath import normpath
from types import MappingProxyType
from typing import Any, NamedTuple

from saelens_lite.errors import CheckpointError
from saelens_lite.formats import saelens
from saelens_lite.formats.opened import Place
from saelens_lite.formats.recognise import FOREIGN, recognised, refused
from saelens_lite.formats.saelens import CFG, WEIGHTS
from saelens_lite.sae import registry

_REPOSITORY = re.compile(r"([^./~\\][^/\\]*/[^/\\]+)(?:/(.+))?")
_FILES = tuple(dict.fromkeys(name for form in (saelens, *FOREIGN.values()) for name in form.FILES))
_PICKLES, _WEIGHTS = (".pt", ".pth"), (".pt", ".pth", ".npz", ".safetensors")


class Source(NamedTuple):
    """place: the files on this machine; format: its name; repository: what it was fetched from, or None

    overrides, scale: what the table of releases knows of it and its own files leave out
    """

    place: Place
    format: str
    repository: str | None
    overrides: Mapping[str, Any] = MappingProxyType({})
    scale: float | None = None


def located(path: str | Path, folder: str | None, format: str | None) -> Source:
    """The files of an SAE and their format; fetched when they are not on this machine.

    path: in this order, what exists; a release of sae/registry.py, release[/id]; a repository,
        owner/name[/folder]
    folder: the folder inside it, or the SAE's id in the release
    raises: CheckpointError where there are none, naming what is there; ValueError for another format
    """
    repository, listed = None, None
    if Path(path).exists():
        local = Path(path) / folder if folder else Path(path)
        place = Place(local, local.absolute().as_posix())
    elif isinstance(path, str) and (listed := registry.find(path, folder)):
        repo, inside = listed[0].repo, listed[1].path
        repository = f"{repo}/{inside}"
        place = Place(_download(repo, inside, _files_of(listed[0].format)), repository)
    elif isinstance(path, str) and (name := _REPOSITORY.fullmatch(path)) and not Path(name[1]).is_dir():
        inside = "/".join(part for part in (name[2], folder) if part)
        listed = registry.of_repository(name[1], inside)
        repository = f"{name[1]}/{inside}".rstrip("/")
        place = Place(_download(name[1], inside, _FILES), repository)
    else:
        raise CheckpointError(
            f"no SAE at {path}: expected a folder with {CFG} and {WEIGHTS} or those of another format "
            f"({', '.join(FOREIGN)}), a release (`saelens-lite saes` lists them), or a repository as "
            f"owner/name{_beside(Path(path))}"
        )
    found = None
    if place.path.exists():
        if what := refused(place):
            raise ValueError(f"{place.name}: expected one SAE or transcoder, got {what}")
        found = recognised(place, format)
    if found is None:
        raise CheckpointError(_nothing_at(place.path, Path(path)))
    known = (listed[0].overrides, listed[1].scale) if listed else ()
    return Source(place, found, repository, *known)


def _nothing_at(path: Path, asked: Path) -> str:
    """Why there is no SAE at a path of this machine, and where there are some below it."""
    if inside := folders_inside(asked):
        hint = f"SAEs in it: {', '.join(inside)} (pass one as folder=)"
    elif (path / "plan.json").is_file():
        hint = "the folder is an activation store, no SAE"
    else:
        there = sorted(child.name for child in path.iterdir()) if path.is_dir() else []
        hint = f"the folder is no complete SAE of any format, it holds {', '.join(there[:10]) or 'nothing'}"
    if path.is_file():
        return f"{path}: expected the weights of an SAE, got a file whose names are of no format known here"
    missing = WEIGHTS if (path / CFG).exists() else CFG
    return f"{path}: expected {CFG} and {WEIGHTS} or another format's files, {missing} is missing; {hint}"


def _beside(path: Path) -> str:
    """The SAEs in the folder where a path ends that does not exist."""
    parent = next((folder for folder in path.parents if folder.is_dir()), Path())
    inside = [] if parent in (Path(), Path(path.anchor)) else folders_inside(parent)
    return f"; SAEs in {parent}: {', '.join(inside)}" if inside else ""


def folders_inside(folder: Path, most: int = 10) -> list[str]:
    """SAEs below a folder, up to so many: folders, or files where several lie in one."""
    found: list[str] = []
    for below in (folder, *sorted(folder.rglob("*/"))):
        name = below.relative_to(folder).as_posix()
        if any(part.startswith(".") and part != "." for part in name.split("/")) or len(found) >= most:
            continue
        pickles = [file for file in sorted(below.iterdir()) if file.suffix in _PICKLES]
        with contextlib.suppress(CheckpointError):
            if below != folder and recognised(Place(below, name)):
                found.append(name)
                continue
        if len(pickles) > 1:
            found += [file.relative_to(folder).as_posix() for file in pickles]
    return found[:most]


def _files_of(format: str) -> tuple[str, ...]:
    return saelens.FILES if format == saelens.NAME else FOREIGN[format].FILES


def _download(repo: str, folder: str, files: tuple[str, ...]) -> Path:
    """The files of one SAE, and no others; folder: its folder or file in the repository."""
    from huggingface_hub import list_repo_files, snapshot_download

    is_file = PurePosixPath(folder).suffix in _WEIGHTS
    prefixes = [folder or "."] + [PurePosixPath(folder).parent.as_posix()] * is_file
    wanted = [normpath(f"{prefix}/{name}") for prefix in prefixes for name in files] + [folder] * is_file
    try:
        source = Path(snapshot_download(repo, allow_patterns=wanted)) / folder
        if source.exists() and recognised(Place(source, f"{repo}/{folder}")):
            return source
        there = list_repo_files(repo)
        alone = [name for name in there if PurePosixPath(name).parent == PurePosixPath(folder or ".")]
        pickles = [name for name in alone if PurePosixPath(name).suffix in _PICKLES]
        if len(pickles) == 1:
            return Path(snapshot_download(repo, allow_patterns=pickles)) / pickles[0]
    except CheckpointError:
        raise
    except Exception as error:  # the hub client raises a dozen unrelated types (offline, gated, absent)
        offline = f". HF_HUB_OFFLINE is set; it would fetch {', '.join(wanted)}" if _is_offline() else ""
        raise CheckpointError(
            f"cannot fetch {repo} folder={folder!r} from the hub: {error}; there is no local folder {repo} "
            f"either{offline}"
        ) from error
    inside = sorted({_sae_of(name) for name in there} - {""}) or pickles
    more = f" and {len(inside) - 10} more" if len(inside) > 10 else ""
    raise CheckpointError(
        f"{repo} has no SAE at folder={folder!r}; it has "
        f"{', '.join(inside[:10]) or 'none of a known format'}{more}"
    )


def _sae_of(name: str) -> str:
    """What to pass as folder= for a file of a repository; "" for one that is no SAE's weights."""
    path = PurePosixPath(name)
    if path.suffix in _PICKLES:
        return path.parent.as_posix() if path.name in _FILES else name
    return path.parent.as_posix() if path.name in _FILES and path.suffix in _WEIGHTS else ""


def _is_offline() -> bool:
    return os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE")
