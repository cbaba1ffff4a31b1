"""Words by place: which flag each stands for, in every command alike."""

import dataclasses
from importlib import import_module

import pytest

from saelens_lite.cli.commands import COMMANDS
from saelens_lite.cli.flags import configured
from saelens_lite.cli.places import PLACES, n_words


@dataclasses.dataclass(frozen=True, kw_only=True)
class Analyze:
    """The places of analyze: STORE, which may be left out, and SAE."""

    sae: str
    store: str | None = None
    latents: tuple[int, ...] = ()
    texts: tuple[str, str] = ("", "")
    low: float = 0.0
    open: bool = True


@dataclasses.dataclass(frozen=True, kw_only=True)
class AddHookPoints:
    """The places of add-hook-points: STORE and as many HOOK_POINTS as come."""

    store: str
    hook_points: tuple[str, ...]
    model: str | None = None


@pytest.mark.parametrize(
    ("typed", "fields"),
    [
        ("STORE SAE", {"store": "STORE", "sae": "SAE"}),
        ("SAE", {"sae": "SAE"}),
        ("SAE --store STORE", {"store": "STORE", "sae": "SAE"}),
        ("STORE --sae SAE", {"store": "STORE", "sae": "SAE"}),
        ("--store=STORE --low -3 SAE", {"store": "STORE", "sae": "SAE", "low": -3.0}),
        ("STORE --no-open SAE", {"store": "STORE", "sae": "SAE", "open": False}),
        ("--texts a b SAE --latents 1 2 3", {"sae": "SAE", "texts": ("a", "b"), "latents": (1, 2, 3)}),
        ("--sae SAE --store STORE", {"store": "STORE", "sae": "SAE"}),
    ],
)
def test_a_word_that_no_flag_takes_goes_to_the_first_free_place(typed, fields):
    assert configured(Analyze, "analyze", typed.split()) == Analyze(**fields)


@pytest.mark.parametrize(
    "typed", ["S a b", "S --hook-points a b", "a b --store S", "--store S --hook-points a b"]
)
def test_the_last_place_takes_the_rest_where_its_flag_takes_several(typed):
    assert configured(AddHookPoints, "add-hook-points", typed.split()) == AddHookPoints(
        store="S", hook_points=("a", "b")
    )


def test_one_word_beside_a_file_replaces_the_last_place(tmp_path):
    file = tmp_path / "c.json"
    file.write_text('{"store": "S", "sae": "A"}')
    assert configured(Analyze, "analyze", ["B", "--config", str(file)]) == Analyze(store="S", sae="B")


@pytest.mark.parametrize(
    ("typed", "line"),
    [
        ("a b c", "expected STORE SAE before the flags, got a b c"),
        ("a b --sae c", "expected STORE before the flags beside --sae, got a b"),
        ("a --store s --sae c", "expected no word before the flags beside --store and --sae, got a"),
        ("--stroe a b c", r"analyze has no flag --stroe \(did you mean '--store'\?\)"),
        ("--low 1", "analyze needs SAE; "),
    ],
)
def test_words_too_many_or_too_few_are_named(typed, line):
    with pytest.raises(ValueError, match=line):
        configured(Analyze, "analyze", typed.split())


def test_a_flag_takes_as_many_words_as_its_type_says():
    assert [n_words(hint) for hint in (bool, str, str | None, tuple[str, str])] == [0, 1, 1, 2]
    several = (tuple[int, ...], tuple[int, ...] | None, str | tuple[str, ...])
    assert [n_words(hint) for hint in several] == [float("inf")] * 3


def test_every_place_is_a_field_of_its_command():
    assert PLACES.keys() == COMMANDS.keys() - {"demo"}
    for command, places in PLACES.items():
        module = vars(import_module(f"saelens_lite.cli.{command.replace('-', '_')}"))
        configs = [value for name, value in module.items() if name.endswith(("Config", "Command"))]
        fields = {field.name for cls in configs for field in dataclasses.fields(cls)}
        assert {*places} <= fields, command


def test_help_shows_the_places(capsys):
    from saelens_lite.cli.commands import main

    for usage in ("analyze [STORE] SAE", "train [STORE]", "saes [RELEASE]", "pull REPO FOLDER"):
        with pytest.raises(SystemExit):
            main([usage.split()[0], "--help"])
        assert capsys.readouterr().out.startswith(f"usage: saelens-lite {usage} ")
