"""Whether a commit is slower than another: train step, harvest, index and generate under an edit, in pairs.

    git worktree add ../before fda826a
    python tests/bench/speed_pairs.py --before ../before --after . --pairs 20

The interpreter must not have us installed. One process per checkout has all loaded; each is asked in turn for
one piece of work, the order changing from pair to pair, with one thread. Compared are seconds of processor,
which other programs on the machine move less than those of the clock. Prints a JSON line a pair, then for
each piece the ratio after / before: of the best of each, and the median over pairs with a 95 % interval (the
order statistics of the binomial).
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
from math import comb
from pathlib import Path

WORKER = """
import shutil, sys, tempfile, time
from pathlib import Path
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer
import saelens_lite as sl
from saelens_lite.demo import MODEL_DIR

torch.set_num_threads(1)
POINT = "blocks.2.hook_resid_post"
work = Path(tempfile.mkdtemp())
model = AutoModelForCausalLM.from_pretrained(MODEL_DIR).float().eval()
tokenizer = AutoTokenizer.from_pretrained(MODEL_DIR)
draw = torch.Generator().manual_seed(0)
ids = torch.randint(8, 4000, (400, 200), generator=draw)
texts = [tokenizer.decode(row) for row in ids]
rows = torch.randn(20_000, 128, generator=draw)
planted = sl.ActivationStore.from_arrays(work / "planted", rows)

def harvest(name):
    return sl.harvest_activations(
        model, texts, [POINT], work / name, max_tokens=20_000, tokenizer=tokenizer, context_length=128,
        batch_size_seqs=8, progress=False,
    )

def train(name, store, **fields):
    return sl.train_sae(
        store, output=str(work / name), kind="topk", k=16, d_sae=1024, batch_size_rows=1024,
        device="cpu", progress=False, **fields,
    )

store = harvest("store")
sae = train("sae", store, n_steps=5)
prompt = tokenizer("import os", return_tensors="pt")

def generate(_name):
    with torch.no_grad(), sl.ablate(model, sae, [1, 2, 3]):
        model.generate(**prompt, max_new_tokens=100, do_sample=False)

PIECES = {
    "train step": lambda name: train(name, planted, n_steps=40),
    "harvest": harvest,
    "index": lambda name: sl.index_features(sae, store, work / name),
    "generate under an edit": generate,
}
print(sl.__file__, flush=True)
for line in sys.stdin:
    piece, began = line.strip(), time.process_time()
    PIECES[piece]("measured")
    print(time.process_time() - began, flush=True)
    shutil.rmtree(work / "measured", ignore_errors=True)
shutil.rmtree(work)
"""
PIECES = ("train step", "harvest", "index", "generate under an edit")


class Checkout:
    """A process that has a checkout loaded."""

    def __init__(self, folder: Path) -> None:
        env = os.environ | {"PYTHONPATH": str(folder), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        self.process = subprocess.Popen([sys.executable, "-c", WORKER], cwd=folder, env=env, **pipes)
        loaded = Path(self.process.stdout.readline().strip())
        assert loaded.is_relative_to(folder), f"{loaded} is not of {folder}: use an interpreter without us"

    def seconds(self, piece: str) -> float:
        """Of processor."""
        self.process.stdin.write(piece + "\n")
        self.process.stdin.flush()
        return float(self.process.stdout.readline())

    def close(self) -> None:
        self.process.stdin.close()
        self.process.wait()


def interval(values: list[float]) -> tuple[float, float]:
    """Of the median, at least 95 %: the order statistics whose binomial tails are below 2.5 % each."""
    ordered, n, tail, below = sorted(values), len(values), 0.0, 0
    while (tail := tail + comb(n, below) / 2**n) < 0.025:
        below += 1
    at = max(0, below - 1)
    return ordered[at], ordered[n - 1 - at]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--before", type=Path, required=True)
    parser.add_argument("--after", type=Path, required=True)
    parser.add_argument("--pairs", type=int, default=20)
    parser.add_argument("--pieces", nargs="+", default=PIECES, choices=PIECES)
    args = parser.parse_args()
    checkouts = {name: Checkout(getattr(args, name).resolve()) for name in ("before", "after")}
    for piece in args.pieces:  # what a first call loads
        for checkout in checkouts.values():
            checkout.seconds(piece)
    found: dict[str, list[dict[str, float]]] = {piece: [] for piece in args.pieces}
    for pair in range(args.pairs):
        order = ("before", "after") if pair % 2 == 0 else ("after", "before")
        for piece in args.pieces:
            taken = {name: checkouts[name].seconds(piece) for name in order}
            found[piece].append(taken)
            print(json.dumps({"pair": pair, "piece": piece, **taken}), flush=True)
    for checkout in checkouts.values():
        checkout.close()
    for piece, pairs in found.items():
        ratios = [pair["after"] / pair["before"] for pair in pairs]
        best = min(pair["after"] for pair in pairs) / min(pair["before"] for pair in pairs)
        low, high = interval(ratios)
        middle = statistics.median(ratios)
        print(f"{piece}: best {best:.3f}, median {middle:.3f} ({low:.3f} to {high:.3f}), {len(pairs)} pairs")


if __name__ == "__main__":
    main()
