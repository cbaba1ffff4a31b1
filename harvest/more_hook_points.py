"""Further hook points for a finished store: its tokens run through the model again."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import nn

from saelens_lite.claims import Processes
from saelens_lite.config import differing_fields
from saelens_lite.errors import ShardError
from saelens_lite.lm import hooks
from saelens_lite.lm.decoder import evaluation_mode
from saelens_lite.misfits import names_misfits
from saelens_lite.store.folder import Folder, open_folder
from saelens_lite.store.layout import (
    MANIFEST,
    MANIFEST_BEFORE,
    PLAN,
    altered,
    encode_json,
    tokens_name,
)
from saelens_lite.store.places import Place, place_among
from saelens_lite.store.reader import ActivationStore

from .prepare import hook_point_facts
from .shards.forward import Batch
from .shards.model import compile_blocks, drop_unused, load_model, model_facts
from .shards.model_state import state_facts
from .shards.plan import NAMES_ONLY, STATE
from .shards.resuming import difference, tolerance
from .shards.shard_claims import Claims
from .shards.write import claims_of, log_start, only_writer, seal, write_shards
from .text.tokenized import PackedShard

logger = logging.getLogger(__name__)


@names_misfits
def add_hook_points(
    store: str | os.PathLike[str] | ActivationStore,
    hook_points: str | Sequence[str],
    *,
    model: nn.Module | None = None,
    device: str | None = None,
    trust_remote_code: bool = False,
    progress: bool = True,
) -> ActivationStore:
    """Harvest further hook points for a finished store, from its stored tokens; the text is not needed.

    The result is, byte for byte, the store of a harvest of all hook points at once; with `compile`, last bits
    may differ, as other blocks may be compiled. For each shard's first batch, stored rows are recomputed and
    must agree, so another model is noticed. Until the end the store stays readable as it was. If it is
    interrupted, make the same call again: it resumes.

    store: an open store or its folder
    hook_points: such as "blocks.3.hook_mlp_out"; those in the store cost nothing
    model: the model that was harvested; None loads it by the name that the store records
    raises: ShardError for another model, or a store without tokens; HookError for an unknown hook point
    """
    folder = store.folder if isinstance(store, ActivationStore) else open_folder(store)
    Processes(f"resume {folder}").agreed("resumed", lambda: _undo_interrupted(folder))
    store = ActivationStore(folder)
    asked = (hook_points,) if isinstance(hook_points, str) else tuple(hook_points)
    new = [
        name for name in dict.fromkeys(asked) if place_among(Place(name), store.plan["hook_points"]) is None
    ]
    if not new:
        logger.info("%s holds these hook points already: nothing to do", store.path)
        return store
    if "batch_size_seqs" not in store.plan:
        raise ShardError(
            f"{store.path} was not harvested by saelens_lite, so it does not say how a model made its rows: "
            "harvest anew"
        )
    ours = model is None
    if model is None:
        model = load_model(
            store.model_name,
            compute_dtype=store.plan["model"]["compute_dtype"],
            device=device,
            revision=store.plan["model"]["revision"],
            trust_remote_code=trust_remote_code,
        )
    compiled = {"compiled": True} if store.plan["model"].get("compiled") else {}
    if compiled and not ours:
        raise ValueError(
            f"{store.path} was harvested with compile: leave model out, so that it is compiled here"
        )
    facts: dict[str, Any] = {"model": model_facts(model) | compiled}
    if state := store.plan.get(STATE):
        facts[STATE] = state | state_facts(model)
    differing = differing_fields({key: store.plan[key] for key in facts}, facts, may_differ=NAMES_ONLY)
    if differing:
        raise ShardError(f"{store.path} holds activations of another model: {'; '.join(differing)}")
    points = [hooks.resolve(model, name) for name in new]
    with evaluation_mode(model), torch.inference_mode():
        added = hook_point_facts(model, points)
        plan = store.plan | added | {"hook_points": store.plan["hook_points"] | added["hook_points"]}
        known = _shallowest(model, store.hook_points)
        if ours:
            needed = [*points, hooks.resolve(model, known)]
            drop_unused(model, needed)
            if compiled:
                compile_blocks(model, needed)
        _add(model, store, plan, new, known, progress)
    return ActivationStore(store.folder)


def _add(
    model: nn.Module, store: ActivationStore, plan: dict[str, Any], new: list[str], known: str, progress: bool
) -> None:
    folder, checked = store.folder, set()

    def check(batch: Batch) -> None:
        if batch.shard.index in checked or not batch.n_rows:
            return
        checked.add(batch.shard.index)
        there = store.acts(batch.shard.index, known)[: batch.n_rows].float()
        again = batch.rows[known].wait()[: len(there)].float()
        off = difference(again, there)
        if not off < tolerance(plan):
            raise ShardError(
                f"{folder}: {known} of shard {batch.shard.index}, computed again, differs from its stored "
                f"rows by {off:.1%}: expected the harvested model, with the same weights and positions"
            )

    with only_writer(folder):
        if folder.read(PLAN) != encode_json(store.plan):
            raise ShardError(f"{folder} was given hook points meanwhile: run the same command again")
        claims = claims_of(folder, plan, new)
        log_start(folder, model, claims, plan, added=new)
        packed = _stored_shards(store, claims)
        write_shards(model, packed, plan, new, folder, claims, progress, also=(known,), check=check)
        claims.wait_for_all()
        if claims.rank == 0:
            _adopt(folder, plan, claims)
        claims.seal()


def _adopt(folder: Folder, plan: dict[str, Any], claims: Claims) -> None:
    """Give the store its new plan and manifest; the old one stays until then and is read meanwhile."""
    folder.move(MANIFEST, MANIFEST_BEFORE)
    folder.write(PLAN, encode_json(plan))
    seal(folder, plan, claims)
    folder.remove(MANIFEST_BEFORE)


def _undo_interrupted(folder: Folder) -> None:
    """Undo an `_adopt` that was interrupted between its steps; the new shards stay for the next try."""
    if folder.size(MANIFEST_BEFORE) is None:
        return
    with only_writer(folder):
        if folder.size(MANIFEST) is not None:
            folder.remove(MANIFEST_BEFORE)
        elif folder.size(MANIFEST_BEFORE) is not None:
            plan = ActivationStore(folder).plan
            folder.write(PLAN, encode_json(plan))
            folder.move(MANIFEST_BEFORE, MANIFEST)


def _stored_shards(store: ActivationStore, claims: Claims) -> Iterator[PackedShard]:
    """The claimed shards, from the tokens that the store holds."""
    for index in claims:
        if index >= store.n_shards:
            return
        commit, tokens = store.commit(index, store.hook_points[0]), tokens_name(index)
        if store.folder.sha256(tokens) != commit["files"]["tokens.safetensors"]["sha256"]:
            raise altered(store.folder, tokens, "its commit")
        yield PackedShard(index, store.contexts(index), commit["documents"], None)


def _shallowest(model: nn.Module, names: Sequence[str]) -> str:
    """The hook point among these that a forward pass reaches first."""

    def depth(name: str) -> tuple[int, int]:
        point = hooks.resolve(model, name)
        kinds = ("resid_pre", "z", "attn_out", "module", "mlp_in", "mlp_out", "resid_post")
        return (-1 if point.block is None else point.block), kinds.index(point.kind)

    return min(names, key=depth)
