"""The public face: what it has, that it has nothing else, and that each name is where the face says."""

import pytest

import saelens_lite


def test_every_public_name_exists():
    for name in saelens_lite.__all__:
        assert getattr(saelens_lite, name) is not None


def test_dir_is_exactly_the_public_names():
    assert dir(saelens_lite) == sorted(set(saelens_lite.__all__) - {"__version__"})


def test_every_public_name_is_documented():
    for name in set(saelens_lite.__all__) - {"__version__"}:
        assert getattr(saelens_lite, name).__doc__, f"{name} has no docstring"


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="has no attribute 'train_sea'"):
        _ = saelens_lite.train_sea
