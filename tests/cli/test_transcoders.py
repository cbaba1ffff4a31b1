"""train --target-hook-point: a transcoder from flags or a run's own file, its help, and what is refused."""

import pytest
import torch

import saelens_lite as sl
from saelens_lite.cli.commands import main
from saelens_lite.sae.transcoder import Transcoder

SMALL = ["--batch-size-rows", "50", "--n-steps", "3", "--d-sae", "16", "--device", "cpu", "--no-progress"]
PLACES = ["--hook-point", "in", "--target-hook-point", "out"]


@pytest.fixture
def store(tmp_path):
    rows = torch.randn(400, 10, generator=torch.Generator().manual_seed(0))
    both = {"in": rows[:, :6] + 3, "out": rows[:, 4:]}
    return str(sl.ActivationStore.from_arrays(tmp_path / "store", both).path)


def test_a_transcoder_is_trained_and_repeated_from_its_file(store, tmp_path, capsys):
    output = str(tmp_path / "t")
    assert main(["train", store, *PLACES, *SMALL, "--k", "2", "--skip", "--output", output]) == 0
    said = capsys.readouterr().out.splitlines()
    assert said[0] == f"{output}: jumprelu skip-transcoder of 16 latents, in → out"
    assert said[1].startswith("  3 steps, 150 rows")
    # γ of the input: its mean is 3 in each of 6 coordinates of variance 1, so 3; of the target 0
    assert said[2].startswith("  input: the mean of the rows is 2.9") or "is 3.0" in said[2]
    assert said[3].startswith("  target: the mean of the rows is 0.0")
    again = str(tmp_path / "again")
    assert main(["train", f"--config={output}/train_config.json", "--output", again]) == 0
    first, second = Transcoder.load(output), Transcoder.load(again)
    assert all(torch.equal(p, q) for p, q in zip(first.parameters(), second.parameters(), strict=True))
    assert first.target.skip and first.kind == "jumprelu"


def test_help_says_what_transcoders_take(capsys):
    with pytest.raises(SystemExit):
        main(["train", "--target-hook-point", "--help"])
    taken, _, others = capsys.readouterr().out.partition("Left out, since transcoders do not take them:")
    assert "--skip" in taken and "--k" in taken and "--baseline" not in taken and "--baseline" in others


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--target-hook-point", "out"], "needs --store"),
        ([*PLACES, "--kind", "relu"], "kind expected one of ('batchtopk', 'topk', 'jumprelu')"),
        ([*PLACES, "--baseline"], "baseline expected False for a transcoder"),
        (["--hook-point", "in", "--target-hook-point", "elsewhere"], "elsewhere"),
        (["--hook-point", "in", "--target-hook-point", "in"], "expected two hook points"),
        ([*PLACES, "--grid", "k=2,4"], "train has no flag --grid"),
        (["--skip"], "--skip"),
    ],
)
def test_what_cannot_be_is_one_line(store, tmp_path, capsys, words, said):
    assert main(["train", "--store", store, *words, "--output", str(tmp_path / "out")]) == 2
    errors = capsys.readouterr().err.splitlines()
    assert said in errors[-1]
