"""The plan: everything that determines a store's rows, and so must not change when a harvest resumes."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

from saelens_lite.config import differing_fields
from saelens_lite.errors import ShardError
from saelens_lite.store.folder import Folder
from saelens_lite.store.layout import (
    FORMAT,
    PLAN,
    VERSION,
    check_names,
    check_version,
    encode_json,
    is_finished,
    read_json,
)
from saelens_lite.store.verify import recorded_plans

PACKING_RULE = "continuous"
"""Name of the rule in `saelens_lite.store.packing.pack`."""

MOST_ROWS_PER_SHARD = 262_144
SHARDS_PER_RUN = 32

STATE = "state"
"""What the model and tokenizer are in beside their numbers. Older stores do not record it: they resume by the
comparison of rows alone."""

NAMES_ONLY = {"model.name", "model.revision", "tokenizer.name"}
"""Fields that say where something came from. Hashes say what it is, so a moved folder is no new plan."""


def documents_per_shard(mean_tokens: float, max_tokens: int, batch_tokens: int) -> int:
    """The default number of documents a shard: the power of two at or below wanted rows / mean document.

    An interruption costs a shard, and a process claims a shard at a time. So a run has about 32 of them, if
    each fills eight forward batches, of at most 2^18 rows (2 GiB in bfloat16 at width 4096).
    """
    rows = min(MOST_ROWS_PER_SHARD, max(max_tokens / SHARDS_PER_RUN, 8 * batch_tokens))
    documents = max(1, int(rows / max(1.0, mean_tokens)))
    return 1 << (documents.bit_length() - 1)


def make_plan(facts: Mapping[str, Any]) -> dict[str, Any]:
    check_names(facts["hook_points"])
    return {"format": FORMAT, "version": VERSION, "packing": PACKING_RULE, **facts}


def plan_sha256(plan: dict[str, Any]) -> str:
    """sha256 of the plan's plan.json."""
    return hashlib.sha256(encode_json(plan)).hexdigest()


def identity_sha256(plan: dict[str, Any]) -> str:
    """sha256 of what the plan says of its rows, without the names, which may change, and the state."""
    plan = {
        key: dict(value) if isinstance(value, Mapping) else value
        for key, value in without_state(plan).items()
    }
    for field in NAMES_ONLY:
        part, _, name = field.partition(".")
        plan[part].pop(name, None)
    return plan_sha256(plan)


def without_state(plan: Mapping[str, Any]) -> dict[str, Any]:
    """The plan as older versions wrote it."""
    return {key: value for key, value in plan.items() if key != STATE}


def adopt_plan(plan: dict[str, Any], store: Folder) -> dict[str, Any]:
    """Write the plan to a new store, or check that the store has the same. Returns the store's plan.

    raises: ShardError as `check_plan`
    """
    found = check_plan(plan, store)
    if store.size(PLAN) is None:
        store.write(PLAN, encode_json(found))
    return found


def check_plan(plan: dict[str, Any], store: Folder) -> dict[str, Any]:
    """The store's plan, which is the same but for names; this one for a store that has none.

    A store that lost its plan.json gets it again if its manifest or its log records this plan's hash.
    raises: ShardError if the store has another plan (names the differing fields), or holds something else
    """
    if store.size(PLAN) is None:
        if store.is_empty(but_for=(f"{PLAN}.tmp",)):
            return plan
        recorded = recorded_plans(store)
        for candidate in (plan, without_state(plan)):
            if plan_sha256(candidate) in recorded:
                return candidate
        if recorded:
            raise ShardError(
                f"{store} lost its plan.json, and this harvest's plan is not the one it was begun with: "
                "use the first settings, with model and dataset under the same names"
            )
        raise ShardError(
            f"{store} is not empty and holds no plan.json: choose a new or empty folder for the store"
        )
    found = read_json(store, PLAN)
    check_version(found, store.describe(PLAN))
    if is_finished(store):  # hook points that were added later are no difference
        plan = {**plan, "hook_points": {**found["hook_points"], **plan["hook_points"]}}
    plan = plan if STATE in found else without_state(plan)
    differing = differing_fields(found, plan, may_differ=NAMES_ONLY)
    if differing:
        raise ShardError(
            f"{store} was begun with another plan: {'; '.join(differing)}. "
            "Use the first settings to resume, or choose another folder"
        )
    return found
