"""Checks every byte of a store against the store's own records, and moves aside what is damaged.

The manifest vouches for the plan and the commits, a commit for its two files, a line of a log for itself. In
an unfinished store, which has no manifest, the log vouches for the plan, and each commit is trusted. Nothing
that a damaged file says is relied upon, and nothing is unpickled.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from saelens_lite.errors import ShardError
from saelens_lite.misfits import names_misfits
from saelens_lite.store.event_log import checked_lines, events
from saelens_lite.store.folder import LOCK, Folder, open_folder
from saelens_lite.store.layout import (
    MANIFEST,
    MANIFEST_BEFORE,
    PLAN,
    VERSION,
    check_manifest,
    check_version,
    commit_name,
    data_name,
    documents_name,
    encode_json,
    is_finished,
    manifest_sha256,
    plan_of,
    shard_name,
    tokens_name,
)

_LOG = re.compile(r"log(\.\d+)?\.jsonl")
_OF_SHARD = re.compile(r"shards/\d{5,}/[^/]+\.(safetensors|json)")
_IN_SHARD = re.compile(r"shards/(\d{5,})/([^/]+)")
_ASIDE = "damaged"
_FOREIGN = "does not belong to the store"


@dataclasses.dataclass(frozen=True, slots=True)
class Problem:
    """One thing that is wrong with a store.

    file:  its name in the store, such as "shards/00001/tokens.safetensors"
    shard: index of the file's shard; None for the store's own files
    what:  what is wrong with the file
    """

    file: str
    shard: int | None
    what: str

    def __str__(self) -> str:
        return f"{self.file} {self.what}"


@names_misfits
def verify_store(path: str | os.PathLike[str] | Folder) -> list[Problem]:
    """Read every file of a store, finished or not, and find what is altered, short, missing or foreign.

    Temporary files that a killed harvest left, its lock and the folder `damaged` are no problems.

    path: a local folder, or any URL that fsspec opens
    returns: the problems by file; empty if all is well
    raises: ShardError if the folder is no store, or one of a newer format
    """
    return sorted(_Examined(open_folder(path)).problems, key=lambda problem: problem.file)


@names_misfits
def repair_store(
    path: str | os.PathLike[str] | Folder, problems: Sequence[Problem] | None = None
) -> list[str]:
    """Move what is damaged, and what depends on it, to `damaged/<n>` inside the store.

    The same harvest then makes it anew. Of a shard these are the rows and the commit of a damaged hook point,
    or everything if its tokens are damaged; and the manifest. Undamaged lines of a log stay. Nothing is
    deleted; other shards, and files of other names than a store's, are not touched.

    problems: those that `verify_store` just found; None looks
    returns: names of the files that were moved
    raises: ShardError if a harvest is writing the store, or it cannot be written
    """
    folder = open_folder(path)
    if problems is None:
        problems = verify_store(folder)
    if not problems:
        return []
    with folder.locked() as ours:
        if not ours:
            raise ShardError(f"a harvest is writing {folder}: wait for it, or stop it, before repairing")
        there = folder.sizes()
        names = [name for name in _with_dependents(folder, problems, there) if name in there]
        if not names:
            return []
        aside = _free_folder(there)
        for name in names:
            kept = b"".join(_undamaged_lines(folder.read(name))) if _LOG.fullmatch(name) else None
            folder.move(name, f"{aside}/{name}")
            if kept is not None:
                folder.write(name, kept)
    return names


def recorded_plans(folder: Folder) -> set[str]:
    """sha256 of each plan that this store had: from intact manifests, also those moved aside, and the log."""
    return _plans_of(intact_manifests(folder), events(folder, "start"))


def intact_manifests(folder: Folder) -> list[dict[str, Any]]:
    """The store's manifest, that before it, then those that repairs moved aside, latest first; intact ones
    only."""
    asides = {int(name.split("/")[1]) for name in folder.sizes(_ASIDE) if name.endswith(f"/{MANIFEST}")}
    names = [MANIFEST, MANIFEST_BEFORE]
    names += [f"{_ASIDE}/{number}/{MANIFEST}" for number in sorted(asides, reverse=True)]
    found = (_manifest_in(folder.read(name)) for name in names if folder.size(name) is not None)
    return [manifest for manifest in found if manifest is not None]


def repair_begun(folder: Folder) -> bool:
    """Whether a repair moved the store's manifest aside and what is to be made anew is still missing."""
    aside = (name.rsplit("/", 1)[1] for name in folder.sizes(_ASIDE))
    return not is_finished(folder) and any(name in (MANIFEST, MANIFEST_BEFORE) for name in aside)


class _Examined:
    """One look at every file of a store."""

    def __init__(self, folder: Folder):
        self.folder = folder
        self.sizes = {
            name: size for name, size in folder.sizes().items() if not name.startswith(f"{_ASIDE}/")
        }
        self.problems: dict[Problem, None] = {}
        self._starts: list[dict[str, Any]] = []
        self._hashes: dict[str, str | None] = {}
        self._in_shards: dict[int, set[str]] = {}
        for name in self.sizes:
            if found := _IN_SHARD.fullmatch(name):
                self._in_shards.setdefault(int(found[1]), set()).add(found[2])
        if not self._is_store():
            raise ShardError(
                f"{folder} expected an activation store, there is no {PLAN}, no {MANIFEST} and no shard of "
                "one"
            )
        self._examine()

    def _is_store(self) -> bool:
        """Whether a file here can only be a store's: a folder of others may have a manifest.json too."""
        for name in {PLAN, MANIFEST, MANIFEST_BEFORE} & self.sizes.keys():
            if str((_object_in(self._read(name) or b"") or {}).get("format", "")).startswith("saelens_lite"):
                return True
        if any("plan_sha256" in event for event in events(self.folder, "start")):
            return True
        for index, names in self._in_shards.items():
            for point in (name.removesuffix(".json") for name in names if name.endswith(".json")):
                record = _object_in(self._read(commit_name(index, point)) or b"")
                if record is not None and _is_commit(record, index, point):
                    return True
        return False

    def _examine(self) -> None:
        for name in self.sizes:
            if _LOG.fullmatch(name):
                self._examine_log(name)
        manifest = self._manifest(MANIFEST)
        self._manifest(MANIFEST_BEFORE)
        plan = self._plan(manifest)
        expected = [] if manifest is None else manifest["shards"]
        known = set().union(
            *(shard["hook_points"] for shard in expected), (plan or {}).get("hook_points", ())
        )
        known |= {name for event in self._starts for name in event.get("added", ())}
        for index in sorted({*range(len(expected)), *self._in_shards}):
            if manifest is None:
                self._examine_shard(index, {}, known)
            elif index < len(expected):
                self._examine_shard(index, expected[index], known)
        for name in self.sizes:
            shard = _IN_SHARD.fullmatch(name)
            beyond = shard is not None and manifest is not None and int(shard[1]) >= len(expected)
            outside = (
                shard is None
                and name not in (MANIFEST, PLAN, MANIFEST_BEFORE, LOCK)
                and not _LOG.fullmatch(name)
            )
            if (beyond or outside) and not name.endswith(".tmp"):
                self._note(name, _FOREIGN)

    def _examine_log(self, name: str) -> None:
        content = self._read(name)
        for number, entry in checked_lines(content or b""):
            if entry is None:
                self._note(name, f"is damaged in line {number}")
            elif entry.get("event") == "start":
                self._starts.append(entry)

    def _manifest(self, name: str) -> dict[str, Any] | None:
        """The manifest, if it is intact."""
        if name not in self.sizes or (content := self._read(name)) is None:
            return None
        manifest = _manifest_in(content)
        if manifest is None:
            self._note(name, "was altered: it is no manifest that has the sha256 it states")
        else:
            check_version(manifest, self.folder.describe(name))
        return manifest

    def _plan(self, manifest: dict[str, Any] | None) -> dict[str, Any] | None:
        """The plan, if it is intact."""
        if PLAN not in self.sizes:
            self._note(PLAN, "is missing")
            return None
        if (content := self._read(PLAN)) is None:
            return None
        plan, digest = _object_in(content), hashlib.sha256(content).hexdigest()
        digests = {digest}
        if manifest is not None:
            vouched = {manifest["plan_sha256"]}
        else:
            intact = intact_manifests(self.folder)
            vouched = _plans_of(intact, self._starts)
            if plan is not None and isinstance(plan.get("hook_points"), dict):
                digests |= {hashlib.sha256(encode_json(plan_of(plan, of))).hexdigest() for of in intact}
        if vouched and not digests & vouched:
            self._note(
                PLAN, f"has another sha256 than the {'log' if manifest is None else 'manifest'} records"
            )
        elif plan is None or not isinstance(plan.get("hook_points"), dict):
            self._note(PLAN, "is not readable: it was altered")
        else:
            try:
                check_version(plan, self.folder.describe(PLAN))
                return plan
            except ShardError as error:
                if vouched:
                    raise
                self._note(PLAN, f"was altered, or is of another format: {error}")
        return None

    def _examine_shard(self, index: int, expected: dict[str, Any], known: set[str]) -> None:
        """expected: the manifest's entry for the shard; empty without a manifest"""
        there = self._in_shards.get(index, set())
        promised = expected.get("hook_points", {})
        commits = {name.removesuffix(".json") for name in there if name.endswith(".json")}
        origins = {name.rsplit("/", 1)[1] for name in (tokens_name(index), documents_name(index))}
        if promised:
            origins = {name for name in origins if name.removesuffix(".safetensors") in expected}
            for name in origins - there:
                self._note(f"{shard_name(index)}/{name}", "is missing")
        for hook_point in sorted(promised | dict.fromkeys(commits)):
            facts = promised.get(hook_point)
            files = self._commit(index, hook_point, None if facts is None else facts["commit_sha256"])
            if files is None and facts is not None:  # the manifest knows the size alone
                self._examine_file(data_name(index, hook_point), facts["bytes"], None)
            for name, recorded in (files or {}).items():
                self._examine_file(f"{shard_name(index)}/{name}", recorded["bytes"], recorded["sha256"])
        belonging = (
            origins
            | {f"{name}.safetensors" for name in known | commits}
            | {f"{name}.json" for name in commits}
        )
        for name in there - belonging:
            if not name.endswith(".tmp"):
                self._note(f"{shard_name(index)}/{name}", _FOREIGN)

    def _commit(self, index: int, hook_point: str, sha256: str | None) -> dict[str, Any] | None:
        """What a commit records of its files, if it is intact. sha256: None if nothing records it"""
        name = commit_name(index, hook_point)
        if name not in self.sizes:
            self._note(name, "is missing")
            return None
        if (content := self._read(name)) is None:
            return None
        if sha256 is not None and hashlib.sha256(content).hexdigest() != sha256:
            self._note(name, "has another sha256 than the manifest records")
            return None
        record = _object_in(content)
        if record is None or not _is_commit(record, index, hook_point):
            self._note(name, "is no commit of this shard and hook point: it was altered")
            return None
        return record["files"]

    def _examine_file(self, name: str, size: int, sha256: str | None) -> None:
        found = self.sizes.get(name)
        if found is None:
            self._note(name, "is missing")
        elif found != size:
            self._note(name, f"has {found} bytes, the store records {size} bytes")
        elif sha256 is not None:
            if name not in self._hashes:
                with self._refusals_noted(name):
                    self._hashes[name] = None
                    self._hashes[name] = self.folder.sha256(name)
            if self._hashes[name] not in (None, sha256):
                self._note(name, "has another sha256 than its commit records")

    def _read(self, name: str) -> bytes | None:
        with self._refusals_noted(name):
            return self.folder.read(name)
        return None

    @contextlib.contextmanager
    def _refusals_noted(self, name: str) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            self._note(name, f"cannot be read: {error.strerror or error}")

    def _note(self, name: str, what: str) -> None:
        found = _IN_SHARD.fullmatch(name)
        self.problems[Problem(name, None if found is None else int(found[1]), what)] = None


def _plans_of(manifests: Iterable[dict[str, Any]], starts: Iterable[dict[str, Any]]) -> set[str]:
    """sha256 of the plans that manifests and a log's start events record."""
    return {record["plan_sha256"] for record in (*manifests, *starts) if "plan_sha256" in record}


def _with_dependents(folder: Folder, problems: Iterable[Problem], there: Iterable[str]) -> list[str]:
    """The damaged files and those that must be made anew with them, in the order of moving.

    Commits go before the rows they vouch for, manifests last. If a repair is killed, the manifest misses
    what was moved, and the next repair finds it.
    """
    names, intact = set(), intact_manifests(folder)
    covered = set(intact[0]["shards"][0]["hook_points"]) if intact and intact[0]["shards"] else set()
    for problem in problems:
        if problem.what == _FOREIGN and not _OF_SHARD.fullmatch(problem.file):
            continue
        names.add(problem.file)
        if problem.shard is None:
            continue
        file = problem.file.rsplit("/", 1)[1]
        if file in ("tokens.safetensors", "documents.safetensors"):
            prefix = f"{shard_name(problem.shard)}/"
            names |= {name for name in there if name.startswith(prefix)}
            names |= {MANIFEST, MANIFEST_BEFORE}
        else:
            hook_point = file.removesuffix(".json").removesuffix(".safetensors")
            names |= {commit_name(problem.shard, hook_point), data_name(problem.shard, hook_point)}
            if hook_point in covered:
                names |= {MANIFEST, MANIFEST_BEFORE}
    manifests = (MANIFEST, MANIFEST_BEFORE)
    return sorted(names, key=lambda name: (name in manifests, not name.endswith(".json"), name))


def _undamaged_lines(content: bytes) -> Iterator[bytes]:
    lines = content.split(b"\n")
    for number, entry in checked_lines(content):
        if entry is not None:
            yield lines[number - 1] + b"\n"


def _free_folder(names: Iterable[str]) -> str:
    taken = {name.split("/")[1] for name in names if name.startswith(f"{_ASIDE}/")}
    number = 1
    while str(number) in taken:
        number += 1
    return f"{_ASIDE}/{number}"


def _object_in(content: bytes) -> dict[str, Any] | None:
    """The JSON object in these bytes, if they spell it as the store does."""
    with contextlib.suppress(ValueError, RecursionError):
        found = json.loads(content)
        if isinstance(found, dict) and encode_json(found) == content:
            return found
    return None


def _manifest_in(content: bytes) -> dict[str, Any] | None:
    """The manifest in these bytes, if it has the sha256 it states and the form of one."""
    manifest = _object_in(content)
    if manifest is None or manifest.get("sha256") != manifest_sha256(manifest):
        return None
    if manifest.get("version") == VERSION:
        try:
            check_manifest(manifest, MANIFEST)
        except ShardError:
            return None
    return manifest


def _is_commit(record: dict[str, Any], index: int, hook_point: str) -> bool:
    """Whether this has the form of a commit of this shard and hook point."""
    files = record.get("files")
    if (record.get("shard"), record.get("hook_point")) != (index, hook_point) or not isinstance(files, dict):
        return False
    origins = files.keys() - {f"{hook_point}.safetensors"}
    return (
        len(files) == 2
        and origins < {"tokens.safetensors", "documents.safetensors"}
        and all(
            isinstance(facts, dict)
            and isinstance(facts.get("bytes"), int)
            and isinstance(facts.get("sha256"), str)
            for facts in files.values()
        )
    )
