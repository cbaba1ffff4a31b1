"""The layout of a store: names of its files, their JSON, the format's version, recorded sizes."""

from __future__ import annotations

import hashlib
import json
import re
import shlex
from collections.abc import Collection, Iterable
from typing import Any

from saelens_lite.errors import ShardError
from saelens_lite.json_data import loads, misfit
from saelens_lite.store.codecs import STORE_DTYPES
from saelens_lite.store.folder import Folder

FORMAT, VERSION = "saelens_lite activation store", 1

PLAN, MANIFEST = "plan.json", "manifest.json"
MANIFEST_BEFORE = "manifest.json.before"
"""The manifest of a store while it is given further hook points: without MANIFEST, this one counts."""


def is_finished(store: Folder) -> bool:
    """Whether a manifest says what the store holds."""
    return any(store.size(name) is not None for name in (MANIFEST, MANIFEST_BEFORE))


def plan_of(plan: dict[str, Any], manifest: dict[str, Any]) -> dict[str, Any]:
    """The plan that a manifest was written for: without hook points that were added since."""
    known = {name for shard in manifest["shards"] for name in shard["hook_points"]}
    return {**plan, "hook_points": {name: of for name, of in plan["hook_points"].items() if name in known}}


def shard_name(shard: int) -> str:
    return f"shards/{shard:05d}"


def tokens_name(shard: int) -> str:
    return f"{shard_name(shard)}/tokens.safetensors"


def documents_name(shard: int) -> str:
    return f"{shard_name(shard)}/documents.safetensors"


def data_name(shard: int, hook_point: str) -> str:
    return f"{shard_name(shard)}/{hook_point}.safetensors"


def commit_name(shard: int, hook_point: str) -> str:
    return f"{shard_name(shard)}/{hook_point}.json"


def check_names(hook_points: Iterable[str], new: bool = True) -> None:
    """Refuse hook points whose names cannot be file names in a shard: data must not lead out of its folder.

    new: False for a store that is there, whose names may be odd as long as they stay inside
    raises: ValueError with the name
    """
    for name in hook_points:
        parts = re.split(r"[/\\\\]", name)
        leads_out = "\0" in name or ":" in name or any(part in ("", ".", "..") for part in parts)
        odd = len(parts) > 1 or not name.isprintable() or name != name.strip() or len(name.encode()) > 200
        if leads_out or (new and (odd or name.lower() in ("tokens", "documents"))):
            raise ValueError(
                f"a hook point expected a name such as blocks.3.hook_resid_post, without slashes, colons and "
                f"control characters, and not tokens or documents, got {name[:80]!r}: rename it"
            )


def finished_shards(store: Folder, hook_points: Collection[str]) -> dict[int, int]:
    """Rows of each shard that is committed for all of these hook points, by index, in order.

    raises: ShardError if a committed file is missing or has another size than its commit records
    """
    sizes, finished = store.sizes("shards"), {}
    numbers = {name.split("/")[1] for name in sizes}
    for shard in sorted(int(number) for number in numbers if number.isdecimal()):
        commits = [commit_name(shard, hook_point) for hook_point in hook_points]
        if all(commit in sizes for commit in commits):
            for record in (read_json(store, commit) for commit in commits):
                for file, facts in record["files"].items():
                    name = f"{shard_name(shard)}/{file}"
                    check_size(store, name, sizes.get(name), facts["bytes"])
            finished[shard] = record["rows"]
    return finished


def manifest_sha256(manifest: dict[str, Any]) -> str:
    unsigned = {key: value for key, value in manifest.items() if key != "sha256"}
    return hashlib.sha256(encode_json(unsigned)).hexdigest()


def encode_json(content: dict[str, Any]) -> bytes:
    """The one spelling of a JSON file in a store; floats are read back exactly."""
    return (json.dumps(content, sort_keys=True, ensure_ascii=False, allow_nan=False) + "\n").encode()


def read_json(store: Folder, name: str, missing: str = "it belongs to the store") -> dict[str, Any]:
    """A JSON file of a store. raises: ShardError if it is missing or not a JSON object."""
    return read_json_and_sha256(store, name, missing)[0]


def read_json_and_sha256(
    store: Folder, name: str, missing: str = "it belongs to the store"
) -> tuple[dict[str, Any], str]:
    """A JSON file of a store and the sha256 of its bytes, read once. raises: as read_json"""
    path = store.describe(name)
    try:
        raw = store.read(name)
        content = loads(raw.decode())
    except (FileNotFoundError, NotADirectoryError) as error:
        raise ShardError(f"{path} does not exist: {missing}") from error
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ShardError(f"{path} is not readable JSON ({error}): the file was altered") from error
    if not isinstance(content, dict):
        got = type(content).__name__
        raise ShardError(f"{path} expected a JSON object, got a {got}: the file was altered")
    return content, hashlib.sha256(raw).hexdigest()


_MANIFEST_FORM = {
    "plan_sha256": str,
    "rows_used": int,
    "shards": [
        {
            "rows": int,
            "hook_points": {"*": {"bytes": int, "commit_sha256": str}},
            "tokens?": {"bytes": int},
            "documents?": {"bytes": int},
        }
    ],
}
_PLAN_FORM = {
    "hook_points": {"*": {"d_model": int, "module_path?": str, "shape?": [int]}},
    "dtype?": str,
    "model?": {"name?": str, "revision?": str},
    "tokenizer?": {"name?": str},
    "context_length?": int,
    "bos_id?": int,
}


def check_manifest(manifest: dict[str, Any], path: str) -> None:
    """raises: ShardError unless the manifest says what a reader relies on, whoever wrote its checksum"""
    found = misfit(manifest, _MANIFEST_FORM)
    shards = [] if found else manifest["shards"]
    origins = {"tokens" if "tokens" in shard else "documents" for shard in shards}
    if not found and not shards:
        found = "shards expected at least one"
    elif not found and not (len(origins) == 1 and all(origins <= shard.keys() for shard in shards)):
        found = "shards expected tokens in all, or documents in all"
    elif not found and manifest["rows_used"] > shards[-1]["rows"]:
        found = f"rows_used expected at most the {shards[-1]['rows']} rows of the last shard"
    if found:
        raise ShardError(f"{path} is no manifest of a store: {found}")


def check_plan(plan: dict[str, Any], path: str, shards: Iterable[dict[str, Any]] = ()) -> None:
    """raises: ShardError unless the plan says what a reader relies on, of the hook points that shards have"""
    found = misfit(plan, _PLAN_FORM)
    if not found and plan.get("dtype", "int8") not in STORE_DTYPES:
        found = f"dtype expected one of {', '.join(STORE_DTYPES)}, got {plan['dtype']!r}"
    if not found and not all(0 < point["d_model"] < 2**31 for point in plan["hook_points"].values()):
        found = "d_model expected at least 1 at every hook point"
    if not found:
        needed = plan["hook_points"].keys()
        name = next((name for shard in shards for name in needed - shard["hook_points"].keys()), None)
        found = None if name is None else f"the manifest has no hook point {name!r} in every shard"
    if found:
        raise ShardError(f"{path} is no plan of a store: {found}")


def check_version(plan: dict[str, Any], path: str) -> None:
    """raises: ShardError unless this code knows the plan's format and version"""
    if plan.get("format") != FORMAT:
        raise ShardError(f"{path} expected a plan of format {FORMAT!r}, it states {plan.get('format')!r}")
    if plan.get("version") != VERSION:
        raise ShardError(
            f"{path} has version {plan.get('version')}, this saelens_lite reads version {VERSION}: "
            "use the release that wrote it, or a newer one"
        )


def altered(store: Folder, name: str, by: str) -> ShardError:
    """The error for a file that has another sha256 than is recorded. by: where"""
    return ShardError(
        f"{store.describe(name)} was altered: it has another sha256 than {by} records: restore the file, or "
        f"let `saelens-lite verify {shlex.quote(str(store))} --repair` recompute the shard"
    )


def check_size(store: Folder, name: str, found: int | None, recorded: int) -> None:
    """raises: ShardError unless a file has the bytes recorded for it"""
    if found != recorded:
        state = "is missing" if found is None else f"has {found} bytes"
        raise ShardError(
            f"{store.describe(name)} {state}, the store records {recorded} bytes: restore the file, or let "
            f"`saelens-lite verify {shlex.quote(str(store))} --repair` recompute the shard"
        )
