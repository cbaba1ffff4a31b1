"""The files of SAEs that are published: weights, cfg.json, evaluation.json, the feature page and the card.

Checkpoints, logs and settings of the run stay. Strings of JSON that are paths of this machine become their
last name, URLs lose their credentials, and what is staged is searched for traces of this machine before it
leaves.
"""

from __future__ import annotations

import getpass
import json
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from saelens_lite.config import as_recorded
from saelens_lite.errors import CheckpointError
from saelens_lite.json_data import loads

CFG, EVALUATION, CARD, PAGE = "cfg.json", "evaluation.json", "README.md", "features.html"
_WEIGHTS, _SPARSITY = "sae_weights.safetensors", "sparsity.safetensors"
_SHORTEST_PATH = 6
"""Shorter paths, such as /root, stand in texts of other origin too."""


@dataclass(frozen=True, slots=True)
class PublishedSAE:
    """One SAE of those that are published.

    name: its folder in the repository; source: its folder here
    cfg, evaluation: what of it is published; evaluation is None where there is none
    """

    name: str
    source: Path
    cfg: Mapping[str, Any]
    evaluation: Mapping[str, Any] | None


def published_saes(run: str | os.PathLike[str]) -> list[PublishedSAE]:
    """The SAE of a run, or those of a grid: the folders with a cfg.json right below.

    raises: CheckpointError where there is none
    """
    folder = Path(run)
    sources = [folder] if (folder / CFG).is_file() else sorted(cfg.parent for cfg in folder.glob(f"*/{CFG}"))
    if not sources:
        raise CheckpointError(
            f"{folder} expected an SAE (a folder with {CFG}) or a folder of SAEs, as a grid's, got neither"
        )
    return [_published(source) for source in sources]


def _published(source: Path) -> PublishedSAE:
    if not (source / _WEIGHTS).is_file():
        raise CheckpointError(f"{source} expected {_WEIGHTS} beside {CFG}: convert other formats first")
    cfg = without_paths(_json(source / CFG))
    evaluation = source / EVALUATION
    found = without_paths(_json(evaluation)) if evaluation.is_file() else None
    return PublishedSAE(source.resolve().name, source, cfg, found)


def _json(file: Path) -> Any:
    try:
        found = loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{file} cannot be read: {error}") from error
    if not isinstance(found, dict):
        raise CheckpointError(f"{file} expected a JSON object, got {type(found).__name__}")
    return found


def without_paths(value: Any) -> Any:
    """The last name of each absolute path, and URLs without credentials, anywhere in JSON."""
    if isinstance(value, Mapping):
        return {key: without_paths(held) for key, held in value.items()}
    if isinstance(value, list):
        return [without_paths(held) for held in value]
    return as_recorded(value, published=True)


def stage(saes: Sequence[PublishedSAE], folder: Path, card: str, page: Path | None) -> None:
    """Lay out in an empty folder what is to be uploaded; weights are links to those of the run.

    raises: ValueError where a file holds a path, a user name or a token of this machine
    """
    for sae in saes:
        target = folder / sae.name
        target.mkdir()
        _write_json(target / CFG, sae.source / CFG, sae.cfg)
        if sae.evaluation is not None:
            _write_json(target / EVALUATION, sae.source / EVALUATION, sae.evaluation)
        for name in (_WEIGHTS, _SPARSITY):
            if (sae.source / name).is_file():
                (target / name).symlink_to((sae.source / name).resolve())
    (folder / CARD).write_text(card, encoding="utf-8")
    if page is not None:
        shutil.copyfile(page, folder / PAGE)
        if (data := page.with_suffix(".data")).is_dir():
            shutil.copytree(data, folder / PAGE.replace(".html", ".data"))
    if found := next(_traces(folder, [sae.source for sae in saes]), None):
        raise ValueError(
            f"{found[0]} holds {found[1]}, which is of this machine: make that file anew with relative paths"
        )


def _write_json(target: Path, source: Path, published: Any) -> None:
    """The file as it stands where nothing in it had to change, byte for byte."""
    if loads(source.read_text(encoding="utf-8")) == published:
        shutil.copyfile(source, target)
    else:
        target.write_text(json.dumps(published, ensure_ascii=False), encoding="utf-8")


def _traces(folder: Path, sources: Sequence[Path]) -> Iterator[tuple[str, str]]:
    """(file, what) of every trace of this machine; weights are looked at in their headers alone."""
    from huggingface_hub import get_token

    places = {Path.home(), Path.cwd(), *(source.resolve().parent for source in sources)}
    traces = {str(place): f"the path {place}" for place in places if len(str(place)) >= _SHORTEST_PATH}
    user = getpass.getuser()
    traces |= {f"/{user}/": f"the user name {user}"} if user != "root" else {}
    traces |= {token: "the token of the hub"} if (token := get_token()) else {}
    for file in sorted(path for path in folder.rglob("*") if path.is_file()):
        with file.open("rb") as opened:
            if file.suffix == ".safetensors":
                content = opened.read(min(int.from_bytes(opened.read(8), "little"), 2**20))
            else:
                content = opened.read()
        for needle, what in traces.items():
            if needle.encode() in content:
                yield file.relative_to(folder).as_posix(), what
