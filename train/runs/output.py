"""What a training run writes into its output folder, and whether what stands there is a run's.

A run replaces and removes files of these names alone, and only where a run wrote them; all others stay.
"""

from __future__ import annotations

import contextlib
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from saelens_lite.atomic import check_output
from saelens_lite.autoencoders.folder import FILE as AUTOENCODER
from saelens_lite.json_data import loads
from saelens_lite.sae.folder import CFG, SPARSITY, WEIGHTS, settle

from .checkpoints import remove_checkpoints

SAVED = (CFG, AUTOENCODER)
"""Files of which one says that something trained is saved."""
_CHECKPOINT = re.compile(r"step_\d+|\.step_.*\.(tmp|old)")


def check_ours(output: Path) -> None:
    """raises: ValueError if a name that a run writes is taken by something else, or nothing can be written"""
    check_output(output, folder=True)
    if (output / "plan.json").exists() and not (output / "train_config.json").exists():
        raise ValueError(f"{output} is the folder of an activation store: choose another output")
    for name, is_ours in _WRITTEN.items():
        path = output / name
        if path.is_symlink() or (path.exists() and not is_ours(path)):
            raise ValueError(
                f"{path} was not written by a training run, and a run into {output} would replace it: choose "
                "another output"
            )


def seen(output: Path) -> object:
    """Differs after another process began, resumed or finished a run there."""
    saved, state = [output / name for name in SAVED], output / "state"
    times = [path.stat().st_mtime_ns if path.exists() else None for path in saved]
    return times, sorted(state.iterdir()) if state.is_dir() else None


def remove_run(output: Path) -> None:
    """Remove a run, finished or not; files of other names stay, and the folder with them."""
    check_ours(output)
    for name in (AUTOENCODER, CFG, WEIGHTS, SPARSITY, "train_config.json", "metrics.jsonl"):
        (output / name).unlink(missing_ok=True)
    remove_checkpoints(output)
    with contextlib.suppress(OSError):
        output.rmdir()


def remove_others(output: Path, own: str) -> None:
    """Remove what other kinds of training saved there. own: the file of `SAVED` that stays"""
    check_ours(output)
    beside = {CFG: (WEIGHTS, SPARSITY)}
    for name in SAVED:
        if name != own and (output / name).exists():
            for file in (name, *beside.get(name, ())):
                (output / file).unlink(missing_ok=True)


def remove_leftovers(output: Path) -> None:
    """Remove what a kill left while an SAE was saved, or while a finished run removed its checkpoints."""
    settle(output)
    old = output / ".state.old"
    if not old.is_symlink() and old.is_dir() and _checkpoints(old):
        shutil.rmtree(old, ignore_errors=True)


def _has(*fields: str) -> Callable[[Path], bool]:
    """Whether the first line, or all, of a file is a JSON object with these fields; or it is empty."""

    def check(path: Path) -> bool:
        if not path.is_file():
            return False
        with path.open("rb") as file:
            line = file.readline(1 << 20)
            rest = file.read(1 << 20)
        for text in (line, line + rest):
            with contextlib.suppress(ValueError):
                found: Any = loads(text)
                return isinstance(found, dict) and {*fields} <= {*found}
        return not line.strip() or (not rest and line.startswith(b'{"step": '))  # cut short

    return check


def _checkpoints(path: Path) -> bool:
    return path.is_dir() and all(
        _CHECKPOINT.fullmatch(step.name) and step.is_dir() and not step.is_symlink()
        for step in path.iterdir()
    )


def _beside_a_run(path: Path) -> bool:
    """Whether a file of weights belongs to an SAE or to a run that was killed while saving it."""
    return path.is_file() and any((path.parent / name).exists() for name in (CFG, "metrics.jsonl", "state"))


_WRITTEN: dict[str, Callable[[Path], bool]] = {
    "state": _checkpoints,
    "metrics.jsonl": _has("step"),
    "train_config.json": _has("kind"),
    CFG: _has("d_sae"),
    WEIGHTS: _beside_a_run,
    SPARSITY: _beside_a_run,
    AUTOENCODER: _beside_a_run,
}
"""How each name is known to be a run's, of this version or one before."""
