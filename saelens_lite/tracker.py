"""Where a run's numbers go: metrics.jsonl always, wandb when asked, a progress bar for people."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any


class Tracker:
    """Appends one JSON object a line to `<folder>/metrics.jsonl`; a context manager that closes what it opened.

    wandb_project: also log there (`WANDB_MODE=offline` is respected); wandb is imported only then
    """

    def __init__(self, folder: Path, config: Mapping[str, Any], wandb_project: str | None = None) -> None:
        self.path = folder / "metrics.jsonl"
        self._file = self.path.open("w", encoding="utf-8")
        self._run: Any = None
        if wandb_project is not None:
            import wandb

            self._run = wandb.init(project=wandb_project, name=folder.name, config=dict(config), dir=str(folder))

    def log(self, step: int, metrics: Mapping[str, float | int | None]) -> None:
        """One line: {"step": step, **metrics}."""
        self._file.write(json.dumps({"step": step, **metrics}) + "\n")
        self._file.flush()
        if self._run is not None:
            self._run.log({k: v for k, v in metrics.items() if v is not None}, step=step)

    def __enter__(self) -> Tracker:
        return self

    def __exit__(self, kind: type[BaseException] | None, _: BaseException | None, __: TracebackType | None) -> None:
        self._file.close()
        if self._run is not None:
            self._run.finish(exit_code=0 if kind is None else 1)
