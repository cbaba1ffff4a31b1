"""Runs to publish: small SAEs whose records hold paths, and the commands in a process of their own."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from saelens_lite.sae.autoencoder import SparseAutoencoder
from saelens_lite.sae.config import SAEConfig

from .loopback import Hub

TOKEN = "hf_ofThisTestAlone"


@pytest.fixture
def hub():
    with Hub() as served:
        yield served


@pytest.fixture
def grid(tmp_path):
    """Two SAEs that record paths of this machine, the first evaluated, with a page and a log beside them."""
    for k in (2, 4):
        torch.manual_seed(k)
        sae = SparseAutoencoder(SAEConfig(d_model=8, d_sae=16, k=k))
        sae.W_enc.data.normal_()
        sae.W_dec.data.normal_()
        facts = {
            "store": "ab" * 32,
            "train": {"kind": "topk", "k": k, "l1_coeff": 5.0, "seed": 3},
            "steps": 7,
        }
        sae.config = replace(
            sae.config,
            hook_point="blocks.1.hook_resid_post",
            model_name=str(tmp_path / "models" / "tiny"),
            metadata={"saelens_lite": facts, "context_size": 64},
        )
        sae.save(tmp_path / "grid" / f"k={k}")
    rows = [
        {"name": "trained", "given": True, "fvu": 0.25, "l0": 2.0, "delta_ce": 0.125, "dead@10k": 0.5},
        {"name": "baseline", "given": True, "fvu": 0.75, "l0": 2.0, "delta_ce": 1.5, "dead@10k": 0.25},
        {"name": "zero ablation", "given": True, "fvu": 1.0, "l0": 0.0, "delta_ce": 3.0},
    ]
    evaluation = {"rows": rows, "n_tokens": 1234, "held_out": True, "store": str(tmp_path / "store")}
    (tmp_path / "grid" / "k=2" / "evaluation.json").write_text(json.dumps(evaluation))
    (tmp_path / "grid" / "features.html").write_text("<p>latents</p>")
    (tmp_path / "grid" / "k=2" / "metrics.jsonl").write_text(json.dumps({"path": str(tmp_path)}))
    return tmp_path / "grid"


@pytest.fixture
def command(hub, tmp_path):
    """Run code or a command against the hub, in a process whose settings of huggingface_hub are its own."""

    def run(
        *words: str, code: str | None = None, python: Path | str = sys.executable, **settings: str
    ) -> subprocess.CompletedProcess:
        told = ["-c", code] if code else ["-m", "saelens_lite.cli", *words]
        env = os.environ | {
            "HF_ENDPOINT": hub.url,
            "HF_TOKEN": TOKEN,
            "HF_HOME": str(tmp_path / "hf"),
            "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "PYTHONPATH": str(Path(__file__).parents[2]),
        }
        env = {
            name: value
            for name, value in (env | settings).items()
            if name != "HF_HUB_OFFLINE" or name in settings
        }
        return subprocess.run([str(python), *told], capture_output=True, text=True, env=env, cwd=tmp_path)

    return run
