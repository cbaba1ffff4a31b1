"""The l0 at which decoder rows lean on each other least: the rule on curves by hand, and a planted l0."""

import json
from itertools import pairwise

import pytest

import saelens_lite as sl
from saelens_lite.cli.train import without_auto
from saelens_lite.synthetic import SyntheticActivations, SyntheticConfig
from saelens_lite.train.l0_choice import choose_l0, stands_out, steps_around


def test_what_stands_out_by_hand():
    assert stands_out({2: 0.3, 4: 0.2, 8: 0.1, 16: 0.2}) == (8, "")
    assert stands_out({4: 0.106, 8: 0.1, 16: 0.106})[0] == 8
    chosen, why = stands_out({4: 0.104, 8: 0.1, 16: 0.2})
    assert chosen is None and "rises by 4.0% towards the ends, and 5% are asked for" in why
    chosen, why = stands_out({4: 0.3, 8: 0.2, 16: 0.1})
    assert chosen is None and "least at the highest value, 16" in why
    chosen, why = stands_out({4: 0.1, 8: 0.2, 16: 0.3})
    assert chosen is None and "least at the lowest value, 4" in why


def test_steps_are_of_five_percent_where_whole_numbers_allow_it():
    assert steps_around(8) == [6, 7, 8, 9, 10, 11]
    steps = steps_around(100)
    assert (steps[0], steps[-1]) == (71, 141) and 100 in steps
    assert max(after / before for before, after in pairwise(steps)) < 1.055  # a half of a latent in 71


@pytest.fixture(scope="module")
def planted_l0(tmp_path_factory):
    """Rows of width 32 with 24 nearly orthogonal features, of which 5 fire on average."""
    folder = tmp_path_factory.mktemp("planted")
    world = SyntheticActivations(SyntheticConfig(d_model=32, n_features=24, l0=5, seed=0))
    world.to_store(folder / "store", 40_000)
    return folder


FIELDS = {"d_sae": 48, "n_steps": 300, "batch_size_rows": 512, "eval_rows": 2048, "progress": False}


@pytest.mark.long
def test_a_planted_l0_is_chosen_and_its_run_is_there(planted_l0, tmp_path):
    choice = choose_l0(planted_l0 / "store", kind="batchtopk", output=str(tmp_path / "runs"), **FIELDS)
    assert choice.chosen == 5 and choice.field == "k"
    assert choice.values == (2, 3, 4, 5, 6, 8) == tuple(sorted(choice.values))
    assert choice.cosine[choice.values.index(5)] == min(choice.cosine)
    assert sl.SparseAutoencoder.load(choice.folder).config.metadata["saelens_lite"]["train"]["k"] == 5
    assert choice.to_dict()["chosen"] == 5 and json.dumps(choice.to_dict())
    [line] = [line for line in str(choice).splitlines() if "chosen" in line]
    assert line.split()[:1] == ["5"]


@pytest.mark.slow
def test_the_command_trains_with_the_chosen_k(planted_l0, tmp_path, capsys):
    from saelens_lite.cli.train import run

    words = ["--store", str(planted_l0 / "store"), "--kind", "batchtopk", "--k", "auto", "--output"]
    words += [str(tmp_path / "sae"), "--d-sae", "48", "--n-steps", "300", "--batch-size-rows", "512"]
    run([*words, "--eval-rows", "2048", "--no-progress"])
    assert "The mean |cosine| of decoder rows is least at k 5." in capsys.readouterr().out
    assert sl.SparseAutoencoder.load(tmp_path / "sae").config.metadata["saelens_lite"]["train"]["k"] == 5


def test_auto_of_a_field_that_the_kind_does_not_take_trains_nothing(planted_l0, tmp_path):
    from saelens_lite.cli.train import run

    words = ["--store", str(planted_l0 / "store"), "--kind", "relu", "--k", "auto", "--n-steps", "2"]
    with pytest.raises(ValueError, match="--k auto expected --target-l0 auto with this kind"):
        run([*words, "--output", str(tmp_path / "sae"), "--no-progress"])
    assert not any(tmp_path.iterdir())


def test_auto_is_taken_from_the_words():
    assert without_auto(["--k", "auto", "--store", "s"]) == (["--store", "s"], "--k")
    assert without_auto(["--store", "s", "--target-l0=auto"]) == (["--store", "s"], "--target-l0")
    assert without_auto(["--k", "8", "--device=auto"]) == (["--k", "8", "--device=auto"], "")


@pytest.mark.parametrize(
    ("fields", "match"),
    [
        ({"k": 8}, "expected no k, as it looks for one, got 8"),
        ({"kind": "relu", "target_l0": 4.0}, "expected no target_l0"),
        ({"lowest": 4, "highest": 9}, r"three powers of two from lowest=4 to highest=9, got \[4, 8\]"),
    ],
)
def test_bad_input_is_refused_before_anything_is_trained(planted_l0, tmp_path, fields, match):
    with pytest.raises(ValueError, match=match):
        choose_l0(planted_l0 / "store", output=str(tmp_path / "runs"), **FIELDS, **fields)
    assert not (tmp_path / "runs").exists()
