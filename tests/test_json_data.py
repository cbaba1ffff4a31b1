"""JSON that others wrote: any depth parsed or refused, any content held to a form."""

import json

import pytest

from saelens_lite.json_data import is_number, loads, misfit

FORM = {"rows": int, "name?": str, "shards": [{"bytes": int}], "points": {"*": {"width": int}}, "lr?": float}
GOOD = {"rows": 3, "shards": [{"bytes": 1}, {"bytes": 0}], "points": {"a.b": {"width": 4}}, "other": None}


def test_what_is_of_the_form_fits_with_keys_that_it_does_not_name():
    assert misfit(GOOD, FORM) is None
    assert misfit(GOOD | {"name": None, "lr": 3}, FORM) is None


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"rows": "many"}, "rows expected int, got 'many'"),
        ({"rows": True}, "rows expected int, got True"),
        ({"rows": -1}, "rows expected int, got -1"),
        ({"rows": 2**63}, "rows expected int, got 9223372036854775808"),
        ({"rows": 1.0}, "rows expected int, got 1.0"),
        ({"name": 7}, "name expected str, got 7"),
        ({"lr": 10**400}, "lr expected float, got 1000"),
        ({"lr": float("nan")}, "lr expected float, got nan"),
        ({"shards": None}, "shards expected a list, got None"),
        ({"shards": [{"bytes": 1}, "x"]}, "shards[1] expected a JSON object, got 'x'"),
        ({"shards": [{}]}, "shards[0].bytes is missing"),
        ({"points": ["a"]}, "points expected a JSON object, got ['a']"),
        ({"points": {"a.b": {"width": None}}}, "points.a.b.width expected int, got None"),
    ],
)
def test_what_is_not_is_named_with_its_place(change, said):
    assert misfit(GOOD | change, FORM).startswith(said)


def test_a_missing_key_and_another_whole_are_named():
    assert misfit({}, FORM) == "rows is missing"
    assert misfit([], FORM) == "expected a JSON object, got []"


@pytest.mark.parametrize("text", ["[" * 100_000 + "]" * 100_000, "1" * 5000, "{", '{"a": }'])
def test_what_cannot_be_parsed_is_one_kind_of_error(text):
    with pytest.raises(json.JSONDecodeError):
        loads(text)


def test_bytes_that_are_no_text_are_named_as_such():
    with pytest.raises(UnicodeDecodeError):
        loads(b'"\xff"')


def test_numbers_are_those_to_compute_with():
    assert is_number(0) and is_number(1e308) and is_number(-3.5)
    assert not any(map(is_number, (True, None, "1", float("inf"), float("nan"), 10**400)))
