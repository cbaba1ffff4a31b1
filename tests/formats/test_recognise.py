"""A format is known by its files; a wrong word for it is refused, and so is what the files cannot tell."""

import logging

import pytest

from saelens_lite.errors import CheckpointError
from saelens_lite.formats.recognise import NAMES, holds
from saelens_lite.sae.autoencoder import SparseAutoencoder


def test_every_golden_folder_is_refused_under_every_other_format(golden, golden_name):
    case = golden(golden_name)
    for other in set(NAMES) - {case.format}:
        with pytest.raises(ValueError) as refused:
            SparseAutoencoder.load(case.folder, format=other)
        told = str(refused.value)
        assert f"format={other!r} expected {holds(other)}" in told and f"format={case.format!r}" in told


def test_the_load_says_which_it_took(golden, caplog):
    case = golden("sparsify")
    with caplog.at_level(logging.INFO, "saelens_lite"):
        SparseAutoencoder.load(case.folder)
    assert "layers.10: opened as sparsify" in caplog.text


def test_an_unknown_format_is_named(golden):
    with pytest.raises(ValueError, match="format expected one of saelens, .*got 'sparsfy' .did you mean"):
        SparseAutoencoder.load(golden("sparsify").folder, format="sparsfy")


def test_saes_below_a_folder_are_listed_whatever_their_format(golden):
    case = golden("sparsify")
    with pytest.raises(CheckpointError, match=r"SAEs in it: layers\.10 \(pass one as folder=\)"):
        SparseAutoencoder.load(case.folder.parent)
    assert SparseAutoencoder.load(case.folder.parent, "layers.10").kind == "topk"


def test_all_golden_folders_are_small(golden, golden_name):
    golden(golden_name)
    assert sum(file.stat().st_size for file in golden.root.rglob("*") if file.is_file()) < 200_000
