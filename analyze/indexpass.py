"""The pass of an index over a store: shards claimed by processes, tallies kept as they grow, merged at the end.

Every process tallies the shards that it claims, and its tally on disk, a part, is replaced every so often. A pass that was
killed begins with the parts that are there and tallies the other shards, by however many processes. What parts hold merges
exactly, so who tallied what cannot matter.
"""

from __future__ import annotations

import datetime
import json
import logging
import time
from collections.abc import Callable, Iterator, Sequence
from itertools import accumulate
from typing import Any

import torch

from saelens_lite.distributed import meeting, several_processes
from saelens_lite.files import LocalFolder
from saelens_lite.sae import SparseAutoencoder
from saelens_lite.shards import encode_json
from saelens_lite.store import ActivationStore

from .index import add_shard, kept_dtype
from .indexfile import PARTS, open_tensors, write_tensors
from .tally import Tally
from .tokensample import TokenSample

logger = logging.getLogger(__name__)

_PATIENCE = datetime.timedelta(days=30)
"""How long one process waits for another; torchrun ends them all as soon as one fails."""


class Processes:
    """The processes that torchrun started for one index; alone, everything is at hand."""

    def __init__(self, purpose: str) -> None:
        self._kv, self.rank, self._n = meeting(purpose, _PATIENCE) if several_processes() else (None, 0, 1)

    def agreed(self, name: str, value: Callable[[], Any]) -> Any:
        """What value() is in the first process, as JSON carries it; the others wait for it."""
        if self._kv is None:
            return value()
        if self.rank == 0:
            self._kv.set(name, json.dumps(value()))
        self._kv.wait([name], _PATIENCE)
        return json.loads(self._kv.get(name))

    def claimed(self, items: Sequence[int]) -> Iterator[int]:
        """Those of the items, the same in all processes, that this one takes: each time the next that nobody has."""
        if self._kv is None:
            yield from items
            return
        while (place := self._kv.add("claimed", 1) - 1) < len(items):
            yield items[place]

    def wait_for_all(self) -> None:
        """Return when every process has come here."""
        if self._kv is not None:
            self._kv.set(f"done/{self.rank}", "")
            self._kv.wait([f"done/{rank}" for rank in range(self._n)], _PATIENCE)


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
    commit_every_s: seconds after which a finished shard is followed by a commit
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
    for shard in processes.claimed([shard for shard in range(store.n_shards) if shard not in done]):
        samples += add_shard(tally, sae, store, hook_point, shard, first_rows[shard], share)
        shards.append(shard)
        name = f"{PARTS}/{shards[0]:05d}.safetensors"
        if time.monotonic() - committed >= commit_every_s:
            samples = [TokenSample.cat(samples)]
            _write_part(folder, name, tally, samples[0], shards)
            committed = time.monotonic()
            logger.info("%s: %d of %d shards tallied", folder, len(done) + len(shards), store.n_shards)
    if shards and (processes.rank > 0 or time.monotonic() - started >= commit_every_s):  # what follows may take long too
        _write_part(folder, name, tally, TokenSample.cat(samples), shards)
    processes.wait_for_all()
    if processes.rank > 0:
        return None
    for part in _parts(folder, plan):
        if part != name:
            file = open_tensors(folder, part)
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (a safetensors file is no dict)
            tally.merge(Tally.from_tensors(tensors, settings["seed"]))
            samples.append(TokenSample.from_tensors(tensors))
    assert tally.n_tokens == store.n_rows, f"{tally.n_tokens} rows were tallied of {store.n_rows}"
    return tally, TokenSample.cat(samples).smallest(settings["sample_tokens"], settings["seed"])


def remove_parts(folder: LocalFolder) -> None:
    """Remove what a pass kept while it was under way."""
    for name in folder.sizes(PARTS):
        folder.remove(name)
    if (folder.root / PARTS).is_dir():
        (folder.root / PARTS).rmdir()


def _parts(folder: LocalFolder, plan: dict[str, Any]) -> dict[str, list[int]]:
    """The shards of each part that is there, by name; parts of another plan are removed, and the plan is written."""
    name = f"{PARTS}/plan.json"
    if folder.size(name) is None or folder.read(name) != encode_json(plan):
        remove_parts(folder)
        folder.write(name, encode_json(plan))
    parts = sorted(part for part in folder.sizes(PARTS) if part.endswith(".safetensors"))
    return {part: open_tensors(folder, part).get_tensor("shards").tolist() for part in parts}


def _write_part(folder: LocalFolder, name: str, tally: Tally, sample: TokenSample, shards: list[int]) -> None:
    write_tensors(folder, name, tally.tensors() | sample.tensors() | {"shards": torch.tensor(shards)})
