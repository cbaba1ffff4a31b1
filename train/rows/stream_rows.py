"""The rows of a run straight from a stream of shards: nothing on disk, memory for a buffer and a shard."""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Callable, Generator
from contextlib import closing
from typing import Any, Protocol

import torch
from torch import Tensor

from saelens_lite import distributed
from saelens_lite.hashing import is_held_out
from saelens_lite.prefetch import Ahead
from saelens_lite.store.common_mean import mean_to_spread

from ..config import TrainConfig
from ..random_streams import generator
from .input_scale import input_scale
from .protocol import BUFFER_DTYPES, ahead, spread


class Shard(Protocol):
    """acts: float[n d_model] on the CPU; doc_ids: int64[n]; cursor: JSON, for `Stream.shards`, or None"""

    index: int
    acts: Tensor
    doc_ids: Tensor
    cursor: Any


class Stream(Protocol):
    """Shards of rows that are the same whenever they are made.

    plan: where they come from, as in a store
    fingerprint: names the rows
    """

    plan: dict[str, Any]
    hook_point: str
    d_model: int
    fingerprint: str

    def shards(self, start: int = 0, cursor: Any = None) -> Generator[Shard]:
        """The shards from `start` on, to the last there is."""


@dataclasses.dataclass(frozen=True, slots=True)
class Place:
    """Where a buffer begins: its number, the step that begins with it, and its first row, `row` among the
    training rows of `shard`, which has the cursor.
    """

    epoch: int = 0
    buffer: int = 0
    first_step: int = 0
    shard: int = 0
    row: int = 0
    cursor: Any = None


@dataclasses.dataclass(frozen=True, slots=True)
class Filled:
    """A buffer: acts [n_steps batch_size_rows d_model], its rows' documents, and where the next begins."""

    acts: Tensor
    doc_ids: Tensor
    following: Place


class StreamRows:
    """The rows of a stream, as a run reads them; see `rows.Rows`.

    Training rows follow each other as in the stream, are cut into buffers of buffer_rows, and mixed within a
    buffer by (seed, epoch, buffer). At the stream's end what fills no batch is left out, and the next epoch
    begins. The scale is that of the first buffer. Held-out rows are the first eval_rows of held-out documents
    in the shards of the first buffer; a run that resumes makes them again.

    raises: ValueError for a run without n_steps, as a stream's length is not known, or with max_norm_ratio
    """

    left_out_share = None
    pair = None
    mean_to_spread: float | None = None

    def __init__(self, stream: Stream, config: TrainConfig, device: torch.device | str = "cpu") -> None:
        if distributed.several_processes():
            raise ValueError(
                "training on a stream expected one process, got several: harvest a store, or start it "
                "without torchrun"
            )
        if config.n_steps is None:
            raise ValueError(
                "training on a stream expected n_steps, as its length is not known before it ends; got None"
            )
        if config.max_norm_ratio is not None:
            raise ValueError(
                "max_norm_ratio needs the median norm of all rows, unknown while they come: harvest a store"
            )
        self._stream, self._config, self._device = stream, config, torch.device(device)
        self.hook_point, self.d_model = stream.hook_point, stream.d_model
        self.hf_module = stream.plan["hook_points"][stream.hook_point].get("module_path", "")
        self.shape = None
        self.model_name, self.context_length = stream.plan["model"]["name"], stream.plan["context_length"]
        self.steps_per_epoch = self._n_steps = config.n_steps
        self._batch = config.batch_size_rows
        self._n_rows = max(1, config.buffer_rows // self._batch) * self._batch
        self._ahead = ahead(config, device)
        self._buffers: Ahead[Place, Filled] = Ahead(self._fill, self._following)
        self._reading: _Reading | None = None
        self._places = [Place()]
        self.scale, self._held_out, self._held_out_shards = 1.0, torch.empty(0, self.d_model), 0

    @property
    def identity(self) -> dict[str, Any]:
        content = {"stream": f"content {self._stream.fingerprint}", "state": self._stream.plan.get("state")}
        return {"hook_point": self.hook_point, **content}

    @property
    def record(self) -> dict[str, Any]:
        record = {"stream": self._stream.fingerprint, "dataset": self._stream.plan["dataset"]}
        return record if self.mean_to_spread is None else record | {"mean_to_spread": self.mean_to_spread}

    def begin(self, position: dict[str, Any] | None) -> None:
        eval_rows, fraction = self._config.eval_rows, self._config.held_out_fraction
        if position is not None:
            self.scale, self._held_out_shards = position["scale"], position["held_out_shards"]
            self.mean_to_spread = position.get("mean_to_spread")  # older releases did not note it
            self._places = [Place(**position["place"])]
            with closing(_Reading(self._stream, Place(), fraction)) as reading:
                while reading.n_shards < self._held_out_shards and reading.next_shard():
                    self._hold_out(reading)
            return
        seen = self._hold_out if eval_rows and fraction else None
        self._reading = _Reading(self._stream, Place(), fraction, seen)
        filled = self._buffers[Place()]
        n, batches = filled.doc_ids.numel(), [acts.double() for acts in filled.acts]
        moments = (
            sum(float(acts.square().sum()) for acts in batches) / n,
            sum(acts.sum(0) for acts in batches) / n,
        )
        self.scale = input_scale(*moments) if self._config.scale_input else 1.0
        self.mean_to_spread = mean_to_spread(*moments)

    def position(self, step: int) -> dict[str, Any]:
        place = self._place(max(0, step - 1))
        following = self._buffers[place].following
        place = following if step >= following.first_step else place  # which need not be filled for that
        found = {"scale": self.scale, "held_out_shards": self._held_out_shards}
        found["mean_to_spread"] = self.mean_to_spread
        return found | {"place": dataclasses.asdict(place)}

    def batch(self, step: int) -> Tensor:
        place = self._place(step)
        acts = self._buffers[place].acts[step - place.first_step]
        return acts.to(self._device, non_blocking=acts.is_pinned()).float()

    def sample(self, n_rows: int) -> Tensor:
        filled = self._buffers[self._place(0)]
        at = spread(torch.arange(filled.doc_ids.numel()), n_rows)
        acts = filled.acts.flatten(0, 1)[at].float()
        self._check(acts, filled.doc_ids.flatten()[at], "a row is not finite")
        return acts

    def held_out(self) -> Tensor:
        return self._held_out.clone()

    def seen(self, step: int) -> Tensor:
        return self.batch(max(0, step - 1))

    def check_held_out(self) -> None:
        self._check(self._held_out, None, "a held-out row is not finite")

    def check_steps(self, first: int, end: int, what: str) -> None:
        for step in range(first, end):
            place = self._place(step)
            filled, within = self._buffers[place], step - place.first_step
            self._check(filled.acts[within].float(), filled.doc_ids[within], what)

    def close(self) -> None:
        self._buffers.close()
        self._stop_reading()

    def _place(self, step: int) -> Place:
        """Where a step's buffer begins; unseen buffers before it are made on the way."""
        place = next(place for place in reversed(self._places) if place.first_step <= step)
        while step >= (following := self._buffers[place].following).first_step:
            place = following
            if place.first_step > self._places[-1].first_step:
                self._places.append(place)
        return place

    def _following(self, _: Place, filled: Filled) -> Place | None:
        return filled.following if self._ahead and filled.following.first_step < self._n_steps else None

    def _fill(self, place: Place, stopped: threading.Event) -> Filled:
        """The buffer that begins at a place. raises: ValueError if the whole stream fills no batch"""
        reading, self._reading = self._reading, None
        if reading is None or not reading.stands_at(place):
            if reading is not None:
                reading.close()
            reading = _Reading(self._stream, place, self._config.held_out_fraction)
        dtype = BUFFER_DTYPES[self._stream.plan["dtype"]]
        acts = torch.empty(self._n_rows, self.d_model, dtype=dtype, pin_memory=self._device.type == "cuda")
        doc_ids = torch.empty(self._n_rows, dtype=torch.int64)
        mixer, n = generator(self._config.row_seed, place.epoch, place.buffer), 0
        mixed = torch.randperm(self._n_rows, generator=mixer)
        while n < self._n_rows and not stopped.is_set() and (rows := reading.take(self._n_rows - n)):
            at = mixed[n : n + len(rows[0])]
            acts[at], doc_ids[at] = rows[0].to(dtype), rows[1]
            n += len(at)
        reading.seen, n_steps = None, n // self._batch
        step = place.first_step + n_steps
        if n == self._n_rows:
            self._reading = reading
            following = reading.place(place.epoch, place.buffer + 1, step)
        else:
            reading.close()
            following = Place(epoch=place.epoch + 1, first_step=step)
            there = mixed[:n].sort().values[: n_steps * self._batch]
            acts, doc_ids = acts[there], doc_ids[there]
        if not n_steps and not stopped.is_set():
            if place.buffer == 0:
                raise ValueError(
                    f"training expected at least one batch of {self._batch} rows, the dataset has {n} "
                    "outside the held-out documents: give more text or lower batch_size_rows"
                )
            return self._fill(following, stopped)
        shape = (n_steps, self._batch)
        return Filled(acts.view(*shape, self.d_model), doc_ids.view(shape), following)

    def _hold_out(self, reading: _Reading) -> None:
        """Keep the held-out rows of the shard just read, up to eval_rows."""
        if len(self._held_out) < self._config.eval_rows:
            self._held_out = torch.cat([self._held_out, reading.held_out.float()])[: self._config.eval_rows]
            self._held_out_shards = reading.n_shards

    def _stop_reading(self) -> None:
        if self._reading is not None:
            self._reading.close()
            self._reading = None

    def _check(self, acts: Tensor, doc_ids: Tensor | None, what: str) -> None:
        """raises: FloatingPointError if a row of float32[n d_model] is not finite, nor its scaled norm"""
        broken = ~torch.linalg.vector_norm(acts * self.scale, dim=1).square().isfinite()
        if broken.any():
            where = "" if doc_ids is None else f" of document {int(doc_ids[broken].min())} (from 0)"
            raise FloatingPointError(
                f"{what}: a row{where} holds NaN, infinite or too large values: compute the model in "
                "bfloat16 or float32, or leave the document out"
            )


class _Reading:
    """The training rows of a stream from a place on, in its order.

    seen: called after each shard; n_shards: shards read; held_out: held-out rows of the last one
    """

    def __init__(
        self,
        stream: Stream,
        place: Place,
        held_out_fraction: float,
        seen: Callable[[_Reading], None] | None = None,
    ) -> None:
        self._shards = stream.shards(place.shard, place.cursor)
        self._fraction, self.seen = held_out_fraction, seen
        self._shard, self._row, self._cursor, self._skip = place.shard, 0, place.cursor, place.row
        self._acts, self._doc_ids = torch.empty(0, stream.d_model), torch.empty(0, dtype=torch.int64)
        self.held_out, self.n_shards = self._acts, 0

    def stands_at(self, place: Place) -> bool:
        return (self._shard, self._row + self._skip) == (place.shard, place.row)

    def place(self, epoch: int, buffer: int, first_step: int) -> Place:
        return Place(epoch, buffer, first_step, self._shard, self._row, self._cursor)

    def take(self, n_rows: int) -> tuple[Tensor, Tensor] | None:
        """The next rows, from one to n_rows: float[n d_model] and their documents; None at the end."""
        while self._row == len(self._acts):
            if not self.next_shard():
                return None
        rows = slice(self._row, min(len(self._acts), self._row + n_rows))
        self._row = rows.stop
        return self._acts[rows], self._doc_ids[rows]

    def next_shard(self) -> bool:
        """False at the end."""
        shard = next(self._shards, None)
        if shard is None:
            return False
        held_out = is_held_out(shard.doc_ids, self._fraction)
        self._shard, self._cursor, self._row, self._skip = shard.index, shard.cursor, self._skip, 0
        self._acts, self._doc_ids = shard.acts[~held_out], shard.doc_ids[~held_out]
        self.held_out = shard.acts[held_out]
        self.n_shards += 1
        if self.seen is not None:
            self.seen(self)
        return True

    def close(self) -> None:
        self._shards.close()
