"""A grid of four SAEs from one pass over a store, against four runs one after another; a JSON line.

    python tests/bench/grid.py                          # interleaved rounds, medians
    python tests/bench/grid.py --rounds 1 --steps 50    # try it small

Setting: rows of width 192 in bfloat16, drawn at random and written as a store once; d_sae 2,048, k 16, 32, 64
and 128, one epoch of batches of 4,096 rows through buffers of 65,536, no held-out rows, no checkpoints. Both
sides start anew each round, alternate in who goes first, and end with the same weights, which is checked.
Seconds of reading are those within `RowBuffer.batch`: gathering a buffer, mixing it, giving batches in
float32. The store is in the page cache after the first round on either side; reading ahead is off, so that
reading has its full price. On a disk that is slower than memory a single pass saves more than here.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

import saelens_lite as sl
from saelens_lite.train.rows.row_buffer import RowBuffer

KS = [16, 32, 64, 128]


class Reading:
    """Seconds within RowBuffer.batch since the start."""

    def __init__(self) -> None:
        self.seconds, batch = 0.0, RowBuffer.batch

        def timed(buffer: RowBuffer, step: int) -> torch.Tensor:
            started = time.perf_counter()
            rows = batch(buffer, step)
            self.seconds += time.perf_counter() - started
            return rows

        RowBuffer.batch = timed


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--d-model", type=int, default=192)
    parser.add_argument("--d-sae", type=int, default=2048)
    parser.add_argument("--batch", type=int, default=4096)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    with tempfile.TemporaryDirectory() as folder:
        print(json.dumps(measure(args, Path(folder))))


def measure(args: argparse.Namespace, folder: Path) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(0)
    rows = (
        torch.randn(65_536, args.d_model, generator=generator)
        for _ in range(-(-args.steps * args.batch // 65_536))
    )
    store = sl.ActivationStore.from_arrays(folder / "store", rows, dtype="bfloat16")
    options = {
        "d_sae": args.d_sae, "batch_size_rows": args.batch, "buffer_rows": 65_536, "n_steps": args.steps,
        "device": "cpu",
        "held_out_fraction": 0.0, "progress": False, "overwrite": True, "prefetch": False,
        "checkpoint_every_steps": args.steps,
    }  # fmt: skip
    reading = Reading()

    def grid() -> dict[int, sl.SparseAutoencoder]:
        saes = sl.train_grid(store, {"k": KS}, output=folder / "grid", **options)
        return {k: saes[f"k={k}"] for k in KS}

    def one_after_another() -> dict[int, sl.SparseAutoencoder]:
        return {k: sl.train_sae(store, k=k, output=folder / f"run{k}", **options) for k in KS}

    sides: dict[str, Callable[[], dict[int, sl.SparseAutoencoder]]] = {
        "grid": grid,
        "four runs": one_after_another,
    }
    total: dict[str, list[float]] = {name: [] for name in sides}
    cpu: dict[str, list[float]] = {name: [] for name in sides}
    read: dict[str, list[float]] = {name: [] for name in sides}
    for i in range(args.rounds):
        ends = {}
        for name in sorted(sides, reverse=bool(i % 2)):
            reading.seconds, started, cpu_started = 0.0, time.perf_counter(), time.process_time()
            ends[name] = sides[name]()
            total[name].append(time.perf_counter() - started)
            cpu[name].append(time.process_time() - cpu_started)
            read[name].append(reading.seconds)
        for k in KS:
            assert torch.equal(ends["grid"][k].W_enc, ends["four runs"][k].W_enc), f"k={k} differs"
    measured = {"s": total, "cpu_s": cpu, "reading_s": read}
    medians = {name: {what: statistics.median(of[name]) for what, of in measured.items()} for name in sides}
    return {
        **vars(args),
        **{name: {key: round(value, 2) for key, value in found.items()} for name, found in medians.items()},
        "least_and_greatest_s": {name: [round(min(s), 1), round(max(s), 1)] for name, s in total.items()},
        "four_runs_over_grid": {
            what: round(medians["four runs"][what] / medians["grid"][what], 2) for what in measured
        },
    }


if __name__ == "__main__":
    main()
