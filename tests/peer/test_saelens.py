"""What we save opens in SAELens itself and encodes the same there."""

import subprocess
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from saelens_lite.sae import SAEConfig, SparseAutoencoder

PEERS = Path(__file__).parents[2] / ".venv-peers" / "bin" / "python"
pytestmark = [
    pytest.mark.peer,
    pytest.mark.skipif(not PEERS.exists(), reason="the peers' environment is not installed (make peers)"),
]

READ_WITH_SAELENS = """
import json, sys
from safetensors.torch import load_file, save_file
from sae_lens import SAE
folder, acts, answer = sys.argv[1:]
sae = SAE.load_from_disk(folder)
x = load_file(acts)["acts"]
save_file({"latents": sae.encode(x).detach().contiguous(), "recons": sae(x).detach().contiguous()}, answer)
print(json.dumps({"architecture": sae.cfg.architecture(), **sae.cfg.metadata.to_dict()}))
"""


@pytest.mark.parametrize("kind", ["relu", "topk", "jumprelu", "gated"])
def test_saved_folder_opens_in_saelens(kind, tmp_path):
    torch.manual_seed(0)
    config = SAEConfig(
        d_model=32,
        d_sae=128,
        kind=kind,
        k=8 if kind == "topk" else None,
        hook_point="blocks.3.hook_resid_post",
        hf_module="model.layers.3",
        model_name="tiny",
        metadata={"saelens_lite": {"fvu": 0.1}},
    )
    sae = SparseAutoencoder(config)
    with torch.no_grad():
        for name, parameter in sae.named_parameters():
            parameter.copy_(torch.rand_like(parameter) if name == "threshold" else torch.randn_like(parameter) * 0.2)
    acts = torch.randn(64, 32)
    sae.save(tmp_path / "sae")
    save_file({"acts": acts}, tmp_path / "acts.safetensors")
    (tmp_path / "read.py").write_text(READ_WITH_SAELENS)
    arguments = [
        PEERS,
        tmp_path / "read.py",
        tmp_path / "sae",
        tmp_path / "acts.safetensors",
        tmp_path / "answer.safetensors",
    ]
    done = subprocess.run([str(part) for part in arguments], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr

    theirs = load_file(tmp_path / "answer.safetensors")
    with torch.no_grad():
        torch.testing.assert_close(sae.encode(acts).to_dense(), theirs["latents"], atol=1e-5, rtol=0)
        torch.testing.assert_close(sae(acts).recons, theirs["recons"], atol=1e-5, rtol=1e-5)
    assert (theirs["latents"] != 0).any()
    said = done.stdout.strip().splitlines()[-1]
    for fact in ('"blocks.3.hook_resid_post"', '"model.layers.3"', '"tiny"', '{"fvu": 0.1}'):
        assert fact in said, "the nested metadata survives"
