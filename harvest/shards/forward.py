"""The forward pass of a harvest: packed contexts in, rows at the hook points out."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from saelens_lite.lm import hooks
from saelens_lite.lm.decoder import Decoder
from saelens_lite.store.codecs import STORE_DTYPES
from saelens_lite.store.packing import APART, PADDING_ID

from ..text.tokenized import PackedShard
from .model_state import autocast_of


@dataclasses.dataclass(slots=True)
class Rows:
    """Rows of one batch at one hook point, perhaps still in flight from the device."""

    tensor: Tensor
    arrived: torch.cuda.Event | None = None

    def wait(self) -> Tensor:
        """The rows on the host: dtype[n_rows d_model]."""
        if self.arrived is not None:
            self.arrived.synchronize()
        return self.tensor


@dataclasses.dataclass(slots=True)
class Batch:
    """What one forward pass gave for a shard; a shard without contexts has one batch without rows.

    rows: by hook point, n_rows at each
    host_s: seconds until the pass was queued, or done where nothing is queued
    events: around the pass on a CUDA device
    """

    shard: PackedShard
    rows: dict[str, Rows]
    n_rows: int
    host_s: float
    events: tuple[torch.cuda.Event, torch.cuda.Event] | None = None

    @property
    def forward_s(self) -> float:
        """Seconds of the pass; waits for its end."""
        if self.events is None:
            return self.host_s
        self.events[1].synchronize()
        return self.events[0].elapsed_time(self.events[1]) / 1000


def forward_batches(
    model: nn.Module,
    shards: Iterable[PackedShard],
    hook_points: Sequence[str],
    plan: Mapping[str, Any],
) -> Iterator[Batch]:
    """Run packed shards through the model. Batches hold contexts of one shard, in order.

    Padding comes last, where causal attention does not let real tokens see it; other models need a mask.

    plan: its batch_size_seqs; its dtype, to which rows are converted before the transfer unless that widens
        them; and what it says of the model. A compiled one gets a shard's last batch padded: torch.compile
        gives up after a few shapes, and rows would depend on the shards before
    """
    decoder, stored, batch_size_seqs = Decoder(model), STORE_DTYPES[plan["dtype"]], plan["batch_size_seqs"]
    one_shape = plan.get("model", {}).get("compiled", False)
    host = _Host(decoder.device)
    for shard in shards:
        contexts = shard.contexts
        for start in range(0, max(1, contexts.n_seqs), batch_size_seqs):
            began = time.perf_counter()
            seqs = slice(start, start + batch_size_seqs)
            # documents apart may be short; elsewhere the width is the context's
            short = plan.get("packing") == APART and not one_shape
            width = max(1, contexts.attended[seqs].sum(1).max(initial=0)) if short else None
            kept = np.flatnonzero(contexts.kept[seqs, :width])
            rows, before, after = {}, host.mark(), None
            if len(kept):
                with torch.inference_mode(), autocast_of(plan, decoder.device):
                    input_ids = torch.from_numpy(contexts.input_ids[seqs, :width].astype(np.int64))
                    if one_shape:
                        missing = batch_size_seqs - len(input_ids)
                        input_ids = nn.functional.pad(input_ids, (0, 0, 0, missing), value=PADDING_ID)
                    inputs = {"input_ids": input_ids}
                    if plan.get("attention_mask"):
                        inputs["attention_mask"] = torch.ones_like(input_ids)
                        attended = torch.from_numpy(contexts.attended[seqs, :width])
                        inputs["attention_mask"][: len(attended)] = attended
                    uploaded = {name: host.upload(tensor) for name, tensor in inputs.items()}
                    acts = hooks.run_to(decoder, hook_points, **uploaded)
                    after = host.mark()
                    for name in hook_points:
                        rows[name] = host.download(acts.pop(name), kept, stored)
            events = (before, after) if before and after else None
            yield Batch(shard, rows, len(kept), time.perf_counter() - began, events)


class _Host:
    """Transfers between the host and the device; on CUDA through pinned memory, beside the computation."""

    def __init__(self, device: torch.device):
        self._device = device
        self._streams: dict[torch.device, torch.cuda.Stream] = {}

    def mark(self) -> torch.cuda.Event | None:
        """The time at which a CUDA device reaches this point of its queue; None elsewhere."""
        if self._device.type != "cuda":
            return None
        event = torch.cuda.Event(enable_timing=True)
        event.record(torch.cuda.current_stream(self._device))
        return event

    def upload(self, indices: Tensor) -> Tensor:
        if self._device.type == "cuda":
            return indices.pin_memory().to(self._device, non_blocking=True)
        return indices.to(self._device)

    def download(self, acts: Tensor, kept: np.ndarray, dtype: torch.dtype) -> Rows:
        """The kept rows of acts[batch seq d_model]; `kept` are their indices among batch · seq."""
        device = acts.device
        acts = acts.flatten(0, 1)
        if dtype.is_floating_point and dtype.itemsize <= acts.dtype.itemsize:
            acts = acts.to(dtype)
        if device.type != "cuda":
            return Rows(acts.index_select(0, torch.from_numpy(kept).to(device)).cpu())
        rows = acts.index_select(0, torch.from_numpy(kept).pin_memory().to(device, non_blocking=True))
        if device not in self._streams:
            self._streams[device] = torch.cuda.Stream(device)
        side = self._streams[device]
        side.wait_stream(torch.cuda.current_stream(device))
        with torch.cuda.stream(side):
            arrived = torch.empty(rows.shape, dtype=rows.dtype, pin_memory=True)
            arrived.copy_(rows, non_blocking=True)
            rows.record_stream(side)
            event = torch.cuda.Event()
            event.record(side)
        return Rows(arrived, event)
