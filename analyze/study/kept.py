"""What a run computed, kept line by line as it comes, so that an interrupted one resumes.

A file of JSON lines. The first says what everything depends on; each other holds a key and its value, and is
whole once it ends in a line break: what a kill left of a last line is cut off.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from saelens_lite.config import differing_fields
from saelens_lite.json_data import loads

FORMAT = 1


class Kept:
    """Values by key, in a file.

    identity: what values depend on; a file of another one is not taken
    raises: ValueError for a file of another identity, or one that is none of ours
    """

    def __init__(self, path: str | Path, identity: Mapping[str, Any]) -> None:
        self._path, self._values = Path(path), {}
        head = {"format": FORMAT, **identity}
        if not self._path.exists() or b"\n" not in (content := self._path.read_bytes()):
            self._path.parent.mkdir(parents=True, exist_ok=True)
            self._path.write_text(json.dumps(head) + "\n", encoding="utf-8")
            return
        whole = content[: content.rindex(b"\n") + 1]
        try:
            first, *lines = (loads(line.decode()) for line in whole.splitlines())
            self._values = {line["key"]: line["value"] for line in lines}
        except (ValueError, TypeError, KeyError) as error:
            raise ValueError(
                f"{self._path} expected answers that a study kept, got something else: move it away ({error})"
            ) from error
        if differences := differing_fields(first, head):
            raise ValueError(
                f"{self._path} holds answers of another study: {'; '.join(differences)}. Take another "
                "--output, or "
                "move that file away"
            )
        if len(whole) < len(content):
            with self._path.open("r+b") as file:
                file.truncate(len(whole))

    def __len__(self) -> int:
        return len(self._values)

    def get(self, key: str) -> Any:
        """The value, or None."""
        return self._values.get(key)

    def add(self, values: Mapping[str, Any]) -> None:
        """Written before it returns."""
        lines = [json.dumps({"key": key, "value": value}) + "\n" for key, value in values.items()]
        with self._path.open("a", encoding="utf-8") as file:
            file.write("".join(lines))
            file.flush()
            os.fsync(file.fileno())
        self._values.update(values)


def fingerprint(module: nn.Module) -> str:
    """A hash of its tensors' names, shapes and first 1,024 numbers each: another training changes it."""
    digest = hashlib.sha256()
    for name, tensor in sorted(module.state_dict().items()):
        start = tensor.detach().reshape(-1)[:1024].cpu()
        start = start.double() if start.is_floating_point() else start.to(torch.int64)
        digest.update(f"{name} {list(tensor.shape)}".encode() + start.numpy().tobytes())
    return digest.hexdigest()[:16]


def digest_of(*values: Any) -> str:
    """Of values as JSON, and tensors by their numbers."""
    digest = hashlib.sha256()
    for value in values:
        if isinstance(value, torch.Tensor):
            digest.update(value.detach().cpu().double().contiguous().numpy().tobytes())
        else:
            digest.update(json.dumps(value, sort_keys=True, default=repr).encode())
    return digest.hexdigest()[:16]
