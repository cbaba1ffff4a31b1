"""What int8 rows cost: bytes and fvu at every hook point of real models, and the effect on an SAE trained on
them.

    .venv/bin/python tests/bench/codec.py                        # both parts, one thread: about 8 minutes
    .venv/bin/python tests/bench/codec.py --only rows            # bytes and codec fvu
    .venv/bin/python tests/bench/codec.py --only training --seeds 0 1 2

Models and text are those of ../shared/data (TinyStories). Prints JSON lines.

rows: each model is harvested three times, in float32, bfloat16 and int8, all hook points in one pass.
`bytes_ratio` is the data files of int8 by those of bfloat16, heads and norms included. `fvu` is Σ‖x − x̂‖² /
Σ‖x − x̄‖² of the int8 rows against the float32 rows, `fvu_bfloat16` the same of bfloat16.

training: TopK SAEs on the same rows of stories3m-llama blocks.3.hook_resid_post, kept in bfloat16 and in
int8, by seed, with the fvu on held-out documents of each SAE's own store, as train_sae reports it. Single
pairs differ by chance too, as any
rounding sends training another way: `seed_spread` is the relative standard deviation over the seeds within
    one store.
"""

from __future__ import annotations

import argparse
import gzip
import json
import statistics
import tempfile
from collections.abc import Iterator
from pathlib import Path

import torch

import saelens_lite as sl

DATA = Path(__file__).parents[3] / "shared" / "data"
BLOCKS = {"stories260k-llama": 5, "stories3m-llama": 6}
KINDS = ("hook_resid_post", "hook_attn_out", "hook_mlp_out")


def texts() -> Iterator[str]:
    for name in ("train_v1", "train_v2_gpt4", "validation_v1"):
        with gzip.open(DATA / f"corpora/tinystories/{name}.jsonl.gz", "rt", encoding="utf-8") as file:
            for line in file:
                yield json.loads(line)["text"]


def harvest(model: str, hook_points: list[str], folder: Path, n_rows: int, dtype: str) -> sl.ActivationStore:
    path = DATA / "models" / model
    return sl.harvest_activations(
        str(path), texts(), hook_points, folder, max_tokens=n_rows, dtype=dtype, progress=False
    )


def fvu(rows: torch.Tensor, kept: torch.Tensor) -> float:
    rows = rows.double()
    return float((rows - kept.double()).square().sum() / (rows - rows.mean(0)).square().sum())


def measure_rows(folder: Path, n_rows: int) -> None:
    for model, n_blocks in BLOCKS.items():
        points = [
            "blocks.0.hook_resid_pre",
            *(f"blocks.{i}.{kind}" for i in range(n_blocks) for kind in KINDS),
        ]
        dtypes = ("float32", "bfloat16", "int8")
        exact, half, small = (
            harvest(model, points, folder / model / dtype, n_rows, dtype) for dtype in dtypes
        )
        rows = torch.arange(exact.n_rows)
        for point in points:
            data = [
                sum(path.stat().st_size for path in store.path.rglob(f"{point}.safetensors"))
                for store in (small, half)
            ]
            x = exact.gather(rows, point)
            line = {"model": model, "hook_point": point, "d_model": x.shape[1], "rows": len(x)}
            line |= {"bytes_ratio": round(data[0] / data[1], 4), "fvu": fvu(x, small.gather(rows, point))}
            print(json.dumps(line | {"fvu_bfloat16": fvu(x, half.gather(rows, point))}), flush=True)


def measure_training(folder: Path, n_rows: int, seeds: list[int]) -> None:
    point = "blocks.3.hook_resid_post"
    exact = harvest("stories3m-llama", [point], folder / "exact", n_rows, "float32")
    shards = range(exact.n_shards)
    documents = torch.cat([exact.row_docs(shard) for shard in shards])
    found: dict[str, list[float]] = {"bfloat16": [], "int8": []}
    stores = {
        dtype: sl.ActivationStore.from_arrays(
            folder / dtype,
            (exact.acts(shard) for shard in shards),
            hook_point=point,
            dtype=dtype,
            documents=documents,
        )
        for dtype in found
    }
    for seed in seeds:
        for dtype, store in stores.items():
            sae = sl.train_sae(
                store, kind="topk", k=32, d_sae=3072, n_steps=300, batch_size_rows=2048, seed=seed,
                device="cpu",
                output=str(folder / f"sae_{dtype}_{seed}"), progress=False,
            )  # fmt: skip
            found[dtype].append(sae.config.metadata["saelens_lite"]["held_out_fvu"])
        pair = {dtype: fvus[-1] for dtype, fvus in found.items()}
        line = {
            "seed": seed,
            "held_out_fvu": pair,
            "relative_difference": pair["int8"] / pair["bfloat16"] - 1,
        }
        print(json.dumps(line), flush=True)
    means = {dtype: statistics.mean(fvus) for dtype, fvus in found.items()}
    summary = {
        "seeds": len(seeds),
        "mean_fvu": means,
        "relative_difference": means["int8"] / means["bfloat16"] - 1,
    }
    if len(seeds) > 1:
        summary["seed_spread"] = {
            dtype: statistics.stdev(fvus) / means[dtype] for dtype, fvus in found.items()
        }
    print(json.dumps(summary))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--only", choices=("rows", "training"))
    parser.add_argument("--rows", type=int, default=40_000, help="rows a hook point in the first part")
    parser.add_argument("--training-rows", type=int, default=700_000)
    parser.add_argument("--seeds", type=int, nargs="+", default=list(range(8)))
    given = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        if given.only != "training":
            measure_rows(Path(folder), given.rows)
        if given.only != "rows":
            measure_training(Path(folder), given.training_rows, given.seeds)


if __name__ == "__main__":
    main()
