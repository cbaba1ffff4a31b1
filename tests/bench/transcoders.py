"""Transcoders: what a step costs beside an SAE's, and what it costs a model to have its MLP replaced.

    OMP_NUM_THREADS=1 python tests/bench/transcoders.py step --pairs 15
    OMP_NUM_THREADS=1 python tests/bench/transcoders.py table --output runs/transcoders --seeds 0 1 2

step: 512 to 512, 8,192 latents, k 32, TopK, batches of 4,096 rows; SAE, transcoder and skip-transcoder take
turns, in an order that rotates. A JSON line a turn, then the median over turns of the ratio to the SAE's
seconds of processor.

table: stories3m-llama, the MLP of block 3 from what it reads and what it adds. BatchTopK at one k: a
transcoder, a skip-transcoder and an SAE of the MLP's output, by the same rows, steps and latents; ΔCE on
held-out documents of each in the MLP's place, and of the mean. A JSON line each; what is in
results.jsonl is not made again.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from pathlib import Path

import torch

import saelens_lite as sl
from saelens_lite.lm.store_losses import cross_entropies
from saelens_lite.sae.config import SAEConfig, Target
from saelens_lite.train import train_transcoder
from saelens_lite.train.config import TrainConfig
from saelens_lite.train.optimise.initial import initial_sae, initial_transcoder
from saelens_lite.train.optimise.trainer import Trainer

ROOT = Path(__file__).resolve().parents[2]
MODEL, BLOCK = "stories3m-llama", 3
READS, WRITES = f"blocks.{BLOCK}.mlp.hook_in", f"blocks.{BLOCK}.hook_mlp_out"
D, N, K, BATCH = 512, 8192, 32, 4096


def trainers() -> dict[str, tuple[Trainer, torch.Tensor]]:
    """Of each a trainer and a batch."""
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(BATCH, 2 * D, generator=generator)
    config = TrainConfig(kind="topk", k=K, d_sae=N, batch_size_rows=BATCH, aux_coeff=0.0)
    found = {}
    for name in ("sae", "transcoder", "skip"):
        target = None if name == "sae" else Target(d_model=D, skip=name == "skip")
        sae_config = SAEConfig(d_model=D, d_sae=N, k=K, apply_b_dec_to_input=target is None, target=target)
        start = initial_sae if target is None else initial_transcoder
        acts = rows[:, :D].contiguous() if target is None else rows
        found[name] = Trainer(start(sae_config, rows[:, :D], seed=0), config, 10_000), acts
    return found


def step(pairs: int, steps: int) -> None:
    every, seconds = trainers(), {}
    names = list(every)
    for trainer, acts in every.values():
        trainer.update(acts)
    for turn in range(pairs):
        for name in names[turn % 3 :] + names[: turn % 3]:
            trainer, acts = every[name]
            began = time.process_time()
            for _ in range(steps):
                trainer.update(acts)
            seconds.setdefault(name, []).append((time.process_time() - began) / steps)
        print(
            json.dumps({"turn": turn, **{name: round(of[-1], 4) for name, of in seconds.items()}}), flush=True
        )
    for name in names[1:]:
        ratios = sorted(of / sae for of, sae in zip(seconds[name], seconds["sae"], strict=True))
        best = min(seconds[name]) / min(seconds["sae"])
        middle, spread = statistics.median(ratios), f"{ratios[0]:.2f} to {ratios[-1]:.2f}"
        print(f"{name}: median {middle:.3f} of the SAE's ({spread}), best of each {best:.3f}")


def table(output: Path, seeds: list[int], max_tokens: int, n_steps: int, k: int, d_sae: int) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = ROOT.parent / "shared/data"
    texts = folder / "corpora/tinystories/train_v2_gpt4.jsonl.gz"
    model = AutoModelForCausalLM.from_pretrained(folder / "models" / MODEL, dtype=torch.float32).eval()
    store = sl.harvest_activations(
        model, [str(texts)], [READS, WRITES], output / "store", max_tokens=max_tokens,
        context_length=256, progress=False,
        tokenizer=AutoTokenizer.from_pretrained(folder / "models" / MODEL),
    )  # fmt: skip
    results = output / "results.jsonl"
    lines = [json.loads(line) for line in results.read_text().splitlines()] if results.exists() else []
    done = {(line["what"], line["seed"]) for line in lines}
    fields = {"kind": "batchtopk", "k": k, "d_sae": d_sae, "n_steps": n_steps, "batch_size_rows": 2048,
              "progress": False, "device": "cpu"}  # fmt: skip

    def said(what: str, seed: int | None, **numbers: object) -> None:
        lines.append({"what": what, "seed": seed, **numbers})
        with results.open("a") as file:
            file.write(json.dumps(lines[-1]) + "\n")
        print(json.dumps(lines[-1]), flush=True)

    def delta_ce(**how: object) -> float:
        some = {"fraction": 0.05, "max_tokens": 8192}
        ce = cross_entropies(model, store, WRITES, {"clean": None, "replaced": how}, **some).ce
        return ce["replaced"] - ce["clean"]

    if ("mean", None) not in done:
        said("mean", None, delta_ce=delta_ce(sae=None, mode="mean", mean=store.mean(WRITES)))
    for seed in seeds:
        for what in ("transcoder", "skip-transcoder", "sae of the output"):
            if (what, seed) in done:
                continue
            to, began = str(output / f"{what} {seed}"), time.process_time()
            if what == "sae of the output":
                one = sl.train_sae(store, hook_point=WRITES, output=to, seed=seed, **fields)
            else:
                skip = what == "skip-transcoder"
                one = train_transcoder(store, READS, WRITES, output=to, skip=skip, seed=seed, **fields)
            took, facts = time.process_time() - began, one.config.metadata["saelens_lite"]
            scores = {"fvu": facts["held_out_fvu"], "l0": facts["held_out_l0"]}
            said(what, seed, **scores, delta_ce=delta_ce(sae=one), cpu_s=round(took, 1))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True)
    of_step = commands.add_parser("step")
    of_step.add_argument("--pairs", type=int, default=15)
    of_step.add_argument("--steps", type=int, default=3)
    of_table = commands.add_parser("table")
    of_table.add_argument("--output", type=Path, required=True)
    of_table.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    of_table.add_argument("--max-tokens", type=int, default=400_000)
    of_table.add_argument("--n-steps", type=int, default=400)
    of_table.add_argument("--k", type=int, default=16)
    of_table.add_argument("--d-sae", type=int, default=1536)
    args = vars(parser.parse_args())
    {"step": step, "table": table}[args.pop("command")](**args)


if __name__ == "__main__":
    main()
