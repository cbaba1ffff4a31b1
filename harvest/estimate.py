"""Estimates what a harvest will take: rows, bytes and time; one that cannot fit is refused."""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from saelens_lite.errors import ShardError
from saelens_lite.lm import hooks
from saelens_lite.lm.decoder import Decoder
from saelens_lite.store.codecs import STORE_DTYPES, row_bytes
from saelens_lite.store.folder import Folder

from .text.documents import Source

_BYTES_PER_POSITION = 10
"""Of a tokens file: input_ids and doc_id int32, attended and kept uint8."""


@dataclasses.dataclass(frozen=True, slots=True)
class Estimate:
    """What is still to do for a store.

    size_bytes, free_bytes: room that the rows take in the store, and on its disk; None if unknown
    seconds: of the forward passes; None if not measured
    of_dataset: whether the dataset's length, guessed from its first documents, limits the rows
    at_most: whether there may be fewer, since nothing says how many documents there are
    """

    rows: int
    size_bytes: int
    free_bytes: int | None
    seconds: float | None = None
    of_dataset: bool = False
    at_most: bool = False

    @property
    def fits(self) -> bool:
        return self.free_bytes is None or self.size_bytes <= self.free_bytes

    def __str__(self) -> str:
        guess = " (the dataset's length, guessed from its first documents)" if self.of_dataset else ""
        free = "" if self.free_bytes is None else f"; {_size(self.free_bytes)} are free"
        eta = "" if self.seconds is None else f"; about {_duration(self.seconds)} of forward passes"
        most = "at most " if self.at_most else ""
        return f"{most}{self.rows:,} rows{guess}, {_size(self.size_bytes)}{free}{eta}"


def estimate(
    plan: dict[str, Any],
    source: Source,
    mean_tokens: float,
    mean_bytes: float,
    store: Folder,
    rows_there: int,
) -> Estimate:
    """The rows and bytes that a plan still takes beyond rows_there, those of finished shards.

    mean_tokens, mean_bytes: of the source's first documents
    """
    n_documents: float = math.inf if source.n_documents is None else source.n_documents
    if source.n_documents is None and source.approximate_bytes is not None:
        n_documents = source.approximate_bytes / max(1.0, mean_bytes)
    of_dataset = n_documents < math.inf and n_documents * mean_tokens < plan["max_tokens"]
    rows = max(0, (int(n_documents * mean_tokens) if of_dataset else plan["max_tokens"]) - rows_there)
    widths, dtype = (point["d_model"] for point in plan["hook_points"].values()), STORE_DTYPES[plan["dtype"]]
    size = rows * (_BYTES_PER_POSITION + sum(row_bytes(dtype, width) for width in widths))
    return Estimate(rows, size, store.free_bytes(), of_dataset=of_dataset, at_most=source.n_documents is None)


def check_fits(found: Estimate, store: Folder) -> None:
    """raises: ShardError if the disk has less room than the harvest takes"""
    if not found.fits:
        raise ShardError(
            f"{store} expected room for {found}: make room, lower max_tokens, choose a smaller dtype such "
            "as int8 or another disk, or pass check_space=False if you know better"
        )


def forward_seconds(model: nn.Module, hook_points: Sequence[str], plan: dict[str, Any], rows: int) -> float:
    """Time of the forward passes for this many rows, measured on the second of two batches."""
    shape = (plan["batch_size_seqs"], plan["context_length"])
    input_ids = torch.zeros(shape, dtype=torch.int64, device=Decoder(model).device)
    with torch.inference_mode():
        for _ in range(2):
            began = time.perf_counter()
            acts = hooks.run_to(model, hook_points, input_ids=input_ids)
            acts[hook_points[-1]].flatten()[0].item()  # waits for the device
            seconds = time.perf_counter() - began
    return seconds * rows / input_ids.numel()


def _size(n_bytes: int) -> str:
    size = float(n_bytes)
    for unit in ("bytes", "KB", "MB", "GB"):
        if size < 1000:
            return f"{size:.3g} {unit}"
        size /= 1000
    return f"{size:,.3g} TB"


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
