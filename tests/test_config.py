"""Configurations from mappings: every wrong key or type is named."""

import dataclasses
import inspect
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import pytest
import torch

import saelens_lite as sl
from saelens_lite.config import (
    Above,
    AtLeast,
    AtMost,
    Below,
    bounds_in_words,
    check_fields,
    differing_fields,
    from_mapping,
    marked,
    to_mapping,
)


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


@dataclass(frozen=True, kw_only=True)
class Bounded:
    k: Annotated[int, AtLeast(1), "fast"] = 32
    lr: Annotated[float | None, Above(0)] = None
    share: Annotated[float, AtLeast(0), AtMost(1)] = 0.5
    beta: Annotated[float, AtLeast(0), Below(1)] = 0.9
    weights: Annotated[tuple[float, ...] | None, Above(0)] = None
    precision: Literal["high", "medium"] | None = None
    output: str = ""
    seed: int = 0
    names: tuple[str, ...] = ()
    low: float = float("-inf")


@pytest.mark.parametrize(
    "fields",
    [
        {"k": 1},
        {"low": float("-inf")},
        {"seed": -(2**63)},
        {"names": ["a", "b"]},
        {"output": Path("x")},
        {"lr": 1e-9},
        {"share": 0},
        {"share": 1},
        {"beta": 0},
        {"weights": (1, 2)},
        {"precision": "high"},
    ],
)
def test_what_keeps_its_bounds_passes(fields):
    check_fields(Bounded(**fields))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"k": 0}, "Bounded.k expected at least 1, got 0"),
        ({"k": 1.5}, "Bounded.k expected int, got float 1.5"),
        ({"lr": float("inf")}, "Bounded.lr expected a finite number or None, got inf"),
        ({"weights": (1.0, float("inf"))}, r"Bounded.weights expected a finite number or None, got"),
        ({"weights": ("1", 2.0)}, r"Bounded.weights expected tuple\[float, \.\.\.\] \| None, got tuple"),
        ({"seed": 2**63}, "Bounded.seed expected a number of at most 64 bits, got 9223372036854775808"),
        ({"k": 10**400}, "Bounded.k expected a number of at most 64 bits, got 1000"),
        ({"seed": 0.5}, "Bounded.seed expected int, got float 0.5"),
        ({"output": 3}, "Bounded.output expected str, got int 3"),
        ({"names": (3,)}, r"Bounded.names expected tuple\[str, \.\.\.\], got tuple \(3,\)"),
        ({"lr": 0}, "Bounded.lr expected above 0 or None, got 0"),
        ({"lr": float("nan")}, "Bounded.lr expected above 0 or None, got nan"),
        ({"share": 1.1}, "Bounded.share expected at least 0 and at most 1, got 1.1"),
        ({"beta": 1.0}, "Bounded.beta expected at least 0 and below 1, got 1.0"),
        ({"weights": (1.0, 0.0)}, r"Bounded.weights expected above 0 or None, got \(1.0, 0.0\)"),
        (
            {"precision": "hihg"},
            r"Bounded.precision expected one of high, medium or None, got 'hihg' \(did you mean 'high'\?\)",
        ),
    ],
)
def test_what_breaks_its_bound_is_named(fields, message):
    with pytest.raises(ValueError, match=message):
        check_fields(Bounded(**fields))


def test_bounds_and_marks_are_read_from_the_annotation():
    assert bounds_in_words(Annotated[float, AtLeast(0), Below(1)]) == "at least 0 and below 1"
    assert bounds_in_words(int) == ""
    assert marked(Bounded, "fast") == {"k"} and marked(Bounded, "slow") == set()


def test_differing_fields_are_those_of_either_side_with_dotted_names():
    """A field that the earlier lacks has its default; tuples are the lists of JSON; what may differ is left
    out."""
    earlier = {"k": 32, "model": {"name": "a", "sha256": "x"}, "weights": [1, 2], "gone": 1}
    now = {"k": 16, "model": {"name": "b", "sha256": "y"}, "weights": (1, 2), "new": 0.5, "other": 2}
    defaults = {"new": 0.5, "other": 3, "store": "never compared"}
    assert differing_fields(earlier, now, defaults, may_differ={"model.name"}) == [
        "gone expected 1, got None",
        "k expected 32, got 16",
        "model.sha256 expected 'x', got 'y'",
        "other expected 3, got 2",
    ]


TRAIN, HARVEST = (
    {field.name for field in dataclasses.fields(config)} for config in (sl.TrainConfig, sl.HarvestConfig)
)


@pytest.mark.parametrize(
    ("function", "fields"),
    [
        (sl.train_sae, TRAIN),
        (sl.train_grid, TRAIN),
        (sl.harvest_activations, HARVEST),
        (sl.estimate_harvest, HARVEST),
        (sl.train_streaming, (TRAIN | HARVEST) - {"hook_points", "store", "store_weights", "max_tokens"}),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_the_signature_shows_every_field_that_a_function_takes(function, fields):
    shown = inspect.signature(function).parameters
    assert fields - {"check_space", "baseline"} <= shown.keys()
    assert not any(parameter.kind is parameter.VAR_KEYWORD for parameter in shown.values())


def test_the_signature_has_the_defaults_and_bounds_of_the_fields():
    k = inspect.signature(sl.train_sae).parameters["k"]
    assert (k.default, k.annotation, k.kind) == (None, "Annotated[int | None, AtLeast(1)]", k.KEYWORD_ONLY)
    assert "store_weights" not in inspect.signature(sl.train_streaming).parameters  # which it refuses
