"""train --help: every flag once by what it is for, a kind's own first, and without those of other kinds."""

import dataclasses
import inspect
import re
from typing import get_args

import pytest

import saelens_lite as sl
from saelens_lite.cli.commands import main
from saelens_lite.cli.train import GROUPS, TrainCommand, help_text
from saelens_lite.train.config import KindName
from saelens_lite.train.kinds.choice import kind_class

FIELDS = [field.name for field in dataclasses.fields(TrainCommand)]
OF_KINDS = {name for kind in get_args(KindName) for name in kind_class(kind).fields}


def flags(text):
    return [name.replace("-", "_") for name in re.findall(r"^  --([\w-]+)", text, flags=re.MULTILINE)]


def test_every_field_stands_in_one_group():
    grouped = [name for names in GROUPS.values() for name in names]
    assert sorted(grouped) == sorted(set(FIELDS) - OF_KINDS)
    assert sorted(flags(help_text(None))) == sorted(FIELDS)


@pytest.mark.parametrize("kind", get_args(KindName))
def test_a_kind_has_its_own_first_and_no_other(kind):
    own = set(kind_class(kind).fields)
    shown = flags(help_text(kind))
    assert set(shown[: len(own & set(FIELDS))]) == own & set(FIELDS)
    assert not set(shown) & (OF_KINDS - own)
    assert set(FIELDS) - set(shown) == OF_KINDS - own


def test_a_flag_has_its_text_default_and_bounds(capsys):
    with pytest.raises(SystemExit) as left:
        main(["train", "--kind", "relu", "--help"])
    assert left.value.code == 0
    text = capsys.readouterr().out
    assert "\nof relu\n" in text and "--matryoshka-fractions" not in text.split("Left out")[0]
    assert "--unit-decoder | --no-unit-decoder  (default: True)" in text
    assert "  --batch-size-rows  (default: 4096)\n      Rows (tokens) a step. At least 1.\n" in text
    assert "One of highest, high, medium." in " ".join(text.split())
    assert max(map(len, text.splitlines())) <= 110


def test_help_of_an_edit_says_what_its_place_may_be():
    said = inspect.getdoc(sl.steer)
    for word in (
        '"prompt"',
        "span_mask",
        'hook_point="blocks.3.hook_resid_post"',
        "when=sl.edits.Fires(7, 0.5)",
    ):
        assert word in said
    for edit in (sl.ablate, sl.clamp, sl.edits.scale):
        assert "where, place: as for `steer`" in inspect.getdoc(edit)
