"""`saelens-lite verify`: a store checked byte by byte, and mended; an index or an SAE checked."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from saelens_lite.cli.flags import configured
from saelens_lite.cli.shared import print_next
from saelens_lite.config import PERMISSION, from_mapping, marked

if TYPE_CHECKING:
    from saelens_lite.store.folder import Folder

HARVEST_AGAIN = "give the harvest call of this store again: it makes what is missing"


def run(argv: Sequence[str]) -> int:
    """Whether every bit of a store is as it was written; mends what is not"""
    config = configured(VerifyConfig, "verify", argv)
    from saelens_lite.store.folder import open_folder
    from saelens_lite.store.layout import MANIFEST, PLAN, is_finished
    from saelens_lite.store.verify import repair_begun, repair_store, verify_store

    folder = open_folder(config.store)
    for name, verify in (("index.json", _verify_index), ("cfg.json", _verify_sae)):
        if folder.size(name) is not None:
            return _report(folder, verify(config.store), config.repair)
    before = folder.read(MANIFEST) if folder.size(MANIFEST) is not None else None
    finished, begun = is_finished(folder), repair_begun(folder)
    problems = verify_store(folder)
    for problem in problems:
        print(problem)
    if problems:
        print(f"{folder}: {len(problems)} problem{'s' if len(problems) > 1 else ''}")
    elif begun:
        print(f"{folder}: a repair did not end, what it moved aside is not made anew yet")
    else:
        return _all_is_well(folder)
    if not config.repair:
        print_next("verify", config.store, repair=True)
        return 1
    settings = _settings(folder) if finished or begun else None
    if settings and settings.get("trust_remote_code") and not config.trust_remote_code:
        raise ValueError(
            f"{folder} says that its model {settings.get('model')!r} runs Python code of its repository: if "
            "you trust that code, add --trust-remote-code"
        )
    moved = repair_store(folder, problems)
    print(f"moved to {folder}/damaged: {', '.join(moved) or 'nothing'}")
    if not (finished or begun):
        print(f"the store is unfinished: {HARVEST_AGAIN}")
        return 0
    if folder.size(PLAN) is None or not is_finished(folder):
        if not _harvest_again(config, settings):
            return 1
        whole = before is not None and MANIFEST not in {problem.file for problem in problems}
        if whole and folder.read(MANIFEST) != before:
            print("rows made anew differ from those before: another machine, number of threads, or version")
    problems = verify_store(folder)
    for problem in problems:
        print(f"still: {problem}")
    return 1 if problems else _all_is_well(folder)


def _verify_index(path: str) -> list[str]:
    from saelens_lite.analyze.index.feature_index import verify_index

    return verify_index(path)


def _verify_sae(path: str) -> list[str]:
    from saelens_lite.sae.folder import verify_sae

    return verify_sae(Path(path))


def _report(folder: Folder, problems: list[str], repair: bool) -> int:
    """Of an index or an SAE, which are made anew as a whole."""
    for problem in problems:
        print(problem)
    if not problems:
        print(f"{folder}: every file is as it was written")
    elif repair:
        print("--repair is for stores: restore the files, or make the folder anew by analyze or train")
    return 1 if problems else 0


def _all_is_well(folder: Folder) -> int:
    from saelens_lite.store.layout import MANIFEST, is_finished

    print(f"{folder}: every file is as it was written")
    if not is_finished(folder):
        print(f"the store is unfinished: {HARVEST_AGAIN}")
    elif folder.size(MANIFEST) is None:
        print("hook points were being added to it: give the same add-hook-points command again")
    return 0


def _settings(folder: Folder) -> dict[str, Any] | None:
    """What the store's log says that the user asked for."""
    from saelens_lite.store.event_log import events

    told = [event.get("settings") for event in events(folder, "start")]
    return next((settings for settings in reversed(told) if settings and isinstance(settings, dict)), None)


def _harvest_again(config: VerifyConfig, settings: dict[str, Any] | None) -> bool:
    """Make what a repair moved aside, with the settings in the store's log but for permissions; says why if
    they are not there."""
    from saelens_lite.harvest.config import HarvestConfig
    from saelens_lite.harvest.harvest import run_harvest
    from saelens_lite.store.folder import open_folder
    from saelens_lite.store.layout import read_json
    from saelens_lite.store.verify import intact_manifests

    folder = open_folder(config.store)
    plan = None if folder.size("plan.json") is None else read_json(folder, "plan.json")
    if plan is not None and "source" in plan:
        print("this store was made from arrays or another format, which cannot be harvested: write it anew")
        return False
    if plan is None:
        manifests = intact_manifests(folder)
        hook_points = list(manifests[0]["shards"][0]["hook_points"]) if manifests else []
    else:
        hook_points = list(plan["hook_points"])
    if settings is None:
        print("the log does not say how this store was harvested, or not by names alone")
        print(f"{HARVEST_AGAIN}; its hook points are {' '.join(hook_points) or 'those of the first call'}")
        return False
    hook_points = hook_points or settings["hook_points"]
    asked_again = marked(HarvestConfig, PERMISSION)
    given = {
        key: tuple(value) if isinstance(value, list) else value
        for key, value in settings.items()
        if key not in asked_again
    }
    given |= {"store": config.store, "hook_points": tuple(hook_points)}
    given |= {"trust_remote_code": config.trust_remote_code}
    run_harvest(from_mapping(HarvestConfig, given, f"{config.store}/log.jsonl"))
    return True


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class VerifyConfig:
    """Read every byte of a store, finished or not, of an index or of an SAE, and list what is altered, short
    or missing (exit code 1)."""

    store: str
    """Folder or URL of the activation store; or the folder of an index or of an SAE, which is only read."""

    repair: bool = False
    """Move damaged files to damaged/ inside the store, and make exactly those shards anew."""

    trust_remote_code: bool = False
    """With --repair: allow the model's and tokenizer's repositories, which the store names, to run their own
    Python code on this machine."""
