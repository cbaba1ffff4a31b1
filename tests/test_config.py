"""Configurations from mappings: every wrong key or type is named."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import pytest
import torch

from saelens_lite.config import from_mapping, to_mapping


@dataclass(frozen=True, kw_only=True)
class Config:
    output: str
    k: int = 32
    lr: float | None = None
    kind: Literal["a", "b"] = "a"
    names: tuple[str, ...] = ()
    progress: bool = True


def test_what_fits_is_taken():
    config = from_mapping(
        Config, {"output": Path("runs") / "x", "lr": 1, "names": ("a",), "k": torch.tensor(3).numpy()[()]}
    )
    assert to_mapping(config)["output"] == str(Path("runs") / "x")
    assert (config.lr, config.k, config.kind) == (1, 3, "a")
    assert json.loads(json.dumps(to_mapping(config)))["k"] == 3


@pytest.mark.parametrize(
    ("mapping", "message"),
    [
        ({"output": "x", "outptu": 1}, r"file: unknown key 'outptu' \(did you mean 'output'\?\)"),
        ({"k": 3}, "file: Config needs output"),
        ({"output": "x", "k": "32"}, "file: k expected int, got str '32'"),
        ({"output": "x", "k": True}, "file: k expected int, got bool True"),
        ({"output": "x", "lr": "fast"}, r"file: lr expected float \| None, got str 'fast'"),
        ({"output": 3}, "file: output expected str, got int 3"),
        ({"output": "x", "progress": "no"}, "file: progress expected bool, got str 'no'"),
    ],
)
def test_what_does_not_fit_is_named(mapping, message):
    with pytest.raises(ValueError, match=message):
        from_mapping(Config, mapping, "file")
