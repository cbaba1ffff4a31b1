"""Which kinds there are, which fields each takes, and what is told where one does not take it."""

from importlib import import_module
from pathlib import Path
from typing import get_args

import pytest

import saelens_lite.train.kinds
from saelens_lite.train.config import KindName, TrainConfig
from saelens_lite.train.kinds.choice import check_kind, kind_class

TAKEN_BY = {
    "k_anneal_fraction": (0.5, ["topk", "batchtopk", "matryoshka"]),
    "multi_topk_coeff": (0.125, ["topk"]),
    "unit_decoder": (False, ["relu", "jumprelu"]),
    "resample_every_steps": (100, ["relu", "gated", "jumprelu"]),
}


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
    config = TrainConfig(kind=kind, **{field: value})
    if kind in taken_by:
        check_kind(config)
    else:
        kinds = ", ".join(taken_by)
        told = f"TrainConfig.{field} expected .* for the kind {kind} \\({kinds} take it\\), got {value}"
        with pytest.raises(ValueError, match=told):
            check_kind(config)


def test_k_is_at_most_the_width_where_a_kind_has_a_k():
    check_kind(TrainConfig(kind="relu", k=65, d_sae=64))
    with pytest.raises(ValueError, match="TrainConfig.k expected at most d_sae=64, got 65"):
        check_kind(TrainConfig(kind="batchtopk", k=65, d_sae=64))
