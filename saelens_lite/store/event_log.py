"""The log of a store: a JSON line an event, each with its own checksum.

It holds the clock, the speed, the circumstances that bytes can depend on, and where in the dataset each shard
began. It is no part of the store's identity: losing it loses no data.
"""

from __future__ import annotations

import contextlib
import json
import logging
import time
import zlib
from collections.abc import Iterator
from typing import Any

from saelens_lite.errors import ShardError
from saelens_lite.store.folder import Folder

logger = logging.getLogger(__name__)


def log_name(rank: int = 0) -> str:
    """The log of one process of a harvest."""
    return "log.jsonl" if rank == 0 else f"log.{rank}.jsonl"


def write_event(store: Folder, rank: int = 0, **entry: Any) -> None:
    """Append a line to a log; a failure is only reported."""
    line = _encoded({"time": time.strftime("%Y-%m-%dT%H:%M:%S%z"), **entry})
    try:
        store.append_line(log_name(rank), line + b"\n")
    except ShardError as error:
        logger.warning("the log could not be written: %s", error)


def events(store: Folder, kind: str) -> Iterator[dict[str, Any]]:
    """The undamaged entries of one kind, from the logs of all processes."""
    for name in log_names(store):
        for _, entry in checked_lines(store.read(name)):
            if entry is not None and entry.get("event") == kind:
                yield entry


def log_names(store: Folder) -> list[str]:
    """The store's logs, by rank."""
    found, rank = [], 0
    while store.size(log_name(rank)) is not None:
        found.append(log_name(rank))
        rank += 1
    return found


def checked_lines(content: bytes) -> Iterator[tuple[int, dict[str, Any] | None]]:
    """(line number from 1, entry) for each line of a log; None for a damaged line."""
    lines = content.split(b"\n")
    if lines[-1] == b"":
        lines.pop()
    for number, line in enumerate(lines, 1):
        entry = None
        with contextlib.suppress(ValueError, RecursionError):
            found = json.loads(line)
            if isinstance(found, dict):
                found.pop("crc32", None)
                entry = found if _encoded(found) == line else None
        yield number, entry


def _encoded(entry: dict[str, Any]) -> bytes:
    checksum = zlib.crc32(json.dumps(entry).encode())
    return json.dumps({**entry, "crc32": checksum}).encode()
