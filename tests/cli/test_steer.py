"""The command steer prints clean, edited and control; ablate and generate point to it."""

import json

import pytest
import torch

from saelens_lite.cli.commands import main
from saelens_lite.sae.autoencoder import SparseAutoencoder
from saelens_lite.sae.config import SAEConfig


@pytest.mark.long
def test_it_prints_what_is_written_beside_a_control(tmp_path, capsys):
    torch.manual_seed(0)
    sae = SparseAutoencoder(SAEConfig(d_model=192, d_sae=32, k=4, hook_point="blocks.2.hook_resid_post"))
    for parameter in sae.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    sae.save(tmp_path / "sae", torch.full((32,), -1.0))
    argv = ["steer", "--sae", str(tmp_path / "sae"), "--model", "demo", "--prompt", "import os", "def f("]
    argv += ["--latent", "3=20", "5=2", "--max-new-tokens", "3", "--device", "cpu"]
    assert main(argv) == 0
    text = capsys.readouterr().out
    assert text.count("next token") == 2 and text.count("latent 3 at 20, latent 5 at 2:") == 2
    assert "random latents" in text and "matched by how often it fires" in text
    assert main([*argv[:7], "--latent", "3", "--mode", "ablate", "--format", "json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [row["name"] for row in found["rows"]][:2] == ["before", "latent 3 ablated"]
    assert main([*argv[:7], "--latent", "3", "--mode", "scale"]) == 2
    assert (
        "--latent expected a latent and its amount, such as 12=3, with --mode scale"
        in capsys.readouterr().err
    )


@pytest.mark.parametrize(
    "command, said", [("ablate", "steer --mode ablate --sae"), ("generate", "steer --sae")]
)
def test_names_of_edits_point_to_it(command, said, capsys):
    assert main([command]) == 2
    assert said in capsys.readouterr().err
