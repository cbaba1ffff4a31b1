"""The pass of an index over a store: processes claim shards, keep their tallies on disk, and merge them.

Every process tallies the shards that it claims, and replaces its tally on disk, a part, now and then. A
killed pass resumes with the parts on disk and tallies the other shards, by any number of processes. Parts
merge exactly, so it does not matter who tallied what.
"""

from __future__ import annotations

import logging
import time
from itertools import accumulate
from typing import Any

import torch

from saelens_lite.claims import Processes
from saelens_lite.errors import FeatureIndexError
from saelens_lite.progress import bar
from saelens_lite.sae.autoencoder import SparseAutoencoder
from saelens_lite.store.folder import LocalFolder
from saelens_lite.store.layout import encode_json
from saelens_lite.store.reader import ActivationStore

from .folder import PARTS, open_tensors, write_tensors
from .tally import Tally, add_shard, kept_dtype
from .token_sample import TokenSample

logger = logging.getLogger(__name__)


def tally_store(
    sae: SparseAutoencoder,
    store: ActivationStore,
    hook_point: str,
    folder: LocalFolder,
    plan: dict[str, Any],
    processes: Processes,
    commit_every_s: float,
) -> tuple[Tally, TokenSample] | None:
    """The tally of all rows and the sampled rows, in the first process; None in the others.

    plan: as in index.json; parts of another plan are removed
    commit_every_s: after this many seconds, the next finished shard is committed
    """
    settings = plan["settings"]
    found = processes.agreed("parts", lambda: _parts(folder, plan))
    done = {shard for shards in found.values() for shard in shards}
    if done:
        logger.info("%s: %d of %d shards are tallied already", folder, len(done), store.n_shards)
    first_rows = [0, *accumulate(store.shard_rows)]
    share = settings["sample_tokens"] / max(store.n_rows, 1)
    tally = Tally(sae.d_sae, settings["n_top"], settings["n_sample"], settings["seed"], kept_dtype(sae))
    samples, shards, name = [TokenSample.empty()], [], ""
    started = committed = time.monotonic()
    left = [shard for shard in range(store.n_shards) if shard not in done]
    claimed = processes.claimed(left)
    for shard in bar(claimed, "index", "shard", len(left)) if processes.rank == 0 else claimed:
        samples += add_shard(tally, sae, store, hook_point, shard, first_rows[shard], share)
        shards.append(shard)
        name = f"{PARTS}/{shards[0]:05d}.safetensors"
        if time.monotonic() - committed >= commit_every_s:
            samples = [TokenSample.cat(samples)]
            _write_part(folder, name, tally, samples[0], shards)
            committed = time.monotonic()
            logger.info("%s: %d of %d shards tallied", folder, len(done) + len(shards), store.n_shards)
    # A long pass is committed also at its end: what follows may take long too.
    if shards and (processes.rank > 0 or time.monotonic() - started >= commit_every_s):
        _write_part(folder, name, tally, TokenSample.cat(samples), shards)
    processes.wait_for_all()
    if processes.rank > 0:
        return None
    for part in _parts(folder, plan):
        if part != name:
            file = open_tensors(folder, part)
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (no dict)
            tally.merge(Tally.from_tensors(tensors, settings["seed"]))
            samples.append(TokenSample.from_tensors(tensors))
    if tally.n_tokens != store.n_rows:
        raise FeatureIndexError(
            f"{folder} expected a tally of {store.n_rows:,} rows, got one of {tally.n_tokens:,}: another "
            "process works here too; wait for it, then run the same command again"
        )
    return tally, TokenSample.cat(samples).smallest(settings["sample_tokens"], settings["seed"])


def remove_parts(folder: LocalFolder) -> None:
    """Remove what a pass kept."""
    for name in folder.sizes(PARTS):
        folder.remove(name)
    if (folder.root / PARTS).is_dir():
        (folder.root / PARTS).rmdir()


def _parts(folder: LocalFolder, plan: dict[str, Any]) -> dict[str, list[int]]:
    """The shards of each part on disk, by name; those of another plan are removed; the plan is written."""
    name = f"{PARTS}/plan.json"
    if folder.size(name) is None or folder.read(name) != encode_json(plan):
        remove_parts(folder)
        folder.write(name, encode_json(plan))
    parts, taken = {}, set()
    for part in sorted(part for part in folder.sizes(PARTS) if part.endswith(".safetensors")):
        shards = open_tensors(folder, part).get_tensor("shards").tolist()
        if taken & {*shards}:  # where there are no locks, two processes may have tallied the same shards
            logger.warning(
                "%s tallies shards that another part has: they are tallied again", folder.describe(part)
            )
            folder.remove(part)
        else:
            parts[part] = shards
            taken |= {*shards}
    return parts


def _write_part(folder: LocalFolder, name: str, tally: Tally, sample: TokenSample, shards: list[int]) -> None:
    write_tensors(folder, name, tally.tensors() | sample.tensors() | {"shards": torch.tensor(shards)})
