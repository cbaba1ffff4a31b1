"""Checkpoints of a training run: all that its next step depends on, so that a killed run resumes bit for bit.

<output>/state/step_00001200/state.safetensors   the tensors of `Trainer.state`, in the scale of training
<output>/state/step_00001200/state.json          the rest:
    format, version   "saelens_lite trainer state", 1
    run               what determines the run: the store's fingerprint, the hook point, fields of TrainConfig
    values            what `Trainer.state` holds beside tensors: steps_done, as in the folder's name
    progress          input scale, place in a stream, seconds trained, bytes of metrics.jsonl, id at wandb
    made_by           what the last bits also depend on: versions, device, kernels, threads, processes
    tensors_sha256    of state.safetensors
    sha256            of this file without this entry

JSON is UTF-8 with sorted keys. A checkpoint is whole or absent (atomic.py). It holds no rows and no random
numbers: row order is a function of (seed, step). Nothing is pickled. The SAE as people use it stands in
<output> itself; a finished run removes the folder `state`.
"""

from __future__ import annotations

import hashlib
import json
import logging
import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

import saelens_lite
from saelens_lite import distributed
from saelens_lite.atomic import appearing_folder, discard
from saelens_lite.errors import CheckpointError, with_option
from saelens_lite.json_data import loads
from saelens_lite.kernels import dispatch as kernels

log = logging.getLogger(__name__)

_FORMAT, _VERSION = "saelens_lite trainer state", 1
_STATE, _TENSORS, _FACTS = "state", "state.safetensors", "state.json"


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """What a run resumes from.

    state: of the trainer, on the CPU
    run, progress, made_by: as in state.json
    """

    state: dict[str, Tensor | int]
    run: dict[str, Any]
    progress: dict[str, Any]
    made_by: dict[str, Any]

    @property
    def step(self) -> int:
        """Optimiser steps done."""
        return int(self.state["steps_done"])


def save_checkpoint(
    output: Path,
    state: Mapping[str, Tensor | int],
    *,
    run: Mapping[str, Any],
    progress: Mapping[str, Any],
    made_by: Mapping[str, Any],
    keep: int,
) -> None:
    """Write the checkpoint of a step, keep the keep − 1 before it and remove all others.

    state: from `Trainer.whole_state`
    raises: CheckpointError when it cannot be written; earlier ones are then untouched
    """
    step, folder = int(state["steps_done"]), output / _STATE
    target = folder / f"step_{step:08}"
    try:
        for leftover in folder.glob(".step_*"):  # of a run that was killed while writing or removing
            shutil.rmtree(leftover)
        with appearing_folder(target) as staged:
            tensors = {
                name: value.detach().cpu().contiguous()
                for name, value in state.items()
                if isinstance(value, Tensor)
            }
            save_file(tensors, staged / _TENSORS)
            facts = {
                "format": _FORMAT,
                "version": _VERSION,
                "run": dict(run),
                "values": {name: value for name, value in state.items() if not isinstance(value, Tensor)},
                "progress": dict(progress),
                "made_by": dict(made_by),
                "tensors_sha256": _file_sha256(staged / _TENSORS),
            }
            (staged / _FACTS).write_bytes(_encoded({**facts, "sha256": _sha256(facts)}))
        found = _checkpoints(output)
        for other, path in found.items():
            if other not in [s for s in found if s <= step][-keep:]:
                discard(path)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(
            f"cannot write the checkpoint of step {step} to {target}: {error}; make room or mend the cause, "
            "then run the same command again: it "
            + ("resumes at the checkpoint before" if _checkpoints(output) else "begins anew")
        ) from error


def load_checkpoint(output: Path) -> Checkpoint | None:
    """The newest undamaged checkpoint in `output`; None if there are no checkpoints.

    Damaged ones are named in the log and stay where they are.
    raises: CheckpointError if all are damaged
    """
    found, damage = _checkpoints(output), ""
    for step, folder in reversed(found.items()):
        try:
            return _read(folder, step)
        except CheckpointError as error:
            damage = str(error)
            log.warning("%s; looking for a checkpoint before it", damage)
    if found:
        raise with_option(
            CheckpointError(
                f"{output / _STATE} expected a whole checkpoint, all {len(found)} are damaged; the earliest: "
                f"{damage}; restore one, or pass overwrite=True to start anew"
            ),
            "overwrite",
        )
    return None


def remove_checkpoints(output: Path) -> None:
    """Remove all checkpoints at once."""
    if (output / _STATE).exists():
        discard(output / _STATE)


def circumstances(device: torch.device) -> dict[str, Any]:
    """What the last bits of a run depend on besides the run itself: made_by of state.json."""
    return {
        "saelens_lite": saelens_lite.__version__,
        "torch": torch.__version__,
        "device": device.type,
        "kernels": kernels.choice(torch.empty(0, device=device)),
        "threads": torch.get_num_threads(),
        "processes": distributed.world_size(),
        "latent_shards": distributed.world_size("latents"),
    }


def _read(folder: Path, step: int) -> Checkpoint:
    """Read one checkpoint. raises: CheckpointError if it is not as it was written"""
    try:
        facts = loads((folder / _FACTS).read_bytes())
        if facts.pop("sha256") != _sha256(facts):
            raise ValueError(f"{_FACTS} does not match its sha256")
        if (facts["format"], facts["version"]) != (_FORMAT, _VERSION):
            raise ValueError(
                f"expected {_FORMAT!r} version {_VERSION}, got {facts['format']!r} version {facts['version']}"
            )
        if facts["values"]["steps_done"] != step:
            raise ValueError(f"it is of step {facts['values']['steps_done']}")
        if _file_sha256(folder / _TENSORS) != facts["tensors_sha256"]:
            raise ValueError(f"{_TENSORS} does not match the sha256 in {_FACTS}")
        tensors = load_file(folder / _TENSORS)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, SafetensorError) as error:
        raise CheckpointError(f"the checkpoint {folder} is damaged: {error}") from error
    return Checkpoint({**tensors, **facts["values"]}, facts["run"], facts["progress"], facts["made_by"])


def _checkpoints(output: Path) -> dict[int, Path]:
    """The folder of each checkpoint by its step, ascending."""
    found = {}
    for path in (output / _STATE).glob("step_*"):
        if (match := re.fullmatch(r"step_(\d+)", path.name)) and path.is_dir():
            found[int(match[1])] = path
    return dict(sorted(found.items()))


def _encoded(facts: Mapping[str, Any]) -> bytes:
    return (json.dumps(facts, sort_keys=True, ensure_ascii=False, indent=1) + "\n").encode()


def _sha256(facts: Mapping[str, Any]) -> str:
    return hashlib.sha256(_encoded(facts)).hexdigest()


def _file_sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
