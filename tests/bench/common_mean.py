"""Dead latents and fvu where rows have a large common mean: six kinds and SAELens' topk; a JSON line per run.

    .venv/bin/python tests/bench/common_mean.py            # everything still missing
    .venv/bin/python tests/bench/common_mean.py --report   # dead and fvu by gamma, and the verdicts

Rows: the planted world of synthetic.py (4,096 features in 256 dimensions, 32 trees, 20 on a row) and one
mean, a random direction, of gamma times the root mean squared distance of the rows from their mean
(arXiv:2605.31518). 1,024 latents, 1 M rows a run, the same l0 asked for at every gamma. Dead: silent on all
of 20,000 rows that nobody trained on. SAELens' topk runs at two learning rates, the better fvu counts; it
runs in the peers' venv (`make peers`). Resumes. Not a test: a run takes one to three minutes.
"""

from __future__ import annotations

import argparse
import itertools
import statistics
import subprocess
from pathlib import Path
from typing import Any

import torch
from l1 import Bench, bench_parser, sums_over
from safetensors.torch import load_file, save_file

import saelens_lite as sl

GAMMAS = (0.5, 2.0, 5.0, 15.0)
KINDS: dict[str, dict[str, Any]] = {
    "topk": {"kind": "topk", "k": 20},
    "batchtopk": {"kind": "batchtopk", "k": 20},
    "matryoshka": {"preset": "matryoshka", "k": 20},
    "relu": {"kind": "relu", "target_l0": 20.0},
    "gated": {"kind": "gated", "target_l0": 20.0},
    "jumprelu": {"kind": "jumprelu", "target_l0": 20.0},
}
PEER_LRS = (1e-3, 3e-3)
BATCH = 1024


class Worlds:
    """Training rows and validation rows of each gamma, made once."""

    def __init__(self, output: Path, n_rows: int) -> None:
        config = sl.synthetic.SyntheticConfig(d_model=256, n_features=4096, l0=20, n_trees=32)
        self.world, self.output, self.n_rows = sl.synthetic.SyntheticActivations(config), output, n_rows
        sample = self.rows(2**41, 20_000)
        self.spread = (sample - sample.mean(0)).square().sum(1).mean().sqrt()
        direction = torch.randn(256, generator=torch.Generator().manual_seed(0))
        self.unit = direction / direction.norm()

    def rows(self, start: int, n_rows: int) -> torch.Tensor:
        return torch.cat([acts for acts, _ in self.world.chunks(start, n_rows)])

    def folder(self, gamma: float) -> Path:
        """A folder with `store`, train.safetensors and validation.safetensors."""
        folder = self.output / f"data/gamma={gamma:g}"
        if not (folder / "validation.safetensors").exists():
            mean = gamma * self.spread * self.unit
            train = self.rows(0, self.n_rows) + mean
            if not (folder / "store/manifest.json").exists():
                sl.ActivationStore.from_arrays(folder / "store", {"rows": train.numpy()})
            save_file({"acts": train}, folder / "train.safetensors")
            save_file({"acts": self.rows(2**40, 20_000) + mean}, folder / "validation.safetensors")
        return folder


def scores(folder: Path, data: Path) -> dict[str, float]:
    sae = sl.SparseAutoencoder.load(folder)
    sums, firing = sums_over(sae, [load_file(data / "validation.safetensors")["acts"]])
    return {"fvu": sums.fvu, "l0": firing.l0, "dead": float((firing.counts == 0).double().mean())}


def ours(data: Path, output: Path, name: str, seed: int, steps: int) -> None:
    options = {"d_sae": 1024, "batch_size_rows": BATCH, "n_steps": steps, "eval_every_steps": steps}
    options |= {"seed": seed, "device": "cpu", "progress": False, "overwrite": True, **KINDS[name]}
    sl.train_sae(str(data / "store"), hook_point="rows", output=str(output), **options)


def peer(args: argparse.Namespace, data: Path, output: Path, lr: float, seed: int, steps: int) -> None:
    options = {"data": data, "output": output, "kind": "topk", "k": 20, "lr": lr, "seed": seed}
    options |= {"steps": steps, "batch": BATCH, "d-sae": 1024, "warm-up-steps": steps // 20, "threads": 1}
    words = [word for name, value in options.items() for word in (f"--{name}", str(value))]
    script = str(Path(__file__).with_name("quality_saelens.py"))
    subprocess.run([str(args.peers_python), script, *words], check=True, stdout=subprocess.DEVNULL)


def report(lines: list[dict[str, Any]]) -> None:
    means: dict[tuple[str, float], dict[str, float]] = {}
    for name, gamma in itertools.product([*KINDS, *(f"SAELens topk {lr:g}" for lr in PEER_LRS)], GAMMAS):
        mine = [line for line in lines if (line["name"], line["gamma"]) == (name, gamma)]
        if mine:
            of = {score: statistics.mean(line[score] for line in mine) for score in ("dead", "fvu", "l0")}
            means[name, gamma] = of
            seeds = len({line["seed"] for line in mine})
            print(f"{name} | γ {gamma:g} | dead {of['dead']:.3f} | fvu {of['fvu']:.3f} | l0 {of['l0']:.1f} "
                  f"| {seeds} seeds")  # fmt: skip
    for name in KINDS:
        if (name, GAMMAS[0]) in means and (name, GAMMAS[-1]) in means:
            low, high = means[name, GAMMAS[0]], means[name, GAMMAS[-1]]
            more, ratio = high["dead"] - low["dead"], high["fvu"] / low["fvu"]
            reached = more <= (0.01 if name == "topk" else 0.05) and ratio <= 1.1
            print(f"{name}: dead {more:+.3f}, fvu {ratio:.3f} ×: {'reached' if reached else 'missed'}")


def main() -> None:
    parser = bench_parser(__doc__, "common_mean")
    parser.add_argument("--report", action="store_true", help="run nothing")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--gammas", type=float, nargs="+", default=list(GAMMAS))
    parser.add_argument("--kinds", nargs="*", choices=KINDS, default=list(KINDS))
    parser.add_argument("--peer-lrs", type=float, nargs="*", default=list(PEER_LRS))
    parser.add_argument("--rows", type=int, default=1_000_000)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    bench = Bench(args)
    if args.report:
        report(list(bench.lines.values()))
        return
    worlds, steps = Worlds(args.output, args.rows), args.rows // BATCH
    contestants = [(name, None) for name in args.kinds]
    contestants += [(f"SAELens topk {lr:g}", lr) for lr in args.peer_lrs]
    for seed, gamma, (name, lr) in itertools.product(args.seeds, args.gammas, contestants):
        run = f"{name}-gamma={gamma:g}-rows={args.rows}-seed={seed}"
        if run in bench.lines:
            continue
        data, output = worlds.folder(gamma), args.output / "saes" / run.replace(" ", "-")
        if lr is None:
            ours(data, output, name, seed, steps)
        else:
            peer(args, data, output, lr, seed, steps)
        bench.add({"run": run, "name": name, "gamma": gamma, "seed": seed, **scores(output, data)})


if __name__ == "__main__":
    main()
