"""What rounding in the step costs an SAE: encoder products in tf32 and bf16, gathers in bf16; on a CPU.

    OMP_NUM_THREADS=1 python tests/bench/rounding.py --output runs/rounding

The encoder product rounds as CUDA's does at matmul_precision "high" and "medium": both factors to 10 or 7
bits of mantissa, sums in float32. gather_dtype="bfloat16" rounds alike on every device. One small world:
stories3m-llama block 3, 250,000 rows, 1,536 latents, k 20, 1,000 steps of 1,024 rows. A JSON line a run in
results.jsonl with its fvu on 30,000 rows of other text, computed in float32; runs that are there are not
made again. Then fvu over that of float32, seed by seed.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import statistics
from pathlib import Path

import torch
from torch import Tensor

import saelens_lite as sl
from saelens_lite.kernels import dispatch as kernels
from saelens_lite.sae.metrics import ReconstructionSums

ROOT = Path(__file__).resolve().parents[2]
MODEL, HOOK_POINT = "stories3m-llama", "blocks.3.hook_resid_post"
TRAIN, VALIDATION = ("train_v1", "train_v2_gpt4"), ("validation_v1",)
MANTISSA_BITS = {"float32": 23, "tf32": 10, "bf16": 7}
SETTINGS = [("float32", "float32"), ("tf32", "float32"), ("bf16", "float32"), ("float32", "bfloat16"),
            ("tf32", "bfloat16"), ("bf16", "bfloat16")]  # fmt: skip
"""Of the product, and of the gathers."""


def rounded(values: Tensor, bits: int) -> Tensor:
    """float32 rounded to so many bits of mantissa, halves away from zero."""
    lost = 23 - bits
    if not lost:
        return values
    return ((values.contiguous().view(torch.int32) + (1 << lost - 1)) & (-1 << lost)).view(torch.float32)


def products_of(bits: int) -> None:
    """From now on, encoders select from products of rounded factors."""

    def screened_topk(inputs: Tensor, W_rows: Tensor, bias: Tensor, k: int) -> tuple[Tensor, Tensor]:
        return kernels.select_topk(rounded(inputs, bits) @ rounded(W_rows, bits).T, bias, k)

    def screened_batch_topk(
        inputs: Tensor, W_rows: Tensor, bias: Tensor, n_pairs: int, guess: float | Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        products = rounded(inputs, bits) @ rounded(W_rows, bits).T
        return kernels.select_batch_topk([products], bias, n_pairs, guess)

    kernels.screened_topk, kernels.screened_batch_topk = screened_topk, screened_batch_topk


@torch.no_grad()
def fvu(sae: sl.SparseAutoencoder, store: sl.ActivationStore) -> float:
    sums = ReconstructionSums(sae.d_model)
    for shard in range(store.n_shards):
        for acts in store.acts(shard).float().split(2048):
            sums.update(acts, sae(acts).recons)
    return sums.fvu


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--output", type=Path, default=ROOT / "runs/rounding")
    parser.add_argument("--shared", type=Path, default=ROOT.parent / "shared/data")
    parser.add_argument("--kinds", nargs="+", default=["topk", "batchtopk"])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    given = parser.parse_args()
    given.output.mkdir(parents=True, exist_ok=True)
    stores = {
        name: sl.harvest_activations(
            str(given.shared / "models" / MODEL),
            [str(given.shared / f"corpora/tinystories/{split}.jsonl.gz") for split in splits],
            [HOOK_POINT],
            given.output / name,
            max_tokens=max_tokens,
        )
        for name, splits, max_tokens in (("train", TRAIN, 250_000), ("validation", VALIDATION, 30_000))
    }
    results, plain = given.output / "results.jsonl", (kernels.screened_topk, kernels.screened_batch_topk)
    lines = results.read_text().splitlines() if results.exists() else []
    done = {(r["kind"], r["seed"], r["product"], r["gathers"]): r["fvu"] for r in map(json.loads, lines)}
    for kind, seed, (product, gathers) in itertools.product(given.kinds, given.seeds, SETTINGS):
        if (kind, seed, product, gathers) in done:
            continue
        products_of(MANTISSA_BITS[product])
        sae = sl.train_sae(
            stores["train"], kind=kind, k=20, d_sae=1536, batch_size_rows=1024, n_steps=1000, seed=seed,
            gather_dtype=gathers, device="cpu", eval_every_steps=1000, checkpoint_every_steps=1000,
            overwrite=True, progress=False, output=str(given.output / "sae"),
        )  # fmt: skip
        kernels.screened_topk, kernels.screened_batch_topk = plain
        line = {"kind": kind, "seed": seed, "product": product, "gathers": gathers}
        line["fvu"] = done[kind, seed, product, gathers] = fvu(sae, stores["validation"])
        with results.open("a") as file:
            file.write(json.dumps(line) + "\n")
        print(json.dumps(line), flush=True)
    for kind, (product, gathers) in itertools.product(given.kinds, SETTINGS):
        ratios = [
            done[kind, seed, product, gathers] / done[kind, seed, "float32", "float32"]
            for seed in given.seeds
        ]
        spread = statistics.stdev(ratios) if len(ratios) > 1 else math.nan
        print(f"{kind} | {product} | {gathers} | {statistics.mean(ratios):.5f} | {spread:.5f}")


if __name__ == "__main__":
    main()
