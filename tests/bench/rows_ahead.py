"""What steps wait for rows, without and with reading ahead: share of the time, and peak memory.

    .venv/bin/python tests/bench/rows_ahead.py                     # 524,288 rows of width 192, two threads:
    about 5 minutes

A store of random rows in bfloat16, TopK with k = 32 and d_sae = 8 · d_model, batches of 4096 rows, buffers of
131,072. Every run is a process of its own, without and with in turn. `waited` is the share of the time of all
steps that passed in asking for a batch; `peak_mib` the largest resident memory less what stood there before
the first batch. Prints JSON lines.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch

import saelens_lite as sl
from saelens_lite.train.config import TrainConfig
from saelens_lite.train.rows.store_rows import StoreRows
from saelens_lite.train.runs.process import device_of
from saelens_lite.train.runs.run import Run

BATCH = 4096


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", type=int, default=524_288)
    parser.add_argument("--d-model", type=int, default=192)
    parser.add_argument("--d-sae", type=int, default=None)
    parser.add_argument("--buffer-rows", type=int, default=131_072)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--one", help=argparse.SUPPRESS)
    parser.add_argument("--ahead", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        print(json.dumps(one_run(Path(options.one), options)))
        return
    with tempfile.TemporaryDirectory() as folder:
        generator = torch.Generator().manual_seed(0)
        chunks = (
            torch.randn(16_384, options.d_model, generator=generator) for _ in range(options.rows // 16_384)
        )
        sl.ActivationStore.from_arrays(f"{folder}/store", chunks, dtype="bfloat16")
        for repeat in range(options.repeats):
            for ahead in (False, True):
                again = [
                    sys.executable,
                    __file__,
                    *sys.argv[1:],
                    "--one",
                    folder,
                    *(["--ahead"] if ahead else []),
                ]
                found = json.loads(subprocess.run(again, check=True, capture_output=True, text=True).stdout)
                print(json.dumps({"repeat": repeat, "ahead": ahead, **found}), flush=True)


def one_run(folder: Path, options: argparse.Namespace) -> dict[str, float]:
    torch.set_num_threads(options.threads)
    config = TrainConfig(
        kind="topk",
        k=32,
        d_sae=options.d_sae or 8 * options.d_model,
        batch_size_rows=BATCH,
        buffer_rows=options.buffer_rows,
        output=str(folder / f"sae_{time.time_ns()}"),
        prefetch=options.ahead,
        progress=False,
        device="cuda" if torch.cuda.is_available() else "cpu",
    )
    rows = StoreRows(sl.ActivationStore(folder / "store"), config, device_of(config))
    run = Run(rows, config)
    before, waited, began = _resident_mib(), 0.0, time.perf_counter()
    for step in range(run.n_steps):
        asked = time.perf_counter()
        batch = rows.batch(step)
        waited += time.perf_counter() - asked
        float(run.step(batch).l0)
    total = time.perf_counter() - began
    rows.close()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return {
        "steps": run.n_steps,
        "step_ms": round(1000 * total / run.n_steps, 2),
        "waited": round(waited / total, 4),
        "peak_mib": round(peak - before),
    }


def _resident_mib() -> float:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize() / 2**20


if __name__ == "__main__":
    main()
