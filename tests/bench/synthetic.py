"""What SAEs recover of planted features, our presets and SAELens' Matryoshka, on the same rows; a JSON line
per run.

    python tests/bench/synthetic.py                      # everything still missing
    python tests/bench/synthetic.py --contestants saelens-matryoshka --lrs 1e-3 3e-3 --lr-samples 1000000
    python tests/bench/synthetic.py --report             # table and verdicts of the finished runs

Resumable: a finished run is never repeated. Setting: 4,096 features in 256 dimensions, 66 % of them in 32
trees of 3 levels below the root with siblings that exclude each other, Zipf rates, 20 features on a row;
1,024 latents, one pass over 5 M rows (kept in bf16; 5 % more are held out from both sides). k is what the
1,024 most frequent features have on a row: a larger one would make latents fire for features that the width
has no room for. The setting fixes k, width, batch and length, the preset all else; a frozen-decoder run goes
with every run of ours. SAELens warms up over 5 % of the steps, decays over the last third, and its prefixes
are those of our preset or, as another contestant, 1/16, 1/8, 1/4, 1/2 and all of the width. The learning rate
of a contestant is the one with the best F1 on the first seed after --lr-samples rows, measured on rows apart
from those scored. SAEs are scored as saved and reloaded. Not a test: it takes hours on a CPU. SAELens runs in
    the peers' venv (`make peers`) by synthetic_saelens.py.
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
from saelens_lite.train.presets import PRESETS

ROOT = Path(__file__).resolve().parents[2]
HELD_OUT_FRACTION = 0.05
SELECTION_ROW = 2**41
"""Where the rows begin by which a learning rate is chosen."""
CONTESTANTS: dict[str, dict[str, Any]] = {
    "ours-matryoshka": {"preset": "matryoshka"},
    "ours-default": {"preset": "default"},
    "saelens-matryoshka": {"fractions": PRESETS["matryoshka"]["matryoshka_fractions"]},
    "saelens-matryoshka-doubling": {"fractions": (1 / 16, 1 / 8, 1 / 4, 1 / 2, 1.0)},
}
SETTINGS = (
    "samples",
    "batch",
    "score_rows",
    "d_model",
    "n_features",
    "n_trees",
    "l0",
    "d_sae",
    "k",
    "data_seed",
)
"""What all runs of a folder have in common."""
COLUMNS = (
    "mcc",
    "f1",
    "feature_f1",
    "recovered",
    "dead",
    "l0",
    "fvu",
    "norm_ratio",
    "absorption",
    "missed_alone",
)


class Bench:
    """The rows, the finished runs, and what makes a missing one."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.args = args
        self.synthetic = sl.synthetic.SyntheticActivations(
            sl.synthetic.SyntheticConfig(
                d_model=args.d_model,
                n_features=args.n_features,
                l0=args.l0,
                n_trees=args.n_trees,
                seed=args.data_seed,
            )
        )
        self.steps = args.samples // args.batch
        self.lr_steps = (args.lr_samples or args.samples) // args.batch
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
            whole = (
                self.results.read_text().rpartition("\n")[0].splitlines()
            )  # a killed run may leave half a line
            self.lines = {line["run"]: line for line in map(json.loads, whole)}
            self.results.write_text("".join(f"{line}\n" for line in whole))

    def store(self) -> sl.ActivationStore:
        """The training rows, made once."""
        path = self.args.output / "store"
        if not (path / "manifest.json").exists():
            started_s = time.perf_counter()
            n_rows = round(
                self.args.samples / (1 - HELD_OUT_FRACTION) * 1.02
            )  # held out by documents, so not exactly 5 %
            self.synthetic.to_store(path, n_rows, dtype="bfloat16")
            print(json.dumps({"store_rows": n_rows, "store_s": time.perf_counter() - started_s}), flush=True)
        return sl.ActivationStore(path)

    def train_ours(
        self, folder: Path, lr: float | None, seed: int, steps: int, frozen: bool, preset: str
    ) -> dict[str, Any]:
        started_s = time.perf_counter()
        sl.train_sae(
            self.store(), preset=preset, k=self.k, d_sae=self.args.d_sae, seed=seed, freeze_decoder=frozen,
            n_steps=steps,
            batch_size_rows=self.args.batch, held_out_fraction=HELD_OUT_FRACTION, eval_every_steps=steps,
            device="cpu", progress=False, output=str(folder), overwrite=True,
            **({} if lr is None else {"lr": lr}),
        )  # fmt: skip
        versions = {"saelens_lite": sl.__version__, "torch": torch.__version__}
        return {"train_s": time.perf_counter() - started_s, "versions": versions}

    def train_saelens(
        self, folder: Path, lr: float, seed: int, steps: int, frozen: bool, fractions: tuple[float, ...]
    ) -> dict[str, Any]:
        assert not frozen
        options = {
            "store": self.store().path, "output": folder, "kind": "matryoshka", "lr": lr, "seed": seed,
            "steps": steps,
            "batch": self.args.batch, "k": self.k, "warm-up-steps": steps // 20,
            "held-out-fraction": HELD_OUT_FRACTION, "threads": self.args.threads,
        }  # fmt: skip
        command = [str(self.args.peers_python), str(Path(__file__).with_name("synthetic_saelens.py"))]
        command += [word for name, value in options.items() for word in (f"--{name}", str(value))]
        command += ["--widths", *(str(round(fraction * self.args.d_sae)) for fraction in fractions)]
        environment = os.environ | {"PYTHONPATH": str(ROOT), "TQDM_DISABLE": "1"}  # they read our store
        output = subprocess.run(
            command, check=True, stdout=subprocess.PIPE, text=True, env=environment
        ).stdout
        return json.loads(output.splitlines()[-1])

    def run(
        self, contestant: str, lr: float | None, seed: int, steps: int, frozen: bool = False
    ) -> dict[str, Any]:
        """The line of this run: the one on file, or a new one after training it. lr None: the preset's
        own."""
        rate = "own" if lr is None else f"{lr:g}"
        name = f"{contestant}{'-frozen' if frozen else ''}-lr_{rate}-seed_{seed}-steps_{steps}"
        if name not in self.lines:
            folder = self.args.output / "saes" / name
            train = self.train_ours if contestant.startswith("ours") else self.train_saelens
            facts = train(folder, lr, seed, steps, frozen, **CONTESTANTS[contestant])
            sae = sl.SparseAutoencoder.load(folder)
            n_rows = self.args.score_rows
            found = sl.ground_truth.evaluate_recovery(sae, self.synthetic, n_rows=n_rows).to_dict()
            selection = (
                sl.ground_truth.evaluate_recovery(
                    sae, self.synthetic, n_rows=n_rows // 2, start_row=SELECTION_ROW
                )
                .rows[0]
                .f1
            )
            line = {
                "run": name,
                "contestant": contestant,
                "lr": rate,
                "seed": seed,
                "frozen": frozen,
                "steps": steps,
            }
            line |= {
                "peak_lr": lr or sae.config.metadata["saelens_lite"]["lr"],
                "batch_size_rows": self.args.batch,
            }
            line |= {"k": self.k, "selection_f1": selection}
            line |= {key: value for key, value in found["rows"][0].items() if key != "name"}
            line |= {key: found[key] for key in ("n_rows", "n_features", "n_edges", "true_l0")} | facts
            self.lines[name] = line
            with self.results.open("a") as file:
                file.write(json.dumps(line) + "\n")
            print(json.dumps(line), flush=True)
        return self.lines[name]

    def run_contestant(self, contestant: str) -> None:
        """Every learning rate on the first seed, all seeds at the best of them, and frozen decoders beside
        ours."""
        ours = contestant.startswith("ours")
        rates: list[float | None] = [rate for rate in self.args.lrs if rate is not None or ours]
        if len(rates) > 1:
            lines = {rate: self.run(contestant, rate, self.args.seeds[0], self.lr_steps) for rate in rates}
            rates = [max(rates, key=lambda rate: lines[rate]["selection_f1"])]
        for seed in self.args.seeds:
            for frozen in (False, True)[: 1 + (ours and self.args.frozen)]:
                self.run(contestant, rates[0], seed, self.steps, frozen)

    def report(self) -> str:
        """Means over seeds at each contestant's best learning rate, all rates on one seed, then the
        verdicts."""
        groups: dict[tuple[str, bool, int], dict[str, list[dict[str, Any]]]] = {}
        for line in self.lines.values():
            rates = groups.setdefault((line["contestant"], line["frozen"], line["steps"]), {})
            rates.setdefault(line["lr"], []).append(line)
        width = max(len(name) for name in CONTESTANTS) + 9
        text = [
            f"{self.steps:,} steps".ljust(width)
            + "".join(x.rjust(13) for x in (*COLUMNS, "lr", "seeds", "train s"))
        ]
        best: dict[tuple[str, bool], list[dict[str, Any]]] = {}
        for (contestant, frozen, steps), rates in groups.items():
            if steps != self.steps:
                continue
            chosen = max(
                rates.values(), key=lambda lines: (len(lines), max(line["selection_f1"] for line in lines))
            )
            best[contestant, frozen] = chosen
            values = [[line[name] for line in chosen if line[name] is not None] for name in COLUMNS]
            cells = [f"{statistics.mean(given):.4f}" if given else "n/a" for given in values]
            cells += [
                f"{chosen[0]['peak_lr']:.2g}",
                str(len(chosen)),
                f"{statistics.mean(x['train_s'] for x in chosen):.0f}",
            ]
            text.append(
                f"{contestant}{' frozen' if frozen else ''}".ljust(width)
                + "".join(x.rjust(13) for x in cells)
            )
        text.append("selection F1 / MCC on the first seed, by learning rate:")
        for (contestant, frozen, steps), rates in groups.items():
            firsts = [min(lines, key=lambda line: line["seed"]) for lines in rates.values()]
            cells = [f"{x['peak_lr']:.2g}: {x['selection_f1']:.4f} / {x['mcc']:.4f}" for x in firsts]
            text.append(
                f"{contestant}{' frozen' if frozen else ''}, {steps:,} steps".ljust(width + 14)
                + "   ".join(cells)
            )
        mine = best.get(("ours-matryoshka", False))
        peers = [lines for (contestant, _), lines in best.items() if contestant.startswith("saelens")]
        if mine and peers:
            theirs = max(peers, key=lambda lines: (len(lines), max(line["selection_f1"] for line in lines)))
            for name in ("f1", "mcc"):
                ours, saelens = [line[name] for line in mine], [line[name] for line in theirs]
                goal = statistics.mean(saelens) - (max(saelens) - min(saelens))
                text.append(f"{name}: ours {statistics.mean(ours):.4f} ({min(ours):.4f} – {max(ours):.4f}), "
                            "SAELens "
                            f"{statistics.mean(saelens):.4f} ({min(saelens):.4f} – {max(saelens):.4f}), "
                            "less its spread "
                            f"{goal:.4f}, {len(ours)} and {len(saelens)} seeds: "
                            f"{'reached' if statistics.mean(ours) >= goal else 'missed'}")  # fmt: skip
        for (contestant, frozen), lines in best.items():
            if frozen and (contestant, False) in best:
                share = max(x["f1"] for x in lines) / min(x["f1"] for x in best[contestant, False])
                verdict = "reached" if share <= 0.5 else "missed"
                text.append(
                    f"{contestant}: the frozen decoder has {share:.2f} of the trained one's F1 at worst: "
                    f"{verdict}"
                )
        return "\n".join(text)


def learning_rate(text: str) -> float | None:
    """A number, or None for "own", the preset's."""
    return None if text == "own" else float(text)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--report", action="store_true", help="run nothing; table and verdicts of the finished runs"
    )
    parser.add_argument(
        "--output", type=Path, default=ROOT / "runs/synthetic", help="store, saved SAEs, results"
    )
    parser.add_argument("--contestants", nargs="+", choices=list(CONTESTANTS), default=list(CONTESTANTS))
    parser.add_argument(
        "--lrs", type=learning_rate, nargs="+", default=[None, 1e-3, 3e-3, 1e-2], help="own: the preset's"
    )
    parser.add_argument(
        "--lr-samples", type=int, help="rows of the runs that choose the rate; default: --samples"
    )
    parser.add_argument(
        "--no-frozen", dest="frozen", action="store_false", help="no frozen-decoder runs beside ours"
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--samples", type=int, default=5_000_000, help="training rows, each seen once")
    parser.add_argument("--batch", type=int, default=1024, help="rows a step")
    parser.add_argument("--score-rows", type=int, default=100_000)
    parser.add_argument("--d-model", type=int, default=256)
    parser.add_argument("--n-features", type=int, default=4096)
    parser.add_argument("--n-trees", type=int, default=32)
    parser.add_argument("--l0", type=float, default=20.0)
    parser.add_argument("--d-sae", type=int, default=1024)
    parser.add_argument(
        "--k", type=int, help="default: how many of the d_sae most frequent features are on a row"
    )
    parser.add_argument("--data-seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--peers-python", type=Path, default=ROOT / ".venv-peers/bin/python")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    args.output.mkdir(parents=True, exist_ok=True)
    bench = Bench(args)
    if not args.report:
        for contestant in args.contestants:
            bench.run_contestant(contestant)
    print(bench.report())


if __name__ == "__main__":
    main()
