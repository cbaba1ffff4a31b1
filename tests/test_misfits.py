"""Arguments that do not fit their annotations are named, whatever failed because of them."""

from collections.abc import Iterable, Sequence
from typing import Protocol

import pytest
import torch
from torch import nn

import saelens_lite as sl
from saelens_lite.misfits import fits, names_misfits
from saelens_lite.sae.config import SAEConfig

ROWS = torch.zeros(5, 3)


class HasColumns(Protocol):
    width: int

    def column(self, name: str) -> torch.Tensor: ...


class Columns:
    width = 3

    def column(self, name):
        return ROWS[:, 0]


@names_misfits
def first_column(table: HasColumns, n: int = 3) -> int:
    return len(table.column("a")) + {3: 0}[n]


def test_what_fits_is_returned_and_our_own_faults_stay():
    assert first_column(Columns()) == 5
    with pytest.raises(KeyError, match="4"):
        first_column(Columns(), 4)


def test_an_argument_of_another_type_is_named_with_what_failed_as_its_cause():
    with pytest.raises(TypeError, match="first_column expected n as int, got str '3'") as found:
        first_column(Columns(), "3")
    assert isinstance(found.value.__cause__, KeyError)


def test_a_protocol_is_held_to_all_of_its_members():
    half = type("Half", (), {"column": None})()
    assert fits(Columns(), HasColumns) and not fits(half, HasColumns) and not fits(ROWS, HasColumns)
    with pytest.raises(TypeError, match=r"expected table as HasColumns, got Tensor torch.float32 \[5, 3\]"):
        first_column(ROWS)


def an_sae() -> sl.SparseAutoencoder:
    return sl.SparseAutoencoder(SAEConfig(d_model=3, d_sae=6, kind="topk", k=2))


def test_a_name_that_an_sae_lacks_is_never_the_callers_word():
    """An SAE's own AttributeError is raised on purpose, but says nothing of the argument."""

    @names_misfits
    def values_of(saes: dict[str, nn.Module]) -> list[nn.Module]:
        return [*saes.values()]

    with pytest.raises(TypeError, match=r"values_of expected saes as dict, got SparseAutoencoder"):
        values_of(an_sae())
    with pytest.raises(TypeError, match="__init__ expected config as SAEConfig, got SparseAutoencoder"):
        sl.SparseAutoencoder(an_sae())
    with pytest.raises(AttributeError, match="values"):
        an_sae().values()


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda: sl.stats.entities_needed(iter([1]), 1.0), "effect as float, got list_iterator"),
        (lambda: sl.answers.semantic_entropy(ROWS), r"samples as Sequence\[str\], got Tensor"),
        (lambda: sl.index.promotes_token(ROWS, " cat"), "index as Searchable, got Tensor"),
        (lambda: sl.stats.agreement(3, 4), "agreement expected .* got int 3"),
        (lambda: sl.stats.spearman("", [1.0, 2.0]), "spearman expected a as Values, got str ''"),
        (lambda: sl.pages.study_page(float("nan"), "page.html"), "result as Studied, got float nan"),
        (lambda: sl.store.pack(ROWS, 8, None), "documents as .*got Tensor"),
    ],
    ids="entities_needed semantic_entropy promotes_token agreement spearman study_page pack".split(),
)
def test_public_functions_name_it(call, said):
    with pytest.raises(TypeError, match=said):
        call()


def test_an_sae_alone_is_no_mapping_of_saes(tmp_path):
    rows = torch.randn(40, 3, generator=torch.Generator().manual_seed(0))
    store = sl.ActivationStore.from_arrays(tmp_path / "store", rows)
    for how in ({}, {"baselines": ()}, {"model": torch.device("cpu")}, {"held_out_fraction": 0.5}):
        with pytest.raises(TypeError, match=r"evaluate_saes expected saes as Mapping.*got SparseAutoencoder"):
            sl.evaluation.evaluate_saes(an_sae(), store, **how)


@pytest.mark.parametrize(
    ("value", "hint", "fit"),
    [
        ("", Sequence[float], False),
        ("", Sequence[str], True),
        (2**63 - 1, int, True),
        (2**63, int, False),
        ([2**70], Sequence[int], False),
        (torch.arange(3), Iterable[int], True),
        (ROWS, Iterable[tuple[int, int]], False),
        (ROWS, Iterable[torch.Tensor], True),
    ],
)
def test_members_tell_whether_a_value_fits(value, hint, fit):
    assert fits(value, hint) is fit


def test_shapes_and_numbers_of_draws_are_named():
    with pytest.raises(ValueError, match=r"logits of one shape, got \[2, 9\] and \[1, 6\]"):
        sl.lm.kl_divergence(torch.zeros(2, 9), torch.zeros(1, 6))
    with pytest.raises(ValueError, match=r"controls expected \[n ≥ 1, \[\]…\], got \[\]"):
        sl.stats.rank_p(1.0, torch.tensor(3.0))
    with pytest.raises(ValueError, match="n_resamples expected at least 1 draw, got -1"):
        sl.stats.cluster_bootstrap([1.0, 2.0], n_resamples=-1)
    with pytest.raises(ValueError, match="output expected the folder above the members', got float nan"):
        sl.train_grid([], {"k": [2, 4]}, output=float("nan"))
    ids, mask = torch.zeros(1, 6).long(), torch.ones(5, 7)
    with pytest.raises(ValueError, match=r"attention_mask expected \[1, 6\], as input_ids, got \[5, 7\]"):
        sl.lm.token_losses(nn.Identity(), ids, mask)
