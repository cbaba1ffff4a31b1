"""Several processes train what one would: real processes, the weights of a single one.

Run as a script under torchrun, this file trains all CASES on its part of each batch and of the latents, and
saves what every process ends with.
"""

import json
import signal
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.testing import assert_close

import saelens_lite as sl
from saelens_lite import distributed
from saelens_lite.sae.config import SAEConfig
from saelens_lite.train.config import TrainConfig
from saelens_lite.train.kinds.choice import kind_class
from saelens_lite.train.kinds.few_pairs import SPARSE_BELOW
from saelens_lite.train.latent_shards import communication
from saelens_lite.train.optimise.initial import initial_sae
from saelens_lite.train.optimise.trainer import Trainer
from saelens_lite.train.rows.row_buffer import RowBuffer
from saelens_lite.train.rows.row_order import RowOrder

ROOT = Path(__file__).parents[2]
D, N, K, BATCH, N_STEPS = 12, 64, 4, 48, 20
CASES = {
    "topk": {"kind": "topk"},
    "topk, several k": {"kind": "topk", "multi_topk_coeff": 0.125},
    "topk, clipped": {"kind": "topk", "clip_norm": 0.1},
    "topk, frozen decoder": {"kind": "topk", "freeze_decoder": True},
    "relu": {"kind": "relu", "k": None, "l1_coeff": 0.1},
    "relu, free norms": {"kind": "relu", "k": None, "l1_coeff": 0.1, "unit_decoder": False},
    "relu, frozen decoder, target": {"kind": "relu", "k": None, "freeze_decoder": True, "target_l0": 8.0},
    "gated": {"kind": "gated", "k": None, "l1_coeff": 0.1},
    "gated, target": {"kind": "gated", "k": None, "target_l0": 8.0},
    "jumprelu, target": {"kind": "jumprelu", "k": None, "target_l0": 6.0},
    "jumprelu, tanh": {"kind": "jumprelu", "k": None, "jumprelu_penalty": "tanh"},
    "batchtopk": {"kind": "batchtopk"},
    "matryoshka": {"kind": "matryoshka"},
    "relu, resampled": {"kind": "relu", "k": None, "l1_coeff": 0.1, "resample_every_steps": 5},
    "gated, resampled": {"kind": "gated", "k": None, "l1_coeff": 0.1, "resample_every_steps": 5},
    "topk, noise, contraction": {"kind": "topk", "input_noise": 0.3, "contractive_coeff": 0.1},
    "batchtopk, k annealed": {"kind": "batchtopk", "k_anneal_fraction": 0.7},
    # more latents kept or used by AuxK than a shard has, and fewer
    "topk, wide": {"kind": "topk", "k": 24},
    "topk, wide, several k": {"kind": "topk", "k": 8, "multi_topk_coeff": 0.125, "k_aux": 30},
    "batchtopk, few for AuxK": {"kind": "batchtopk", "k_aux": 2},
    # the dead all in the first shard; gradients by products in the first shard, by the kernels in the second
    "topk, uneven": {"kind": "topk"},
    "matryoshka, uneven": {"kind": "matryoshka"},
    "relu, uneven": {"kind": "relu", "k": None, "l1_coeff": 0.1, "clip_norm": 0.1},
    "gated, uneven": {"kind": "gated", "k": None, "l1_coeff": 0.1, "contractive_coeff": 0.1},
    "jumprelu, uneven": {"kind": "jumprelu", "k": None, "target_l0": 6.0},
}


def beginning(case, dtype):
    """The trainer of this process's shard; some latents were silent, of which some fire weakly and some
    never."""
    fields, uneven = CASES[case], "uneven" in case
    kind = kind_class(fields["kind"]).sae_kind
    SPARSE_BELOW["cpu"] = distributed.rank("latents") % 2 if uneven else 1 / 16
    common = {"k": K, "d_sae": N, "lr": 1e-3, "batch_size_rows": BATCH, "dead_after_tokens": 2 * BATCH}
    config = TrainConfig(**common | fields)
    sae = initial_sae(
        SAEConfig(d_model=D, d_sae=N, kind=kind, k=config.k if kind == "topk" else None),
        rows(0),
        seed=0,
        comm=communication(),
    )
    latents = communication().first_latent(sae) + torch.arange(sae.d_sae)
    silent = latents < 12 if uneven else latents % 5 == 0
    with torch.no_grad():
        bias = sae.b_enc if hasattr(sae, "b_enc") else sae.b_gate
        bias[silent] = torch.where(latents % 2 == 0, -8.0, -50.0)[silent]
    sae = sae.to(dtype)
    trainer = Trainer(sae, config, N_STEPS, kind_class(config.kind)(sae, config, communication()))
    trainer.dead_tracker.tokens_since_fired[silent] = 2 * BATCH
    return trainer


def trained(trainer, dtype, n_steps):
    """What training this process's part of every batch ends with: its own state and stats, and the state of
    all shards."""
    for i in range(trainer.steps_done, trainer.steps_done + n_steps):
        stats = trainer.update(
            rows(i).to(dtype).chunk(distributed.world_size("data"))[distributed.rank("data")]
        )
    if trainer.kind.uses_dead:
        assert stats.sparsity > 0, "AuxK had nothing to do"
    states = {"own": trainer.state(), "whole": trainer.whole_state()}
    found = {f"own/stats.{name}": value.to(dtype) for name, value in stats._asdict().items()}
    for owner, state in states.items():
        found |= {
            f"{owner}/{name}": value.clone()
            for name, value in state.items()
            if isinstance(value, torch.Tensor)
        }
    return found


def rows(step):
    """A batch whose second half has almost all of what is largest."""
    acts = torch.randn(BATCH, D, generator=torch.Generator().manual_seed(step))
    acts[BATCH // 2 :] *= 6
    return acts


def all_cases():
    found = {}
    for case, fields in CASES.items():
        for dtype, n_steps in ((torch.float64, N_STEPS), (torch.float32, 1)):
            if "clip_norm" in fields and dtype == torch.float64:
                continue  # torch's fused Adam takes the scale of gradients in float32 only
            state = trained(beginning(case, dtype), dtype, n_steps)
            found |= {f"{case}/{dtype}/{name}": value.contiguous() for name, value in state.items()}
    return found


@pytest.fixture(scope="module")
def alone():
    return all_cases()


@pytest.mark.dist
@pytest.mark.parametrize(
    ("n_processes", "latent_shards"),
    [(2, 1), (2, 2), *(pytest.param(4, n, marks=pytest.mark.slow) for n in (1, 2, 4))],
)
def test_several_processes_end_with_the_state_of_one(n_processes, latent_shards, tmp_path, alone, ranks):
    code, output = ranks(n_processes, __file__, tmp_path, latent_shards).communicate(timeout=180)
    assert code == 0, output
    ends = [load_file(tmp_path / f"{rank}.safetensors") for rank in range(n_processes)]
    for name, expected in alone.items():
        for rank, end in enumerate(ends):
            same = ends[0 if name.endswith("b_dec") else rank % latent_shards]  # has the same latents
            if "/own/" in name:
                assert torch.equal(end[name], same[name]), f"{name} differs between processes"
        if "/own/" not in name or "stats." in name:
            near = 1e-9 if "float64" in name else 1e-5
            assert_close(
                ends[0][name], expected, rtol=near, atol=near, msg=lambda text, name=name: f"{name}: {text}"
            )


def test_the_cases_of_relu_end_within_the_refit_phase():
    """So that processes are compared there: of 20 steps, the last 4 learn magnitudes."""
    found = trained(beginning("relu", torch.float64), torch.float64, N_STEPS)
    assert (found["whole/kind.log_magnitude"] != 0).any()


def test_the_parts_of_a_batch_are_the_batch():
    class Source:
        def gather(self, rows, dtype, out=None):
            return rows[:, None].to(dtype)

    def buffer(part):
        order = RowOrder(torch.arange(1000), batch_size_rows=30, buffer_rows=200, seed=0)
        return RowBuffer(Source(), order, d_model=1, dtype=torch.float32, part=part)

    for step in (0, 5, 6, 32, 33, 40):
        parts = [buffer((r, 3)).batch(step) for r in range(3)]
        assert [len(part) for part in parts] == [10, 10, 10]
        assert torch.equal(torch.cat(parts), buffer((0, 1)).batch(step))


# the real thing

OPTIONS = {
    "k": 4,
    "d_sae": 64,
    "lr": 1e-3,
    "batch_size_rows": 256,
    "buffer_rows": 2048,
    "device": "cpu",
    "progress": False,
}


@pytest.fixture(scope="module")
def store(tmp_path_factory, planted):
    return sl.ActivationStore.from_arrays(
        tmp_path_factory.mktemp("rows") / "store", planted.acts, rows_per_shard=3000
    )


def command(store, output, n_steps, **fields):
    flags = [
        "-m",
        "saelens_lite.train",
        "--store",
        str(store.path),
        "--output",
        str(output),
        f"--n-steps={n_steps}",
    ]
    for name, value in (OPTIONS | fields).items():
        flags.append(f"--{name.replace('_', '-')}={value}" if name != "progress" else "--no-progress")
    return flags


def lines(output):
    file = output / "metrics.jsonl"
    return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []


@pytest.mark.dist
def test_torchrun_trains_the_sae_of_one_process(store, tmp_path, torchrun):
    assert_trains_the_sae_of_one_process(store, tmp_path, torchrun, "topk", latent_shards=1)


@pytest.mark.dist
def test_latents_divided_among_processes_train_to_the_sae_of_one(store, tmp_path, ranks):
    assert_trains_the_sae_of_one_process(store, tmp_path, ranks, "batchtopk", latent_shards=2)


def assert_trains_the_sae_of_one_process(store, tmp_path, ranks, kind, latent_shards):
    processes = ranks(2, *command(store, tmp_path / "two", 40, kind=kind, latent_shards=latent_shards))
    one = sl.train_sae(store, output=str(tmp_path / "one"), kind=kind, n_steps=40, **OPTIONS)
    code, output = processes.communicate(timeout=180)
    assert code == 0, output
    assert output.count(f"{tmp_path / 'two'}: {one.kind} SAE of 64 latents") == 1
    two = sl.SparseAutoencoder.load(tmp_path / "two")
    for name, parameter in one.named_parameters():
        assert_close(two.get_parameter(name), parameter, rtol=1e-4, atol=1e-4)
    clocks = {"tokens_per_s"}
    for ours, theirs in zip(lines(tmp_path / "two"), lines(tmp_path / "one"), strict=True):
        assert ours.keys() == theirs.keys()
        for name in ours.keys() - clocks:
            expected = (
                theirs[name] if isinstance(theirs[name], str) else pytest.approx(theirs[name], rel=1e-3)
            )
            assert ours[name] == expected, name
    assert not (tmp_path / "two" / "state").exists()


@pytest.mark.dist
@pytest.mark.parametrize("latent_shards", [1, 2])
def test_processes_stopped_leave_the_sae_and_one_goes_on_with_it(
    store, tmp_path, caplog, latent_shards, ranks
):
    processes = ranks(
        2, *command(store, tmp_path, 600, latent_shards=latent_shards, log_every_steps=5, eval_rows=256)
    )
    while not lines(tmp_path) and processes.poll() is None:
        time.sleep(0.01)
    processes.send_signal(signal.SIGTERM)
    _, output = processes.communicate(timeout=120)
    facts = sl.SparseAutoencoder.load(tmp_path).config.metadata["saelens_lite"]
    assert 0 < facts["steps"] < 600, output
    assert f"stopped at step {facts['steps']} of 600" in output
    with caplog.at_level("INFO", logger="saelens_lite.train"):
        sl.train_sae(store, output=str(tmp_path), n_steps=600, log_every_steps=5, eval_rows=256, **OPTIONS)
    assert f"at step {facts['steps']}" in caplog.text
    assert "processes 2 → 1" in caplog.text and ("latent_shards 2 → 1" in caplog.text) == (latent_shards == 2)
    steps = [line["step"] for line in lines(tmp_path)]
    assert steps == sorted(steps) and steps[-1] == 600


def test_a_batch_that_the_processes_cannot_share_equally_is_refused(store, tmp_path, monkeypatch):
    monkeypatch.setattr(distributed, "world_size", lambda axis=None: 3)
    with pytest.raises(
        ValueError, match="batch_size_rows expected a multiple of 3, the processes.*, got 256: choose 258"
    ):
        sl.train_sae(store, output=str(tmp_path), n_steps=4, **OPTIONS)


if __name__ == "__main__":
    torch.set_num_threads(1)
    with distributed.joined(torch.device("cpu"), int(sys.argv[2])):
        save_file(all_cases(), Path(sys.argv[1]) / f"{distributed.rank()}.safetensors")
