"""Quality of our SAEs against SAELens' on the same rows of a small real model; a JSON line per run.

    python tests/bench/quality.py --only data            # harvest, then export the rows for the peers
    python tests/bench/quality.py --only saelens-topk    # every part can run alone
    python tests/bench/quality.py                        # everything still missing, in the order of PARTS
    python tests/bench/quality.py --report               # table and verdicts from the finished runs
    python tests/bench/quality.py --layer 1 …            # another layer, with stores and results of its own

Resumable: a finished run is never repeated, a part that was stopped goes on with the same command.
Setting: `stories3m-llama`, `blocks.3.hook_resid_post`, contexts of 256, TinyStories (both train files) and
FairytaleQA stories; scored on the first 300 documents of TinyStories' validation_v1; dead = silent on all
validation rows and on 400,000 training rows drawn with a fixed seed. What is scored is the folder that was
saved,
opened anew: BatchTopK and Matryoshka of both sides as the jumprelu SAE that they export. Both sides read the
same rows (bf16 in the store, float32 in training), warm up for 100 steps and decay over the last third. The
learning rate of a kind is chosen on seed 0 (of the L1 kinds at the middle coefficient), then kept for the
other seeds and coefficients.
Not a test: it takes hours. SAELens runs in the peers' venv (`make peers`) through
quality_saelens.py, the timing part through train_step.py.
"""

from __future__ import annotations

import argparse
import gzip
import itertools
import json
import os
import platform
import subprocess
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from quality_report import objective, report
from safetensors.torch import save_file
from score import load_rows, score

ROOT = Path(__file__).resolve().parents[2]
LAYER = 3
N_VALIDATION_DOCUMENTS = 300
HELD_OUT_FRACTION = 0.05
WARM_UP_STEPS = 100
LRS = (3e-4, 1e-3, 3e-3, 1e-2)
SEEDS = (0, 1, 2)

MATRYOSHKA_FRACTIONS = (1 / 16, 1 / 4, 1.0)
"""Prefixes of `matryoshka`, on both sides."""

PARTS = (
    "data",
    "saelens-topk",
    "saelens-batchtopk",
    "saelens-matryoshka",
    "ours-topk",
    "ours-batchtopk",
    "ours-matryoshka",
    "step-time",
    "ours-topk-equal-time",
    "saelens-standard",
    "ours-relu",
)


@dataclass(frozen=True, kw_only=True)
class Run:
    """What tells one training run from another; a finished line with the same facts is not run again."""

    contestant: str
    kind: str
    lr: float
    l1_coeff: float | None
    seed: int
    steps: int

    def key(self) -> tuple[str, str, float, float | None, int, int]:
        return (self.contestant, self.kind, self.lr, self.l1_coeff, self.seed, self.steps)

    @property
    def name(self) -> str:
        l1 = "" if self.l1_coeff is None else f"-l1_{self.l1_coeff:g}"
        return f"{self.contestant}-{self.kind}-lr_{self.lr:g}{l1}-seed_{self.seed}-steps_{self.steps}"


def key_of(line: dict[str, Any]) -> tuple[Any, ...]:
    return tuple(line[name] for name in ("contestant", "kind", "lr", "l1_coeff", "seed", "steps"))


class Results:
    """The finished runs: a file of JSON lines, appended and flushed run by run."""

    def __init__(self, path: Path):
        self.path = path
        self.lines: list[dict[str, Any]] = []
        if path.exists():
            for number, text in enumerate(path.read_text().splitlines(), 1):
                try:
                    self.lines.append(json.loads(text))
                except json.JSONDecodeError:
                    print(f"{path}:{number} is cut short; that run will be repeated", file=sys.stderr)

    def find(self, run: Run) -> dict[str, Any] | None:
        return next((line for line in self.lines if key_of(line) == run.key()), None)

    def select(self, contestant: str, kind: str, **facts: Any) -> list[dict[str, Any]]:
        wanted = {"contestant": contestant, "kind": kind, **facts}
        return [line for line in self.lines if all(line[name] == value for name, value in wanted.items())]

    def add(self, line: dict[str, Any]) -> None:
        self.lines.append(line)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("a") as file:
            # A line that a killed run left half written must not swallow this one.
            cut_short = self.path.stat().st_size > 0 and not self.path.read_bytes().endswith(b"\n")
            file.write(("\n" if cut_short else "") + json.dumps(line) + "\n")
        print(json.dumps(line), flush=True)


# ---- data ----------------------------------------------------------------------------------------


def read_texts(path: Path, n_documents: int | None = None) -> list[str]:
    with gzip.open(path, "rt", encoding="utf8") as lines:
        return [json.loads(line)["text"] for line in itertools.islice(lines, n_documents)]


def part_data(args: argparse.Namespace) -> None:
    """Harvest the train and validation stores, and export their rows as plain safetensors for the peers."""
    import saelens_lite as sl
    from saelens_lite.store.reader import ActivationStore

    corpora = args.shared / "corpora"
    texts = {
        "train": [
            text
            for name in (
                "tinystories/train_v1.jsonl.gz",
                "tinystories/train_v2_gpt4.jsonl.gz",
                "fairytaleqa/stories.jsonl.gz",
            )
            for text in read_texts(corpora / name, args.max_documents)
        ],
        "validation": read_texts(
            corpora / "tinystories/validation_v1.jsonl.gz",
            min(N_VALIDATION_DOCUMENTS, args.max_documents or N_VALIDATION_DOCUMENTS),
        ),
    }
    args.data.mkdir(parents=True, exist_ok=True)
    for split, documents in texts.items():
        exported = args.data / f"{split}.safetensors"
        if exported.exists():
            continue
        sl.harvest_activations(
            str(args.shared / "models/stories3m-llama"),
            [{"text": document} for document in documents],
            [args.hook_point],
            args.output / f"{split}_store",
            max_tokens=100_000_000,  # more than there is: the whole text
            context_length=256,
            dtype="bfloat16",
        )
        store = ActivationStore(args.output / f"{split}_store")
        acts = torch.cat([store.acts(shard) for shard in range(store.n_shards)])
        # What our training holds out for its own evaluation is withheld from the peers too:
        # both sides learn from the same rows.
        kept = (
            ~torch.as_tensor(store.held_out_rows(HELD_OUT_FRACTION))
            if split == "train"
            else torch.ones(len(acts), dtype=torch.bool)
        )
        temporary = exported.with_suffix(".tmp")
        save_file({"acts": acts[kept].contiguous()}, temporary)
        os.replace(temporary, exported)
        print(
            json.dumps(
                {
                    "exported": split,
                    "store_rows": len(acts),
                    "rows": int(kept.sum()),
                    "dtype": str(acts.dtype),
                }
            ),
            flush=True,
        )


# ---- one run of a side ---------------------------------------------------------------------------


def run_peer_script(args: argparse.Namespace, script: str, *options: str) -> str:
    """Run a script of this folder in the peers' venv and give its stdout; its stderr passes through."""
    if not args.peers_python.exists():
        raise SystemExit(
            f"expected the peers' interpreter at {args.peers_python}, found none: "
            "run `make peers`, or name it by --peers-python"
        )
    command = [str(args.peers_python), str(Path(__file__).with_name(script)), *options]
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout


def run_saelens(args: argparse.Namespace, run: Run) -> dict[str, Any]:
    output = run_peer_script(
        args,
        "quality_saelens.py",
        *(
            "--data",
            str(args.data),
            "--output",
            str(args.output / "saes" / run.name),
            "--kind",
            run.kind,
            "--lr",
            str(run.lr),
        ),
        *(() if run.l1_coeff is None else ("--l1", str(run.l1_coeff))),
        *(
            "--seed",
            str(run.seed),
            "--steps",
            str(run.steps),
            "--batch",
            str(args.batch),
            "--d-sae",
            str(args.d_sae),
            "--k",
            str(args.k),
        ),
        *("--warm-up-steps", str(args.warm_up_steps), "--threads", str(args.threads)),
    )
    return json.loads(output.splitlines()[-1])


def run_ours(args: argparse.Namespace, run: Run) -> dict[str, Any]:
    """Train by the public face, reload the saved folder, score."""
    import saelens_lite as sl

    store = sl.ActivationStore(args.output / "train_store")
    folder = args.output / "saes" / run.name
    started_cpu_s = time.process_time()
    sl.train_sae(
        store,
        overwrite=True,
        kind=run.kind,
        k=args.k,
        d_sae=args.d_sae,
        **({} if run.l1_coeff is None else {"l1_coeff": run.l1_coeff}),
        **({"matryoshka_fractions": MATRYOSHKA_FRACTIONS} if run.kind == "matryoshka" else {}),
        lr=run.lr,
        n_steps=run.steps,
        batch_size_rows=args.batch,
        warm_up_steps=args.warm_up_steps,
        decay_fraction=1 / 3,
        seed=run.seed,
        held_out_fraction=HELD_OUT_FRACTION,
        eval_every_steps=run.steps,  # only at the end, after the last training line
        device="cpu",
        output=str(folder),
        progress=False,
    )
    train_cpu_s = time.process_time() - started_cpu_s
    lines = [json.loads(text) for text in (folder / "metrics.jsonl").read_text().splitlines()]
    last = [line for line in lines if "tokens_per_s" in line][-1]

    sae = sl.SparseAutoencoder.load(folder)
    validation = load_rows(args.data / "validation.safetensors")

    def reconstruct(acts: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        out = sae(acts)
        return out.recons, out.latents.to_dense()

    norms = sae.W_dec.detach().norm(dim=1)
    result = score(reconstruct, validation, load_rows(args.data / "train.safetensors"), decoder_norms=norms)
    return {
        **asdict(run),
        "batch_size_rows": args.batch,
        "d_sae": args.d_sae,
        "k": None if run.kind == "relu" else args.k,
        "train_s": last["tokens"]
        / last["tokens_per_s"],  # steps and reading rows, without set-up and evaluation
        "train_cpu_s": train_cpu_s,  # of all threads, with set-up and evaluation
        "input_scale": (store.d_model() / store.mean_sq_norm()) ** 0.5,
        **result.to_dict(),
        "versions": {
            "saelens_lite": sl.__version__,
            "torch": torch.__version__,
            "python": platform.python_version(),
        },
        "threads": args.threads,
    }


RUNNERS = {"saelens": run_saelens, "ours": run_ours}


def finish(args: argparse.Namespace, results: Results, run: Run) -> dict[str, Any]:
    """The line of this run: the one on file, or a new one after training it."""
    line = results.find(run)
    if line is None:
        line = RUNNERS[run.contestant](args, run)
        results.add(line)
    return line


# ---- parts: which runs ---------------------------------------------------------------------------


def part_keep_k(args: argparse.Namespace, results: Results, contestant: str, kind: str, steps: int) -> None:
    """Of a kind that keeps k latents: every learning rate on the first seed, the other seeds at the best of
    them."""

    def run(lr: float, seed: int) -> dict[str, Any]:
        return finish(
            args, results, Run(contestant=contestant, kind=kind, lr=lr, l1_coeff=None, seed=seed, steps=steps)
        )

    best = min((run(lr, args.seeds[0]) for lr in args.lrs), key=lambda line: line["fvu"])
    for seed in args.seeds[1:]:
        run(best["lr"], seed)


def part_l1(
    args: argparse.Namespace, results: Results, contestant: str, kind: str, l1_coeffs: list[float]
) -> None:
    """Four learning rates at the middle coefficient, the other coefficients at the best of them."""
    middle = sorted(l1_coeffs)[len(l1_coeffs) // 2]
    runs = [
        Run(contestant=contestant, kind=kind, lr=lr, l1_coeff=middle, seed=0, steps=args.steps)
        for lr in args.lrs
    ]
    best = min((finish(args, results, run) for run in runs), key=objective)
    for l1_coeff in l1_coeffs:
        finish(
            args,
            results,
            Run(contestant=contestant, kind=kind, lr=best["lr"], l1_coeff=l1_coeff, seed=0, steps=args.steps),
        )


def part_step_time(args: argparse.Namespace) -> None:
    """Time our TopK step against SAELens' at these sizes, interleaved, without and with AuxK at work."""
    if (args.output / "step_time.jsonl").exists():
        return
    summaries = []
    for dead_share in ("0", "0.03"):
        output = run_peer_script(
            args,
            "train_step.py",
            *(
                "--d",
                "192",
                "--d-sae",
                str(args.d_sae),
                "--k",
                str(args.k),
                "--batch",
                str(args.batch),
                "--threads",
                str(args.threads),
            ),
            *(
                "--contestants",
                "ours-topk",
                "saelens-topk",
                "--dead-share",
                dead_share,
                "--rounds",
                "11",
                "--steps-per-round",
                "5",
            ),
        )
        print(output, end="", flush=True)
        summaries.append(output.splitlines()[-1])
    args.output.mkdir(parents=True, exist_ok=True)
    (args.output / "step_time.jsonl").write_text("\n".join(summaries) + "\n")


def step_time_ratio(args: argparse.Namespace) -> float | None:
    """How many of our steps take the time of one SAELens step: the smaller timing, or --step-time-ratio."""
    path = args.output / "step_time.jsonl"
    if args.step_time_ratio is not None:
        return args.step_time_ratio
    if not path.exists():
        return None
    return min(
        json.loads(line)["speedup_of_ours_topk"]["saelens-topk"] for line in path.read_text().splitlines()
    )


def equal_time_steps(args: argparse.Namespace) -> int | None:
    ratio = step_time_ratio(args)
    return None if ratio is None else round(args.steps * ratio)


def part_equal_time(args: argparse.Namespace, results: Results) -> None:
    """Our runs with the steps that SAELens' wall-clock time buys; a longer run wants a lower rate, so it is
    chosen anew."""
    steps = equal_time_steps(args)
    if steps is None:
        raise SystemExit("ours-topk-equal-time needs the part step-time first, or --step-time-ratio")
    part_keep_k(args, results, "ours", "topk", steps)


def run_part(part: str, args: argparse.Namespace, results: Results) -> None:
    if part == "data":
        part_data(args)
    elif part == "step-time":
        part_step_time(args)
    elif part == "ours-topk-equal-time":
        part_equal_time(args, results)
    elif part == "saelens-standard":
        part_l1(args, results, "saelens", "standard", args.l1_saelens)
    elif part == "ours-relu":
        part_l1(args, results, "ours", "relu", args.l1_ours)
    else:
        contestant, kind = part.split("-")
        part_keep_k(args, results, contestant, kind, args.steps)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--only",
        nargs="+",
        choices=PARTS,
        default=list(PARTS),
        help="parts to run, in this order; finished runs are skipped",
    )
    parser.add_argument(
        "--report", action="store_true", help="run nothing; table and verdicts of the finished runs"
    )
    parser.add_argument("--layer", type=int, default=LAYER, help="whose hook_resid_post is learned")
    parser.add_argument(
        "--output",
        type=Path,
        help="stores, exported rows, saved SAEs, results; default: runs/quality, and layer_N in it unless "
        f"N is {LAYER}",
    )
    parser.add_argument("--results", type=Path, help="default: OUTPUT/results.jsonl")
    parser.add_argument(
        "--shared", type=Path, default=ROOT.parent / "shared/data", help="folder with models/ and corpora/"
    )
    parser.add_argument("--peers-python", type=Path, default=ROOT / ".venv-peers/bin/python")
    parser.add_argument("--lrs", type=float, nargs="+", default=list(LRS))
    parser.add_argument(
        "--seeds",
        type=int,
        nargs="+",
        default=list(SEEDS),
        help="the first chooses the learning rate and must be 0",
    )
    parser.add_argument(
        "--l1-saelens",
        type=float,
        nargs="+",
        default=[2.5, 5.0, 10.0],
        help="l1_coefficient of SAELens' standard",
    )
    parser.add_argument(
        "--l1-ours", type=float, nargs="+", default=[2.5, 5.0, 10.0], help="l1_coeff of our relu"
    )
    parser.add_argument("--steps", type=int, default=1200)
    parser.add_argument("--batch", type=int, default=2048, help="rows a step")
    parser.add_argument("--d-sae", type=int, default=3072)
    parser.add_argument("--k", type=int, default=32)
    parser.add_argument("--warm-up-steps", type=int, default=WARM_UP_STEPS)
    parser.add_argument(
        "--step-time-ratio",
        type=float,
        help="SAELens' seconds a step over ours, instead of the part step-time",
    )
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument(
        "--max-documents", type=int, help="documents read of each file; for trying the script out"
    )
    args = parser.parse_args()
    if args.seeds[0] != 0:
        parser.error(f"expected --seeds to begin with 0, got {args.seeds}")
    args.hook_point = f"blocks.{args.layer}.hook_resid_post"
    if args.output is None:
        args.output = ROOT / "runs/quality" / ("" if args.layer == LAYER else f"layer_{args.layer}")
    args.data = args.output / "data"
    torch.set_num_threads(args.threads)
    results = Results(args.results or args.output / "results.jsonl")
    if args.report:
        ratio = step_time_ratio(args)
        longer_steps = equal_time_steps(args)
        report(
            results.lines,
            steps=args.steps,
            longer_steps=longer_steps,
            step_time_ratio=ratio,
            n_seeds=len(args.seeds),
        )
        return
    for part in args.only:
        run_part(part, args, results)


if __name__ == "__main__":
    main()
