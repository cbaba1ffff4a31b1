"""train --kind of a relative: from flags or a run's own file, help of a kind, and what is refused."""

import pytest
import torch

import saelens_lite as sl
from saelens_lite.autoencoders.autoencoder import Autoencoder
from saelens_lite.cli.commands import main


@pytest.fixture
def store(tmp_path):
    rows = torch.randn(400, 6, generator=torch.Generator().manual_seed(0))
    return str(sl.ActivationStore.from_arrays(tmp_path / "store", rows).path)


def test_a_relative_is_trained_and_repeated_from_its_file(store, tmp_path, capsys):
    output = str(tmp_path / "pca")
    words = ["train", "--kind", "pca", "--store", store, "--code-size", "2", "--batch-size-rows", "50"]
    assert main([*words, "--output", output, "--device", "cpu", "--no-progress"]) == 0
    said = capsys.readouterr().out
    assert f"{output}: pca autoencoder, code of 2 on acts" in said and "7 steps, 350 rows" in said
    again = str(tmp_path / "again")
    assert main(["train", f"--config={output}/train_config.json", "--output", again]) == 0
    first, second = Autoencoder.load(output), Autoencoder.load(again)
    assert torch.equal(first.components, second.components)


def test_help_of_a_kind_leaves_out_what_others_have(capsys):
    with pytest.raises(SystemExit):
        main(["train", "--kind=variational", "--help"])
    said = capsys.readouterr().out
    own, _, others = said.partition("Left out, since they are of other kinds:")
    assert "--beta" in own and "--contractive-coeff" not in own and "--contractive-coeff" in others


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--kind", "pca", "--beta", "2"], "beta expected 1.0 for the kind pca"),
        (["--kind", "pca", "--k", "2"], "train has no flag --k"),
        (["--kind", "pca", "--code-size", "7"], "code_size expected at most 6"),
        (["--kind", "dense", "--code-size", "0"], "at least 1"),
        (["--kind", "convolutional"], "from_arrays"),
    ],
)
def test_what_cannot_be_is_one_line(store, tmp_path, capsys, words, said):
    assert main(["train", *words, "--store", store, "--output", str(tmp_path / "out")]) == 2
    errors = capsys.readouterr().err.splitlines()
    assert said in errors[-1]
