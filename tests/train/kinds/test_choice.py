"""Which kinds there are, which fields each takes, and what is told where one does not take it."""

import json
import re
from importlib import import_module
from pathlib import Path
from typing import get_args

import pytest

import saelens_lite.train.kinds
from saelens_lite.config import to_mapping
from saelens_lite.train.config import LEFT_OPEN, KindName, TrainConfig
from saelens_lite.train.kinds.choice import kind_class, settled

KEEP_K, RESAMPLE = ["topk", "batchtopk", "matryoshka"], ["relu", "gated", "jumprelu"]
TAKEN_BY = {
    "k": (16, KEEP_K),
    "k_anneal_fraction": (0.5, KEEP_K),
    "k_anneal_start": (2.0, KEEP_K),
    "aux_coeff": (3.0, KEEP_K),
    "k_aux": (8, KEEP_K),
    "multi_topk_coeff": (0.125, ["topk"]),
    "matryoshka_fractions": ((0.5, 1.0), ["matryoshka"]),
    "gather_dtype": ("bfloat16", KEEP_K),
    "l1_coeff": (3.0, ["relu", "gated"]),
    "l1_warm_up_steps": (3, RESAMPLE),
    "unit_decoder": (False, ["relu", "jumprelu"]),
    "resample_every_steps": (100, RESAMPLE),
    "resample_fraction": (0.5, RESAMPLE),
    "jumprelu_penalty": ("tanh", ["jumprelu"]),
    "l0_coeff": (3.0, ["jumprelu"]),
    "target_l0": (16.0, RESAMPLE),
    "refit_fraction": (0.5, ["relu"]),
    "bandwidth": (0.1, ["jumprelu"]),
    "initial_threshold": (0.1, ["jumprelu"]),
    "pre_act_coeff": (1.0, ["jumprelu"]),
}
BESIDE = {
    "k_anneal_start": {"k_anneal_fraction": 0.5},
    "resample_fraction": {"resample_every_steps": 100},
    "pre_act_coeff": {"jumprelu_penalty": "tanh"},
}
"""What a field needs beside it to count."""


def test_every_file_that_has_a_kind_is_named_in_the_configuration():
    [folder] = saelens_lite.train.kinds.__path__
    files = {path.stem for path in Path(folder).glob("*.py")} - {"__init__"}
    modules = {name: import_module(f"saelens_lite.train.kinds.{name}") for name in files}
    assert {name for name, module in modules.items() if hasattr(module, "KIND")} == set(get_args(KindName))


def test_each_kind_says_which_fields_it_takes():
    assert {field for name in get_args(KindName) for field in kind_class(name).fields} == TAKEN_BY.keys()
    for field, (_, taken_by) in TAKEN_BY.items():
        assert [name for name in get_args(KindName) if field in kind_class(name).fields] == taken_by


@pytest.mark.parametrize("field", TAKEN_BY)
@pytest.mark.parametrize("kind", get_args(KindName))
def test_a_field_is_refused_by_the_kinds_that_do_not_take_it(field, kind):
    value, taken_by = TAKEN_BY[field]
    if kind in taken_by:
        config = settled(TrainConfig(kind=kind, **{field: value}, **BESIDE.get(field, {})))
        assert getattr(config, field) == value
        return
    kinds, got = ", ".join(taken_by), re.escape(repr(value))
    told = f"TrainConfig.{field} expected .* for the kind {kind} \\({kinds} take it\\), got {got}"
    with pytest.raises(ValueError, match=told):
        settled(TrainConfig(kind=kind, **{field: value}))


@pytest.mark.parametrize(
    ("kind", "field", "value", "why"),
    [
        ("topk", "k_anneal_start", 2.0, "4.0 without k_anneal_fraction"),
        ("relu", "resample_fraction", 0.5, "0.6666666666666666 without resample_every_steps"),
        ("jumprelu", "pre_act_coeff", 1.0, "3e-06 with the penalty step"),
    ],
)
def test_a_field_without_the_one_that_it_goes_with_is_refused(kind, field, value, why):
    with pytest.raises(ValueError, match=f"TrainConfig.{field} expected {why}, got {value}"):
        settled(TrainConfig(kind=kind, **{field: value}))
    with pytest.raises(ValueError, match="k_aux expected None without aux_coeff, got 8"):
        settled(TrainConfig(kind="topk", aux_coeff=0.0, k_aux=8))


def test_what_is_left_open_is_as_by_default_and_the_default_is_taken_by_every_kind():
    for kind in get_args(KindName):
        config = settled(TrainConfig(kind=kind))
        assert (config.kind, config.k, config.matryoshka_fractions[-2:]) == (kind, 32, (1 / 2, 1.0))
        assert settled(config) == config
        of_json = TrainConfig(**json.loads(json.dumps(to_mapping(config))))  # as of train_config.json
        assert settled(of_json).k == 32
    assert settled(TrainConfig()).kind == "topk"


@pytest.mark.parametrize(
    ("fields", "refused"),
    [
        ({"kind": "topk", "aux_coeff": 0.5}, "aux_coeff"),
        ({"kind": "batchtopk", "k_aux": 4}, "k_aux"),
        ({"kind": "jumprelu", "l1_warm_up_steps": 4}, "l1_warm_up_steps"),
        ({"kind": "jumprelu", "bandwidth": 4.0}, "bandwidth"),
        ({"kind": "relu", "l1_warm_up_steps": 4, "l1_coeff": 3.0}, None),
        ({"kind": "topk", "k": 4}, None),
    ],
)
def test_what_training_through_the_model_does_not_use_is_refused(fields, refused):
    config = TrainConfig(init_from="there", end_to_end="kl", **{**LEFT_OPEN, **fields})
    if refused is None:
        assert settled(config) == config
        return
    with pytest.raises(ValueError, match=f"TrainConfig.{refused} expected .* with end_to_end, got"):
        settled(config)


def test_k_is_at_most_the_width_where_a_kind_has_a_k():
    settled(TrainConfig(kind="relu", d_sae=16))
    with pytest.raises(ValueError, match="TrainConfig.k expected at most d_sae=64, got 65"):
        settled(TrainConfig(kind="batchtopk", k=65, d_sae=64))
