"""Processes hear of each other's signals and of a Triton kernel that failed in one of them.

Run as a script under torchrun, this file trains with Triton's path for CPU tensors, stand-ins of stock torch
in its place, of which one fails in the second process.
"""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch.testing import assert_close

import saelens_lite as sl
from saelens_lite import distributed
from saelens_lite.kernels import self_check, torch_ops
from saelens_lite.train.runs.side_by_side import Stopped

ROOT = Path(__file__).parents[3]


def test_a_failed_kernel_and_a_signal_travel_with_one_number(monkeypatch, caplog):
    """Two processes by hand: this one got SIGTERM (15), the other's kernel failed (65536)."""
    others, asked = [65536, 65536 + 15], []
    monkeypatch.setattr(self_check, "failure", None)
    monkeypatch.setattr(distributed, "largest", lambda n: asked.append(n) or max(n, others.pop(0)))
    stopped = Stopped()
    stopped.signal = signal.SIGTERM
    assert stopped.anywhere() is None  # 65536 is larger than 15; all hear of the signal when they ask again
    assert self_check.failure == "a Triton kernel failed in another process of this run"
    assert "in another process of this run. Stock torch takes over" in caplog.text
    assert stopped.anywhere() == signal.SIGTERM
    assert asked == [15, 65536 + 15]


@pytest.mark.dist
def test_a_kernel_that_fails_in_one_of_two_processes_is_left_by_both(tmp_path, planted):
    pytest.importorskip("triton")
    store = sl.ActivationStore.from_arrays(tmp_path / "store", planted.acts, rows_per_shard=3000)
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", "--standalone", __file__]
    env = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "TRITON_INTERPRET": "1"}
    done = subprocess.run(
        [*command, str(store.path), str(tmp_path / "two")], env=env, cwd=ROOT, capture_output=True, text=True
    )
    said = done.stdout + done.stderr
    assert done.returncode == 0, said
    assert said.count("the Triton kernel latent_pass failed on a CPU") == 1
    assert said.count("a Triton kernel failed in another process of this run. Stock torch takes over") == 1

    lines = [json.loads(line) for line in (tmp_path / "two" / "metrics.jsonl").read_text().splitlines()]
    assert {line["kernels"] for line in lines if "kernels" in line} == {"torch"}
    os.environ["SAELENS_LITE_KERNELS"] = "torch"
    try:
        one = sl.train_sae(store, output=str(tmp_path / "one"), **OPTIONS)
    finally:
        del os.environ["SAELENS_LITE_KERNELS"]
    two = sl.SparseAutoencoder.load(tmp_path / "two")
    for name, parameter in one.named_parameters():
        assert_close(two.get_parameter(name), parameter, rtol=1e-4, atol=1e-4)


OPTIONS = {"kind": "topk", "k": 4, "d_sae": 64, "lr": 1e-3, "batch_size_rows": 256, "n_steps": 20}
OPTIONS |= {"device": "cpu", "progress": False}


def _failing(*_, **__):
    raise RuntimeError("Failed to find C compiler")


if __name__ == "__main__":
    from saelens_lite.kernels import triton

    for name in ("token_pass", "latent_pass", "decode", "select_topk"):
        setattr(triton, name, getattr(torch_ops, name))
    triton.screened_topk = lambda x, W, b, k: torch_ops.select_topk(x @ W.T, b, k)
    if os.environ["RANK"] == "1":
        triton.latent_pass = _failing
    torch.distributed.init_process_group("gloo")
    sl.train_sae(sys.argv[1], output=sys.argv[2], **OPTIONS)
    torch.distributed.destroy_process_group()
