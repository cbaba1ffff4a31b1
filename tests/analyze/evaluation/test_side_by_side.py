"""Several SAEs side by side: each as alone, on the rows that all held out, with a line where l0 differ."""

import json

import pytest

from saelens_lite.analyze.evaluation.evaluate import evaluate_sae
from saelens_lite.analyze.evaluation.side_by_side import evaluate_saes
from saelens_lite.cli.commands import main
from saelens_lite.cli.evaluate import named_saes
from saelens_lite.text_table import number

from ..conftest import make_sae

SPLIT = {"held_out_fraction": 0.3}


@pytest.mark.long
def test_each_is_what_it_is_alone(store, gpt2):
    saes = {"A": make_sae(), "B": make_sae(k=8)}
    found = evaluate_saes(saes, store, gpt2, {"B": make_sae(d_sae=64)}, **SPLIT)
    alone = {"A": evaluate_sae(saes["A"], store, gpt2, **SPLIT)}
    alone["B"] = evaluate_sae(saes["B"], store, gpt2, make_sae(d_sae=64), **SPLIT)
    for name, one in alone.items():
        assert found[name].row("trained") == one.row("trained")
        assert found[name].row("baseline") == one.row("baseline")
    lines = str(found).splitlines()
    names = ["A", "B", "B: baseline", "zero ablation", "mean ablation"]
    assert [line.split("  ")[0] for line in lines[1:6]] == names
    for line, name in ((lines[1], "A"), (lines[2], "B")):
        assert line.split()[1] == number(alone[name].row("trained").fvu, ".4f")
    assert lines[6].startswith("l0 differ, from 4.0 (A) to 8.0 (B): more latents reconstruct more")
    frame = found.to_frame()
    assert frame["sae"].tolist() == ["A"] * 3 + ["B"] * 4
    assert json.loads(json.dumps(found.to_dict()))["A"]["rows"] == alone["A"].to_dict()["rows"]
    assert found.to_markdown().splitlines()[2].startswith("| A | ")


def test_like_l0_are_not_said_to_differ(store):
    found = evaluate_saes({"A": make_sae(), "B": make_sae(d_sae=64)}, store, **SPLIT)
    assert "l0 differ" not in str(found)
    with pytest.raises(ValueError, match="at least one SAE, got none"):
        evaluate_saes({}, store)


def test_the_command_prints_them_side_by_side(store, tmp_path, capsys):
    """A grid's folder stands for its SAEs."""
    for name, k in (("k=4", 4), ("k=8", 8)):
        make_sae(k=k).save(tmp_path / "grid" / name)
    grid, path = str(tmp_path / "grid"), str(store.path)
    assert named_saes([grid]) == {name: f"{grid}/{name}" for name in ("k=4", "k=8")}
    assert named_saes(["a/x", "b/x"]) == {"a/x": "a/x", "b/x": "b/x"}
    assert main(["evaluate", path, f"{grid}/k=4", f"{grid}/k=8", "--windows-tokens", "100"]) == 0
    by_name = capsys.readouterr().out
    assert main(["evaluate", "--sae", grid, "--store", path, "--windows-tokens", "100"]) == 0
    assert capsys.readouterr().out == by_name
    lines = by_name.splitlines()
    assert [line.split()[0] for line in lines[1:3]] == ["k=4", "k=8"]
    assert "l0 differ, from 4.0 (k=4) to 8.0 (k=8)" in by_name
    assert main(["evaluate", "--sae", grid, "--store", path, "--baseline", f"{grid}/k=4"]) == 2
    assert "go with one --sae" in capsys.readouterr().err
    assert main(["evaluate", path, grid, "--format", "json"]) == 0
    assert set(json.loads(capsys.readouterr().out)) == {"k=4", "k=8"}
    assert main(["evaluate", path, f"{grid}/k=4", "--format", "markdown"]) == 0
    assert capsys.readouterr().out.startswith("|  | fvu | expl.var | l0 |")


@pytest.mark.long
def test_pictures_show_the_numbers(store):
    matplotlib = pytest.importorskip("matplotlib")
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    found = evaluate_sae(make_sae(), store, **SPLIT)
    ax = found.plot()
    assert ax.get_legend().get_texts()[0].get_text().startswith("trained")
    drawn = ax.patches[0].get_data().values
    assert drawn.sum() == 48 - found.densities["trained"].never
    plt.close(ax.figure)
