"""study --multiple-choice prints what `multiple_choice` finds on each list of the file."""

import csv
import io
import json

import pytest

from saelens_lite.analyze.answers.choices import multiple_choice, read_choices
from saelens_lite.cli.commands import main

QUESTIONS = [
    {
        "question": "What does len return?",
        "mc1_targets": {"a number": 1, "a list": 0, "None": 0},
        "mc2_targets": {"a number": 1, "an int": 1, "a list": 0},
    },
    {
        "question": "What does import do?",
        "mc1_targets": {"it loads a module": 1, "it prints": 0},
        "mc2_targets": {"it loads a module": 1, "it prints": 0, "it ends": 0},
    },
]


@pytest.fixture
def file(tmp_path):
    (tmp_path / "mc.json").write_text(json.dumps(QUESTIONS))
    return tmp_path / "mc.json"


@pytest.mark.long
def test_the_scores_are_those_of_python(file, embedded, capsys):
    model, tokenizer = embedded
    words = ["study", "--model", "demo", "--multiple-choice", str(file), "--choices-preset", "null"]
    words += ["--device", "cpu"]
    assert main([*words, "--format", "json"]) == 0
    rows = json.loads(capsys.readouterr().out)["rows"]
    assert [(row["score"], row["n"]) for row in rows] == [("MC1", 2), ("MC2", 2)]
    for row, name, of in zip(rows, ("mc1", "mc2"), ("accuracy", "mass"), strict=True):
        found = multiple_choice(model, tokenizer, read_choices(file, name), preset="null")
        for key, interval in (("asked", getattr(found, of)), ("hidden", getattr(found, f"{of}_hidden"))):
            assert row[key] == pytest.approx(interval.to_dict(), abs=1e-5)
    assert 0 < rows[1]["asked"]["estimate"] < 1
    assert main([*words, "--format", "csv"]) == 0
    lines = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    assert float(lines[1]["asked.estimate"]) == pytest.approx(rows[1]["asked"]["estimate"])
    assert main(words) == 0
    head, first, second, note = capsys.readouterr().out.splitlines()
    assert first.startswith("MC1") and second.startswith(f"MC2           {rows[1]['asked']['estimate']:.3f}")
    assert head.split("  ")[0] == "" and "prompt 'null'" in note


def test_what_is_no_such_file_is_refused(file, tmp_path, capsys):
    assert main(["study", "--multiple-choice", str(file)]) == 2
    assert "--multiple-choice needs --model" in capsys.readouterr().err
    (tmp_path / "other.json").write_text('[{"question": "?", "answers": {}}]')
    assert main(["study", "--model", "demo", "--multiple-choice", str(tmp_path / "other.json")]) == 2
    assert "mc2_targets, as TruthfulQA's mc_task.json has, got question, answers" in capsys.readouterr().err
