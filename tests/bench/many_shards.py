"""What many small shards cost: a store of 20,000 × 4 hook points against one of 200 shards with as many rows.

    python tests/bench/many_shards.py [--shards 20000] [--rows 1000000] [--d-model 256]

Stores are made of hard links to one shard, without a sync. Prints seconds of opening, sums, a first gather of
evenly spread rows and one more, and of 100 training steps: a JSON line each as it is known, then a table of
wall clock.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import shutil
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

import saelens_lite as sl

HOOK_POINTS = ("a", "b", "c", "d")


def encoded(content: dict[str, Any]) -> bytes:
    return (json.dumps(content, sort_keys=True, ensure_ascii=False) + "\n").encode()


def linked_store(folder: Path, n_shards: int, rows_per_shard: int, d_model: int) -> Path:
    """A store whose shards are links to one; folder: new."""
    rows = np.random.default_rng(0).standard_normal((rows_per_shard, d_model)).astype(np.float32)
    one = folder.with_name(f"{folder.name}-one")
    sl.ActivationStore.from_arrays(one, dict.fromkeys(HOOK_POINTS, rows))
    manifest = json.loads((one / "manifest.json").read_text())
    folder.mkdir()
    shutil.copy(one / "plan.json", folder)
    files = sorted((one / "shards/00000").iterdir())
    for i in range(n_shards):
        shard = folder / f"shards/{i:05d}"
        shard.mkdir(parents=True)
        for file in files:
            os.link(file, shard / file.name)
    content = {name: value for name, value in manifest.items() if name != "sha256"}
    content["shards"] = manifest["shards"] * n_shards
    content["totals"] = {"rows": rows_per_shard * n_shards, "bytes": 1}
    digest = hashlib.sha256(encoded(content)).hexdigest()
    (folder / "manifest.json").write_bytes(encoded({**content, "sha256": digest}))
    return folder


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shards", type=int, default=20_000)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--d-model", type=int, default=256)
    parser.add_argument("--gathered", type=int, default=400_000)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as tmp:
        found: dict[str, list[float]] = {}
        for n_shards in (200, args.shards // 4, args.shards):
            rows_per_shard = args.rows // n_shards
            folder = linked_store(Path(tmp) / f"of{n_shards}", n_shards, rows_per_shard, args.d_model)
            store = sl.ActivationStore(folder)
            rows = torch.arange(args.gathered) * (store.n_rows // args.gathered)

            def timed(name: str, call: Callable[[], Any], n: int = n_shards) -> None:
                wall, cpu = time.perf_counter(), time.process_time()
                call()
                wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
                found.setdefault(name, []).append(wall)
                line = {"shards": n, "what": name, "seconds": round(wall, 3), "of processor": round(cpu, 3)}
                print(json.dumps(line), flush=True)

            def trained(store: sl.ActivationStore = store, n: int = n_shards) -> None:
                fields = {"d_sae": 16 * args.d_model, "n_steps": 100, "eval_every_steps": 100}
                output = Path(tmp) / f"sae{n}"
                sl.train_sae(store, hook_point="b", output=output, k=32, progress=False, **fields)

            timed("open", lambda folder=folder: sl.ActivationStore(folder))
            timed("mean_sq_norm", lambda store=store: store.mean_sq_norm("a"))
            timed("held_out_rows", store.held_out_rows)
            timed("gather", lambda store=store, rows=rows: store.gather(rows, "a"))
            timed("gather again", lambda store=store, rows=rows: store.gather(rows, "a"))
            timed("100 steps", trained)
        print(f"{'':14}{'200':>10}{args.shards // 4:>10,}{args.shards:>10,}  × of the last")
        for name, (few, quarter, many) in found.items():
            ratios = f"{many / few:.2f} ({many / quarter:.1f} × 1/4)"
            print(f"{name:14}{few:10.2f}{quarter:10.2f}{many:10.2f}  {ratios}")


if __name__ == "__main__":
    main()
