"""What to type next: quoted for the shell, and never what a name from data makes of it."""

import shlex

import pytest

from saelens_lite.cli.shared import print_next


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (
            {"store": "my store", "model": "x; touch PWNED #"},
            ["--store", "my store", "--model", "x; touch PWNED #"],
        ),
        ({"store": "s", "model": "", "baseline": None}, ["--store", "s"]),
        (
            {"store": "s", "model": "--trust-remote-code"},
            ["--store", "s", "--model", "./--trust-remote-code"],
        ),
        ({"dataset": ("a b", "$(c)"), "repair": True}, ["--dataset", "a b", "$(c)", "--repair"]),
        ({"hook_point": "it's"}, ["--hook-point", "it's"]),
    ],
)
def test_the_next_command_has_the_words_that_are_meant(flags, words, capsys):
    print_next("evaluate", "-odd", **flags)
    line = capsys.readouterr().out
    assert line.startswith("next: ") and line.count("\n") == 1
    assert shlex.split(line.removeprefix("next: ")) == ["saelens-lite", "evaluate", "./-odd", *words]


@pytest.mark.parametrize("name", ["a\nrm -rf b", "a\x1b[2Jb", "a\u202eb"])
def test_a_name_that_cannot_be_seen_is_not_offered(name, capsys):
    print_next("evaluate", model=name)
    assert capsys.readouterr().out == ""
