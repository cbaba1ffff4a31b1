"""What pruned codes are worth: planted features, a language model's rows, the cost of an encode.

    .venv/bin/python tests/bench/pruned.py planted   # F1 unpruned, by one value threshold, pruned; 3 seeds
    .venv/bin/python tests/bench/pruned.py model     # ΔCE at 3/4 of k against training there; 3 seeds
    .venv/bin/python tests/bench/pruned.py encode    # encode with pruning against encode, in pairs

planted: 4,096 features in 256 dimensions, 32 trees, 20 on a row; 1,024 latents. tau and, for the rival, one
threshold on values are chosen on 20,000 rows, each for the best F1; the threshold at the l0 of the pruned
codes stands beside them. All are scored on 100,000 rows that neither training nor choice has seen.
model: block 3 of stories3m-llama, tau by `choose_tau` on held-out documents, ΔCE on other texts. A finished
run is never repeated. Not a test: planted takes about an hour on two cores.
"""

from __future__ import annotations

import argparse
import copy
import itertools
import json
import statistics
import time
from typing import Any

import torch
from l1 import WORLDS, Bench, Run, bench_parser
from torch import Tensor

import saelens_lite as sl
from saelens_lite.analyze.latents.pruned_codes import choose_tau
from saelens_lite.sae.latents import SparseLatents
from saelens_lite.sae.pruning import leave_one_out

CHOICE_ROW = 2**41
"""Where the rows begin on which tau and the threshold are chosen; scores use rows from 2**40 on."""
CONTESTANTS: dict[str, dict[str, Any]] = {
    "matryoshka-13": {"preset": "matryoshka", "k": 13},
    "topk-20": {"kind": "topk", "k": 20},
}
SHARES = (0.4, 0.45, 0.5, 0.55, 0.6, 0.65, 0.7, 0.8, 0.9)
"""Of the firing pairs, kept by a candidate."""


class Thresholded(sl.SparseAutoencoder):
    """A view of an SAE that keeps values above one threshold: the rival of `pruned`."""

    least: float

    def encode_normalized(self, normalized: Tensor) -> SparseLatents:
        latents = super().encode_normalized(normalized)
        return latents.with_values(latents.values * (latents.values > self.least))


def thresholded(sae: sl.SparseAutoencoder, least: float) -> Thresholded:
    view = copy.copy(sae)
    view.__class__ = Thresholded
    view.least = least
    return view


@torch.no_grad()
def pair_scores(sae: sl.SparseAutoencoder, acts: Tensor) -> tuple[Tensor, Tensor]:
    """Leave-one-out score and value of each firing pair: float[n firing] each, descending."""
    normalized = sae.normalize(acts)[0]
    latents = sae.encode_normalized(normalized)
    fires = latents.values > 0
    scores = leave_one_out(normalized, latents, sae.W_dec, sae.b_dec)[fires]
    return tuple(part.sort(descending=True).values for part in (scores, latents.values[fires]))


def planted(bench: Bench, args: argparse.Namespace) -> None:
    world = sl.synthetic.SyntheticActivations(
        sl.synthetic.SyntheticConfig(d_model=256, n_features=4096, l0=20, n_trees=32)
    )
    store = bench.output / "data/planted-4M"
    if not (store / "manifest.json").exists():
        world.to_store(store, round(args.rows / 0.95 * 1.02), dtype="bfloat16")
    choice = torch.cat([acts for acts, _ in world.chunks(CHOICE_ROW, 20_000)])

    def scored(sae: sl.SparseAutoencoder, start: int, n_rows: int) -> dict[str, float]:
        row = sl.ground_truth.evaluate_recovery(sae, world, n_rows=n_rows, start_row=start).rows[0]
        return {name: getattr(row, name) for name in ("f1", "precision", "recall", "l0", "fvu")}

    for seed, name in itertools.product(args.seeds, CONTESTANTS):
        run = f"planted-{name}-rows={args.rows}-seed={seed}"
        if run in bench.lines:
            continue
        steps, folder = args.rows // 1024, bench.output / "saes" / run
        began_s = time.process_time()
        options = {"d_sae": 1024, "batch_size_rows": 1024, "n_steps": steps, "eval_every_steps": steps}
        options |= {"seed": seed, "device": "cpu", "progress": False, "overwrite": True}
        sl.train_sae(str(store), output=str(folder), **CONTESTANTS[name], **options)
        line: dict[str, Any] = {"run": run, "contestant": name, "seed": seed}
        line["train_cpu_s"] = round(time.process_time() - began_s, 1)
        sae = sl.SparseAutoencoder.load(folder)
        scores, values = pair_scores(sae, choice)
        kept = [min(round(share * len(scores)), len(scores) - 1) for share in SHARES]
        views = {
            "pruned": [sae.pruned(float(scores[n])) for n in kept],
            "threshold": [thresholded(sae, float(values[n])) for n in kept],
        }
        line["unpruned"] = scored(sae, 2**40, 100_000)
        best: dict[str, int] = {}
        for which, candidates in views.items():
            f1 = [scored(view, CHOICE_ROW, 20_000)["f1"] for view in candidates]
            best[which] = max(range(len(f1)), key=f1.__getitem__)
            line[which] = {"share": SHARES[best[which]], **scored(candidates[best[which]], 2**40, 100_000)}
        equal = views["threshold"][best["pruned"]]  # as many pairs kept on the rows of the choice
        line["threshold at that l0"] = scored(equal, 2**40, 100_000)
        bench.add(line)


def model(bench: Bench, args: argparse.Namespace) -> None:
    world = "3m-3"
    for seed, (k, fewer) in itertools.product(args.seeds, ((32, 24), (64, 48))):
        run = f"model-{world}-{k}-{fewer}-seed={seed}"
        if run in bench.lines:
            continue
        line: dict[str, Any] = {"run": run, "seed": seed, "k": k, "fewer": fewer}
        folders = {}
        for n in (k, fewer):
            one = Run(world=world, side="ours", kind="topk", steps=1000, seed=seed, fields=(("k", n),))
            line[f"trained at {n}"] = bench.do(one, ce=True)
            folders[n] = bench.output / "saes" / one.name
        sae, store = sl.SparseAutoencoder.load(folders[k]), bench.store(world, "train")
        view = sae.pruned(choose_tau(sae, store, l0=fewer, hook_point=WORLDS[world].hook_point).tau)
        pruned_folder = bench.output / "saes" / f"{run}-pruned"
        view.save(pruned_folder, overwrite=True)
        line["pruned"] = bench.scores(pruned_folder, world, ce=True)
        line["ΔCE pruned − trained there"] = (
            line["pruned"]["delta_ce"] - line[f"trained at {fewer}"]["delta_ce"]
        )
        bench.add(line)


@torch.no_grad()
def encode(bench: Bench, args: argparse.Namespace) -> None:
    torch.manual_seed(0)
    W = torch.nn.functional.normalize(torch.randn(8192, 512), dim=1)
    state = {"W_dec": W, "W_enc": W.T.contiguous(), "b_enc": torch.zeros(8192), "b_dec": torch.zeros(512)}
    sae = sl.SparseAutoencoder(sl.SAEConfig(d_model=512, d_sae=8192, kind="topk", k=32))
    sae.load_state_dict(state, strict=False)
    acts, view = torch.randn(4096, 512), sae.pruned(0.1)
    seconds: dict[str, list[float]] = {"encode": [], "pruned": []}
    for i in range(args.rounds + 2):
        order = [("encode", sae), ("pruned", view)]
        for name, one in order if i % 2 else order[::-1]:
            began = time.perf_counter()
            one.encode(acts)
            seconds[name].append(time.perf_counter() - began)
    ratios = sorted(b / a for a, b in zip(seconds["encode"][2:], seconds["pruned"][2:]))
    n, middle = len(ratios), statistics.median(ratios)
    spread = (ratios[round(0.1 * n)], ratios[round(0.9 * n) - 1])
    print(json.dumps({"pairs": n, "ratio": middle, "80 % of pairs": spread}))


def main() -> None:
    parser = bench_parser(__doc__, "pruned")
    parts = {"planted": planted, "model": model, "encode": encode}
    parser.add_argument("part", choices=parts)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--rows", type=int, default=4_000_000, help="training rows of the planted world")
    parser.add_argument("--rounds", type=int, default=40)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    parts[args.part](Bench(args), args)


if __name__ == "__main__":
    main()
