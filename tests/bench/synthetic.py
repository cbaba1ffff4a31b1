"""What SAEs recover of planted features, ours and SAELens', trained on the same rows; a JSON line per run.

    python tests/bench/synthetic.py                      # everything still missing
    python tests/bench/synthetic.py --samples 200000 --lrs 1e-3 --seeds 0 --contestants ours    # try it small
    python tests/bench/synthetic.py --report             # table and verdicts of the finished runs

Resumable: a finished run is never repeated. Setting: 4,096 features in 256 dimensions, 66 % of them in 32 trees of 3 levels
below the root with siblings that exclude each other, Zipf rates, 20 features on a row; 1,024 latents, one pass over 5 M rows
(kept in bf16; 5 % more are held out from both sides). k is what the 1,024 most frequent features have on a row: a larger one
would make latents fire for features that the width has no room for. Both sides warm up over 5 % of the steps, decay over the
last third, and nest prefixes of 1/16, 1/8, 1/4, 1/2 and all of the width. The learning rate of a kind is the one with the
best F1 on the first seed, measured on rows apart from those scored; a frozen-decoder run goes with every run of ours at that
rate. SAEs are scored as saved and reloaded. Not a test: it takes hours on a CPU. SAELens runs in the peers' venv
(`make peers`) by synthetic_saelens.py.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import time
from pathlib import Path
from typing import Any

import torch

import saelens_lite as sl

ROOT = Path(__file__).resolve().parents[2]
HELD_OUT_FRACTION = 0.05
FRACTIONS = (1 / 16, 1 / 8, 1 / 4, 1 / 2, 1.0)
SELECTION_ROW = 2**41
"""Where the rows begin by which a learning rate is chosen."""
KINDS = {"ours": ("topk", "batchtopk", "matryoshka"), "saelens": ("matryoshka",)}
SETTINGS = ("samples", "batch", "score_rows", "d_model", "n_features", "n_trees", "l0", "d_sae", "k", "data_seed")
"""What all runs of a folder have in common."""
COLUMNS = ("mcc", "f1", "feature_f1", "recovered", "dead", "l0", "fvu", "norm_ratio", "absorption", "missed_alone")


class Bench:
    """The rows, the finished runs, and what makes a missing one."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.args = args
        self.synthetic = sl.SyntheticActivations(
            sl.SyntheticConfig(
                d_model=args.d_model, n_features=args.n_features, l0=args.l0, n_trees=args.n_trees, seed=args.data_seed
            )
        )
        self.steps = args.samples // args.batch
        self.warm_up_steps = self.steps // 20
        within_reach = self.synthetic.rates.sort(descending=True).values[: args.d_sae]
        self.k = args.k or round(float(within_reach.sum()))
        settings = {name: getattr(args, name) for name in SETTINGS}
        recorded = args.output / "settings.json"
        if recorded.exists() and json.loads(recorded.read_text()) != settings:
            raise SystemExit(f"{recorded} states other settings than {settings}: choose another --output")
        recorded.write_text(json.dumps(settings))
        self.results = args.output / "results.jsonl"
        self.lines: dict[str, dict[str, Any]] = {}
        if self.results.exists():
            whole = self.results.read_text().rpartition("\n")[0].splitlines()  # a killed run may leave half a line
            self.lines = {line["run"]: line for line in map(json.loads, whole)}
            self.results.write_text("".join(f"{line}\n" for line in whole))

    def store(self) -> sl.ActivationStore:
        """The training rows, made once."""
        path = self.args.output / "store"
        if not (path / "manifest.json").exists():
            started_s = time.perf_counter()
            n_rows = round(self.args.samples / (1 - HELD_OUT_FRACTION) * 1.02)  # held out by documents, so not exactly 5 %
            self.synthetic.to_store(path, n_rows, dtype="bfloat16")
            print(json.dumps({"store_rows": n_rows, "store_s": time.perf_counter() - started_s}), flush=True)
        return sl.ActivationStore(path)

    def train_ours(self, folder: Path, kind: str, lr: float, seed: int, frozen: bool) -> dict[str, Any]:
        started_s = time.perf_counter()
        sl.train_sae(
            self.store(), kind=kind, k=self.k, d_sae=self.args.d_sae, lr=lr, seed=seed, freeze_decoder=frozen,
            n_steps=self.steps, batch_size_rows=self.args.batch, warm_up_steps=self.warm_up_steps, decay_fraction=1 / 3,
            held_out_fraction=HELD_OUT_FRACTION, eval_every_steps=self.steps, device="cpu", progress=False,
            output=str(folder), overwrite=True,
        )  # fmt: skip
        versions = {"saelens_lite": sl.__version__, "torch": torch.__version__}
        return {"train_s": time.perf_counter() - started_s, "versions": versions}

    def train_saelens(self, folder: Path, kind: str, lr: float, seed: int, frozen: bool) -> dict[str, Any]:
        assert not frozen
        options = {
            "store": self.store().path, "output": folder, "kind": kind, "lr": lr, "seed": seed, "steps": self.steps,
            "batch": self.args.batch, "k": self.k, "warm-up-steps": self.warm_up_steps,
            "held-out-fraction": HELD_OUT_FRACTION, "threads": self.args.threads,
        }  # fmt: skip
        command = [str(self.args.peers_python), str(Path(__file__).with_name("synthetic_saelens.py"))]
        command += [word for name, value in options.items() for word in (f"--{name}", str(value))]
        command += ["--widths", *(str(round(fraction * self.args.d_sae)) for fraction in FRACTIONS)]
        environment = os.environ | {"PYTHONPATH": str(ROOT), "TQDM_DISABLE": "1"}  # they read our store
        output = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env=environment).stdout
        return json.loads(output.splitlines()[-1])

    def run(self, contestant: str, kind: str, lr: float, seed: int, frozen: bool = False) -> dict[str, Any]:
        """The line of this run: the one on file, or a new one after training it."""
        name = f"{contestant}-{kind}{'-frozen' if frozen else ''}-lr_{lr:g}-seed_{seed}-steps_{self.steps}"
        if name not in self.lines:
            folder = self.args.output / "saes" / name
            facts = getattr(self, f"train_{contestant}")(folder, kind, lr, seed, frozen)
            sae = sl.SparseAutoencoder.load(folder)
            n_rows = self.args.score_rows
            found = sl.score_recovery(sae, self.synthetic, n_rows=n_rows).to_dict()
            selection = sl.score_recovery(sae, self.synthetic, n_rows=n_rows // 2, start_row=SELECTION_ROW).rows[0].f1
            line = {"run": name, "contestant": contestant, "kind": kind, "lr": lr, "seed": seed, "frozen": frozen}
            line |= {"steps": self.steps, "batch_size_rows": self.args.batch, "k": self.k, "selection_f1": selection}
            line |= {key: value for key, value in found["rows"][0].items() if key != "name"}
            line |= {key: found[key] for key in ("n_rows", "n_features", "n_edges", "true_l0")} | facts
            self.lines[name] = line
            with self.results.open("a") as file:
                file.write(json.dumps(line) + "\n")
            print(json.dumps(line), flush=True)
        return self.lines[name]

    def run_kind(self, contestant: str, kind: str) -> None:
        """Every learning rate on the first seed, the other seeds at the best of them, and frozen decoders beside ours."""
        first, *others = self.args.seeds
        lines = [self.run(contestant, kind, lr, first) for lr in self.args.lrs]
        lr = max(lines, key=lambda line: line["selection_f1"])["lr"]
        for seed in others:
            self.run(contestant, kind, lr, seed)
        for seed in self.args.seeds if contestant == "ours" else ():
            self.run(contestant, kind, lr, seed, frozen=True)

    def report(self) -> str:
        """Means over seeds at each kind's best learning rate, then the verdicts."""
        groups: dict[tuple[str, str, bool], list[dict[str, Any]]] = {}
        for line in self.lines.values():
            groups.setdefault((line["contestant"], line["kind"], line["frozen"]), []).append(line)
        text = [f"{'':28}" + "".join(name.rjust(13) for name in (*COLUMNS, "lr", "seeds"))]
        best: dict[tuple[str, str, bool], list[dict[str, Any]]] = {}
        for key, lines in groups.items():
            n_seeds = {lr: sum(line["lr"] == lr for line in lines) for lr in {line["lr"] for line in lines}}
            lr = max(n_seeds, key=lambda lr: (n_seeds[lr], max(x["selection_f1"] for x in lines if x["lr"] == lr)))
            chosen = best[key] = [line for line in lines if line["lr"] == lr]
            values = [[line[name] for line in chosen if line[name] is not None] for name in COLUMNS]
            cells = [f"{statistics.mean(given):.4f}" if given else "n/a" for given in values] + [f"{lr:g}", str(len(chosen))]
            name = f"{key[0]} {key[1]}{' frozen' if key[2] else ''}"
            text.append(name.ljust(28) + "".join(cell.rjust(13) for cell in cells))
        mine, theirs = best.get(("ours", "matryoshka", False)), best.get(("saelens", "matryoshka", False))
        for name in ("f1", "mcc") if mine and theirs else ():
            ours, saelens = [line[name] for line in mine], [line[name] for line in theirs]
            goal = statistics.mean(saelens) - (max(saelens) - min(saelens))
            text.append(f"{name}: ours {statistics.mean(ours):.4f}, SAELens' mean less its spread over seeds {goal:.4f}: "
                        f"{'reached' if statistics.mean(ours) >= goal else 'missed'}")  # fmt: skip
        for (contestant, kind, frozen), lines in best.items():
            if frozen:
                share = max(x["f1"] for x in lines) / min(x["f1"] for x in best[contestant, kind, False])
                text.append(f"{kind}: the frozen decoder has {share:.2f} of the trained one's F1 at worst")
        return "\n".join(text)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--report", action="store_true", help="run nothing; table and verdicts of the finished runs")
    parser.add_argument("--output", type=Path, default=ROOT / "runs/synthetic", help="store, saved SAEs, results")
    parser.add_argument("--contestants", nargs="+", choices=list(KINDS), default=list(KINDS))
    parser.add_argument("--kinds", nargs="+", help="default: all of each contestant")
    parser.add_argument("--lrs", type=float, nargs="+", default=[3e-4, 1e-3, 3e-3])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--samples", type=int, default=5_000_000, help="training rows, each seen once")
    parser.add_argument("--batch", type=int, default=1024, help="rows a step")
    parser.add_argument("--score-rows", type=int, default=100_000)
    parser.add_argument("--d-model", type=int, default=256)
    parser.add_argument("--n-features", type=int, default=4096)
    parser.add_argument("--n-trees", type=int, default=32)
    parser.add_argument("--l0", type=float, default=20.0)
    parser.add_argument("--d-sae", type=int, default=1024)
    parser.add_argument("--k", type=int, help="default: how many of the d_sae most frequent features are on a row")
    parser.add_argument("--data-seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--peers-python", type=Path, default=ROOT / ".venv-peers/bin/python")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    args.output.mkdir(parents=True, exist_ok=True)
    bench = Bench(args)
    if not args.report:
        for contestant in args.contestants:
            for kind in args.kinds or KINDS[contestant]:
                bench.run_kind(contestant, kind)
    print(bench.report())


if __name__ == "__main__":
    main()
