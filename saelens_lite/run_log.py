"""Where a run's numbers go: always to metrics.jsonl, and to wandb when asked."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from saelens_lite.json_data import loads

log = logging.getLogger(__name__)

CHUNK_BYTES = 1 << 20


class Tracker:
    """Appends JSON lines to `<folder>/metrics.jsonl`; a context manager that closes what it opened.

    wandb_project: log there too (`WANDB_MODE=offline` is respected); only then is wandb imported
    position: from `position` in an earlier process: later lines are cut, and wandb's run resumes, which is
        given the lines it lacks. None starts anew
    """

    def __init__(
        self,
        folder: Path,
        config: Mapping[str, Any],
        wandb_project: str | None = None,
        position: Mapping[str, Any] | None = None,
    ) -> None:
        self.path = folder / "metrics.jsonl"
        self._file = self.path.open("a", encoding="utf-8")
        self._cut(position["metrics_bytes"] if position else 0)
        self._run: Any = None
        if wandb_project is not None:
            import wandb

            earlier = position.get("wandb_run") if position else None
            self._run = wandb.init(
                project=wandb_project,
                name=folder.name,
                config=dict(config),
                dir=str(folder),
                id=earlier,
                resume="allow" if earlier else None,
                reinit="create_new",  # other runs of this process stay open
            )
            for line in read_metrics(self.path):  # what a killed process could not send
                if (step := line.pop("step")) >= self._run.step:
                    self._send(step, line)

    def _cut(self, length_bytes: int) -> None:
        found = self.path.stat().st_size
        if found < length_bytes:
            log.warning(
                "%s lacks lines: expected %d bytes, got %d; new lines follow", self.path, length_bytes, found
            )
            length_bytes = self.path.read_bytes().rfind(b"\n") + 1
        os.truncate(self.path, length_bytes)

    def position(self) -> dict[str, Any]:
        """Bytes of metrics.jsonl, which the disk then holds, and the id of wandb's run."""
        os.fsync(self._file.fileno())
        run = None if self._run is None else self._run.id
        return {"metrics_bytes": self.path.stat().st_size, "wandb_run": run}

    def log(self, step: int, metrics: Mapping[str, float | int | str | None]) -> None:
        """Write one line: {"step": step, **metrics}."""
        self._file.write(json.dumps({"step": step, **metrics}) + "\n")
        self._file.flush()
        if self._run is not None:
            self._send(step, metrics)

    def _send(self, step: int, metrics: Mapping[str, float | int | str | None]) -> None:
        self._run.log({k: v for k, v in metrics.items() if v is not None}, step=step)

    def __enter__(self) -> Tracker:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._file.close()
        if self._run is not None:
            self._run.finish(exit_code=0 if kind is None else 1)


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The lines of a metrics.jsonl in order, whether its run is finished, under way or killed.

    A last line that is cut short is left out. NaN and infinity stay, as Python's json writes them.
    raises: ValueError with the number of a line that is no JSON object
    """
    return [line for chunk in metric_chunks(path) for line in chunk]


def metric_chunks(path: Path) -> Iterator[list[dict[str, Any]]]:
    """As read_metrics, a stretch of lines at a time, so that a long file is never held whole."""
    return (parsed(path, lines, before) for before, lines in line_stretches(path))


def line_stretches(path: Path) -> Iterator[tuple[int, list[bytes]]]:
    """How many lines stand before a stretch of a file, and its lines."""
    before = 0
    with path.open("rb") as file:
        while lines := file.readlines(CHUNK_BYTES):
            yield before, lines
            before += len(lines)


def parsed(path: Path, lines: list[bytes], before: int) -> list[dict[str, Any]]:
    """The objects of a stretch of lines, blank ones left out. raises: as read_metrics"""
    full = list(filter(bytes.strip, lines))
    try:  # at once: half the time of a line each
        found = loads(b"[" + b",".join(full) + b"]")
    except ValueError:
        found = []
    if len(found) == len(full) and {*map(type, found)} <= {dict}:
        return found
    return _each(path, lines, before)


def _each(path: Path, lines: list[bytes], before: int) -> list[dict[str, Any]]:
    """Lines one by one, for the number of the one that is broken. before: lines of the file before these"""
    found = []
    for number, line in enumerate(lines, before + 1):
        if line.isspace():
            continue
        wanted = f"{path} expected a JSON object in line {number}"
        try:
            values = loads(line)
        except ValueError as error:  # of JSON or of UTF-8
            if not line.endswith(b"\n"):
                break
            raise ValueError(f"{wanted}: {error}; remove the line") from error
        if not isinstance(values, dict):
            raise ValueError(f"{wanted}, got {type(values).__name__}; remove the line")
        found.append(values)
    return found


class SilentTracker(Tracker):
    """Writes nothing: what all processes but the first have."""

    def __init__(self) -> None:
        pass

    def position(self) -> dict[str, Any]:
        return {}

    def log(self, step: int, metrics: Mapping[str, float | int | str | None]) -> None:
        pass

    def __exit__(self, *_: object) -> None:
        pass
