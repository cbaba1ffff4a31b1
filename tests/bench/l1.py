"""The L1 kinds at equal l0: learning rates, tables beside SAELens and our other kinds; a JSON line per run.

    .venv/bin/python tests/bench/l1.py rates --steps 300 1000 3000   # lr of relu, or --kinds gated
    .venv/bin/python tests/bench/l1.py rises      # steps over which the weight of the penalty rises
    .venv/bin/python tests/bench/l1.py table      # relu, without refit too, gated, jumprelu, topk, batchtopk
    .venv/bin/python tests/bench/l1.py saelens    # SAELens' standard, three rates, three coefficients
    .venv/bin/python tests/bench/l1.py planted    # planted features, before and after refit_sae
    .venv/bin/python tests/bench/l1.py report     # fvu, ΔCE and dead at l0 5, 10, 20 of the finished runs

Resumable: a finished run is never repeated. A world is a hook point of a small real model: its rows, and
validation rows of TinyStories' validation_v1 on which all are scored, as saved and opened anew by our loader.
Dead: silent on all validation rows. At equal l0: scores are read off at 5, 10 and 20 linearly in log l0
between the runs of one setting. SAELens runs in the peers' venv (`make peers`) by quality_saelens.py. Not a
test: the parts take from minutes to an hour.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import os
import subprocess
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

import saelens_lite as sl
from saelens_lite.lm.store_losses import cross_entropies
from saelens_lite.sae.metrics import FiringSums, ReconstructionSums

ROOT = Path(__file__).resolve().parents[2]
TARGETS = (5.0, 10.0, 20.0)
CE_TOKENS = 20_000


@dataclass(frozen=True, kw_only=True)
class World:
    model: str
    hook_point: str
    d_sae: int
    batch: int
    rows: int = 250_000
    validation_rows: int = 30_000


WORLDS = {
    "3m-3": World(model="stories3m-llama", hook_point="blocks.3.hook_resid_post", d_sae=1536, batch=1024),
    "3m-1": World(model="stories3m-llama", hook_point="blocks.1.hook_resid_post", d_sae=1536, batch=1024),
    "260k-2": World(model="stories260k-llama", hook_point="blocks.2.hook_resid_post", d_sae=512, batch=1024),
}


@dataclass(frozen=True, kw_only=True)
class Run:
    """What tells one run from another. fields: of TrainConfig; of SAELens l1_coeff and lr"""

    world: str
    side: str
    kind: str
    steps: int
    seed: int = 0
    fields: tuple[tuple[str, Any], ...] = ()

    @property
    def name(self) -> str:
        fields = [f"{name}={value:g}" for name, value in self.fields]
        return "-".join(
            [self.world, self.side, self.kind, f"steps={self.steps}", f"seed={self.seed}", *fields]
        )


class Bench:
    """The finished runs of a folder, and what makes a missing one."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.args, self.output, self.results = args, args.output, args.output / "results.jsonl"
        self.lines: dict[str, dict[str, Any]] = {}
        self.output.mkdir(parents=True, exist_ok=True)
        if self.results.exists():  # a killed run may leave half a line
            whole = self.results.read_text().rpartition("\n")[0].splitlines()
            self.lines = {line["run"]: line for line in map(json.loads, whole)}
            self.results.write_text("".join(f"{line}\n" for line in whole))
        self._clean: dict[str, float] = {}

    def do(self, run: Run, ce: bool = False) -> dict[str, Any]:
        """The line of a run: that on file, or a new one."""
        if run.name not in self.lines:
            folder = self.output / "saes" / run.name
            began_s = time.process_time()
            seconds = self._saelens(run, folder) if run.side == "saelens" else self._ours(run, folder)
            line = {
                "run": run.name,
                "world": run.world,
                "side": run.side,
                "kind": run.kind,
                "steps": run.steps,
                "seed": run.seed,
                **dict(run.fields),
                **self.scores(folder, run.world, ce),
                "train_cpu_s": round(seconds or time.process_time() - began_s, 1),
            }
            self.add(line)
        return self.lines[run.name]

    def add(self, line: dict[str, Any]) -> None:
        self.lines[line["run"]] = line
        with self.results.open("a") as file:
            file.write(json.dumps(line) + "\n")
        print(json.dumps(line), flush=True)

    def store(self, world: str, split: str) -> sl.ActivationStore:
        """Rows of a split, harvested once; those of training as plain safetensors too, for the peers."""
        of, folder = WORLDS[world], self.output / "data" / world
        names = {
            "train": ["tinystories/train_v1", "tinystories/train_v2_gpt4", "fairytaleqa/stories"],
            "validation": ["tinystories/validation_v1"],
        }[split]
        store = sl.harvest_activations(
            str(self.args.shared / "models" / of.model),
            [str(self.args.shared / f"corpora/{name}.jsonl.gz") for name in names],
            [of.hook_point],
            folder / split,
            max_tokens=of.rows if split == "train" else of.validation_rows,
        )
        exported = folder / f"{split}.safetensors"
        if not exported.exists():
            acts = torch.cat([store.acts(shard) for shard in range(store.n_shards)])
            # what our training holds out is withheld from the peers too
            kept = ~torch.as_tensor(store.held_out_rows(0.05)) if split == "train" else slice(None)
            save_file({"acts": acts[kept].contiguous()}, exported.with_suffix(".tmp"))
            os.replace(exported.with_suffix(".tmp"), exported)
        return store

    def _ours(self, run: Run, folder: Path) -> None:
        world = WORLDS[run.world]
        sl.train_sae(
            self.store(run.world, "train"),
            kind=run.kind,
            d_sae=world.d_sae,
            batch_size_rows=world.batch,
            n_steps=run.steps,
            seed=run.seed,
            held_out_fraction=0.05,
            eval_every_steps=run.steps,
            checkpoint_every_steps=run.steps,
            device="cpu",
            output=str(folder),
            overwrite=True,
            progress=False,
            **dict(run.fields),
        )

    def _saelens(self, run: Run, folder: Path) -> float:
        world, fields = WORLDS[run.world], dict(run.fields)
        for split in ("train", "validation"):
            self.store(run.world, split)
        options = {
            "data": self.output / "data" / run.world,
            "output": folder,
            "kind": run.kind,
            "lr": fields["lr"],
            "l1": fields["l1_coeff"],
            "seed": run.seed,
            "steps": run.steps,
            "batch": world.batch,
            "d-sae": world.d_sae,
            "warm-up-steps": round(0.05 * run.steps),
            "threads": self.args.threads,
        }
        words = [str(word) for name, value in options.items() for word in (f"--{name}", value)]
        script = str(Path(__file__).with_name("quality_saelens.py"))
        command = [str(self.args.peers_python), script, *words]
        out = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
        return float(json.loads(out.splitlines()[-1])["train_cpu_s"])

    @torch.no_grad()
    def scores(self, folder: Path, world: str, ce: bool) -> dict[str, float]:
        """fvu, l0 and dead share on all validation rows; ΔCE in nats on CE_TOKENS of their tokens."""
        sae, store = sl.SparseAutoencoder.load(folder), self.store(world, "validation")
        sums, firing = sums_over(sae, map(store.acts, range(store.n_shards)))
        found = {
            "fvu": sums.fvu,
            "l0": firing.l0,
            "norm_ratio": sums.norm_ratio,
            "dead": float((firing.counts == 0).double().mean()),
        }
        if ce:
            model, point = self._model(world), WORLDS[world].hook_point
            how: dict[str, Any] = {"sae": {"sae": sae}}
            if world not in self._clean:
                how["clean"] = None
            losses = cross_entropies(model, store, point, how, fraction=None, max_tokens=CE_TOKENS).ce
            self._clean.setdefault(world, losses.get("clean", math.nan))
            found["delta_ce"] = losses["sae"] - self._clean[world]
        return found

    def _model(self, world: str) -> torch.nn.Module:
        from transformers import AutoModelForCausalLM

        return AutoModelForCausalLM.from_pretrained(self.args.shared / "models" / WORLDS[world].model)


@torch.no_grad()
def sums_over(
    sae: sl.SparseAutoencoder, shards: Iterable[torch.Tensor]
) -> tuple[ReconstructionSums, FiringSums]:
    """What an SAE does on rows float[n d_model], some at a time."""
    sums, firing = ReconstructionSums(sae.d_model), FiringSums(sae.d_sae)
    for shard in shards:
        for acts in shard.float().split(2048):
            out = sae(acts)
            sums.update(acts, out.recons)
            firing.update(out.latents)
    return sums, firing


def at_l0(lines: Iterable[dict[str, Any]], l0: float, name: str = "fvu") -> float:
    """A score at an l0, linear in log l0 between the two runs beside it, beyond the ends that of two."""
    points = sorted((math.log(line["l0"]), line[name]) for line in lines)
    if len(points) == 1:
        return points[0][1] if abs(points[0][0] - math.log(l0)) < 0.1 else math.nan
    after = next((i for i, (x, _) in enumerate(points) if x >= math.log(l0)), len(points) - 1)
    (x0, y0), (x1, y1) = points[max(0, after - 1)], points[max(1, after)]
    return y0 + (y1 - y0) * (math.log(l0) - x0) / (x1 - x0)


# ---- parts ---------------------------------------------------------------------------------------


def rates(args: argparse.Namespace) -> Iterator[Run]:
    """Ours at learning rates that are given."""
    of = itertools.product(args.worlds, args.steps, args.kinds or ["relu"], args.targets, args.lrs)
    for world, steps, kind, target, lr in of:
        fields = (("target_l0", target), ("lr", lr))
        yield Run(world=world, side="ours", kind=kind, steps=steps, fields=fields)


def rises(args: argparse.Namespace) -> Iterator[Run]:
    """relu where the weight rises over other shares of the steps that learn."""
    of = itertools.product(args.worlds, args.steps, args.targets, args.rises)
    for world, steps, target, share in of:
        fields = (("target_l0", target), ("l1_warm_up_steps", round(share * 0.8 * steps)))
        yield Run(world=world, side="ours", kind="relu", steps=steps, fields=fields)


def table(args: argparse.Namespace) -> Iterator[Run]:
    """Ours with no setting but kind and l0; `relu, no refit` is relu without its last phase."""
    kinds = args.kinds or ["relu", "topk", "gated", "relu, no refit", "jumprelu", "batchtopk"]
    for world, steps, seed, target, kind in itertools.product(
        args.worlds, args.steps, args.seeds, args.targets, kinds
    ):
        l0 = ("k", int(target)) if kind in ("topk", "batchtopk") else ("target_l0", target)
        fields = (l0, ("refit_fraction", 0.0)) if kind == "relu, no refit" else (l0,)
        kind = kind.partition(",")[0]
        yield Run(world=world, side="ours", kind=kind, steps=steps, seed=seed, fields=fields)


def saelens(args: argparse.Namespace) -> Iterator[Run]:
    """SAELens' standard at every rate and coefficient."""
    of = itertools.product(args.worlds, args.steps, args.seeds, args.saelens_lrs, args.saelens_l1)
    for world, steps, seed, lr, l1 in of:
        fields = (("l1_coeff", l1), ("lr", lr))
        yield Run(world=world, side="saelens", kind="standard", steps=steps, seed=seed, fields=fields)


PARTS = {"rates": rates, "rises": rises, "table": table, "saelens": saelens}


def planted(bench: Bench, args: argparse.Namespace) -> None:
    """Recovery of planted features by relu without its last phase, and after `refit_sae`."""
    config = sl.synthetic.SyntheticConfig(d_model=256, n_features=4096, l0=20, n_trees=32)
    world, folder = sl.synthetic.SyntheticActivations(config), bench.output / "data/planted"
    if not (folder / "manifest.json").exists():
        world.to_store(folder, 400_000)
    options = {"d_sae": 1024, "batch_size_rows": 1024, "n_steps": 900, "refit_fraction": 0.0}
    for seed, l1_coeff in itertools.product(args.seeds, args.planted_l1):
        name = f"planted-relu-l1_coeff={l1_coeff:g}-seed={seed}"
        if name in bench.lines:
            continue
        output = bench.output / "saes" / name
        options |= {"kind": "relu", "l1_coeff": l1_coeff, "seed": seed, "output": str(output)}
        shrunk = sl.train_sae(str(folder), device="cpu", overwrite=True, progress=False, **options)
        line: dict[str, Any] = {"run": name, "l1_coeff": l1_coeff, "seed": seed}
        for which, sae in (("shrunk", shrunk), ("refitted", sl.refit_sae(shrunk, str(folder)))):
            row = sl.ground_truth.evaluate_recovery(sae, world, n_rows=20_000).rows[0]
            names = ("mcc", "uniqueness", "f1", "l0", "fvu", "norm_ratio")
            line[which] = {score: getattr(row, score) for score in names}
        bench.add(line)


SETTING = ("world", "steps", "side", "kind", "refit_fraction", "l1_warm_up_steps", "lr")


def report(bench: Bench, targets: Iterable[float]) -> None:
    """fvu, ΔCE and dead at each l0, a line for each setting; means over seeds."""
    groups: dict[tuple[Any, ...], dict[int, list[dict[str, Any]]]] = {}
    for line in (line for line in bench.lines.values() if "side" in line):
        setting = tuple(line.get(name) for name in SETTING)
        groups.setdefault(setting, {}).setdefault(line["seed"], []).append(line)
    names = ("fvu", "delta_ce", "dead")
    print(" | ".join([*SETTING, "seeds", *(f"{name} at {target:g}" for target in targets for name in names)]))
    for setting, seeds in sorted(groups.items(), key=str):
        cells = []
        for target, name in itertools.product(targets, names):
            whole = [lines for lines in seeds.values() if all(name in line for line in lines)]
            found = [at_l0(lines, target, name) for lines in whole]
            cells.append(f"{sum(found) / len(found):.3f}" if found else "")
        print(" | ".join(["" if part is None else str(part) for part in (*setting, len(seeds))] + cells))


def bench_parser(description: str | None, folder: str) -> argparse.ArgumentParser:
    """The flags of every benchmark that has a `Bench`. folder: of its results, in runs/"""
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--output", type=Path, default=ROOT / "runs" / folder)
    parser.add_argument("--shared", type=Path, default=ROOT.parent / "shared/data")
    parser.add_argument("--peers-python", type=Path, default=ROOT / ".venv-peers/bin/python")
    parser.add_argument("--threads", type=int, default=1)
    return parser


def main() -> None:
    parser = bench_parser(__doc__, "l1")
    parser.add_argument("part", choices=[*PARTS, "planted", "report"])
    parser.add_argument("--worlds", nargs="+", choices=WORLDS, default=["3m-3", "260k-2"])
    parser.add_argument("--kinds", nargs="+")
    parser.add_argument("--steps", type=int, nargs="+", default=[1000])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--targets", type=float, nargs="+", default=list(TARGETS))
    parser.add_argument("--lrs", type=float, nargs="+", default=[1e-2, 2e-2, 4e-2, 8e-2])
    parser.add_argument("--rises", type=float, nargs="+", default=[0.05, 0.2, 0.5])
    parser.add_argument("--saelens-lrs", type=float, nargs="+", default=[1e-3, 3e-3, 1e-2])
    parser.add_argument("--saelens-l1", type=float, nargs="+", default=[1.0, 2.5, 5.0])
    parser.add_argument("--planted-l1", type=float, nargs="+", default=[4.0])
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    bench = Bench(args)
    if args.part == "report":
        report(bench, args.targets)
        return
    if args.part == "planted":
        planted(bench, args)
        return
    for run in PARTS[args.part](args):
        bench.do(run, ce=args.part not in ("rates", "rises"))


if __name__ == "__main__":
    main()
