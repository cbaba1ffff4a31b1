"""How near choose_l0 comes to a planted l0: ten worlds of nearly orthogonal features, one in superposition.

    OMP_NUM_THREADS=1 python tests/bench/l0_choice.py --output runs/l0_choice

Width 128; 96 features, and 384 in the last two worlds; 128 (384) latents; batchtopk, 1,000 steps of 512 of
150,000 rows. l0 8, 12, 16, 24 and 32, two seeds each. A JSON line a world in results.jsonl: the planted l0,
what was chosen (null: nothing stood out), the curve and CPU seconds. Worlds that are there are not run again.
"""

from __future__ import annotations

import argparse
import itertools
import json
import time
from pathlib import Path

import torch

from saelens_lite.synthetic import SyntheticActivations, SyntheticConfig
from saelens_lite.train.l0_choice import choose_l0

ROOT = Path(__file__).resolve().parents[2]
WORLDS = [(128, 96, l0, seed) for l0, seed in itertools.product((8, 12, 16, 24, 32), (0, 1))]
WORLDS += [(128, 384, 16, seed) for seed in (0, 1)]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--output", type=Path, default=ROOT / "runs/l0_choice")
    output = parser.parse_args().output
    output.mkdir(parents=True, exist_ok=True)
    results = output / "results.jsonl"
    lines = [json.loads(line) for line in results.read_text().splitlines()] if results.exists() else []
    done = {tuple(line["world"]) for line in lines}
    for world in WORLDS:
        if world in done:
            continue
        width, n_features, l0, seed = world
        folder = output / "-".join(map(str, world))
        if not (folder / "store/manifest.json").exists():
            config = SyntheticConfig(d_model=width, n_features=n_features, l0=l0, seed=seed)
            SyntheticActivations(config).to_store(folder / "store", 150_000)
        began_s = time.process_time()
        choice = choose_l0(
            folder / "store", kind="batchtopk", d_sae=max(width, n_features), n_steps=1000,
            batch_size_rows=512, device="cpu", output=str(folder / "runs"), progress=False,
        )  # fmt: skip
        line = {"world": world, "planted": l0, "chosen": choice.chosen, "why": choice.why}
        line |= {"curve": dict(zip(choice.values, choice.cosine, strict=True)), "runs": len(choice.values)}
        line |= {"cpu_s": round(time.process_time() - began_s, 1), "threads": torch.get_num_threads()}
        lines.append(line)
        with results.open("a") as file:
            file.write(json.dumps(line) + "\n")
        print(json.dumps(line), flush=True)
    near = [abs(line["chosen"] / line["planted"] - 1) <= 0.1 for line in lines if line["chosen"]]
    print(f"{sum(near)} of {len(lines)} within 10 %, {len(lines) - len(near)} without a choice")


if __name__ == "__main__":
    main()
