"""The study's two outcomes over worlds of other seeds, as they were named before any of these was run.

    OMP_NUM_THREADS=1 python tests/bench/study_primary.py --folder runs/primary

Primary: the top three latents of known people held on the last name of people never seen, mean over doses
1/4, 1/2 and 1: hallucination that the trained SAE's raise less what the frozen decoder's do, at equal push.
Mitigation: what the unknown people's latents lose at a dose that costs at most 5 points of accuracy
(fixed_outcomes.py). Developed on seeds 0 to 2; seeds 100 to 109 are run once. A JSON line a seed in
results.jsonl, whatever it says, and then a t interval over seeds. Seeds that are there are not run again.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

import saelens_lite as sl
from saelens_lite.analyze.stats.bootstrap import student_t
from saelens_lite.demo.world import WorldConfig, make_world

DOSES = (0.25, 0.5, 1.0)
N_SETS = 200


def outcomes(folder: Path, seed: int) -> dict[str, object]:
    split = sl.stats.Split(seed=seed)
    make_world(folder, WorldConfig(seed=seed), split)
    study = sl.HallucinationStudy(
        AutoModelForCausalLM.from_pretrained(folder / "model").eval(),
        AutoTokenizer.from_pretrained(folder / "model"),
        sl.SparseAutoencoder.load(folder / "sae"),
        sl.study.read_questions(folder / "records.jsonl", complete=True),
        sl.study.NextToken(["unknown"]),
        baseline=sl.SparseAutoencoder.load(folder / "sae" / "frozen"),
        split=split,
    )
    result = study.run(study.select(n=3, n_ablated=3), doses=DOSES, n_controls=N_SETS, seed=seed)
    clean = {name: of.to_dict() for name, of in result.rows[0].measures.items()}
    return {"seed": seed, "threads": torch.get_num_threads(), "clean": clean} | {
        of.name: of.to_dict() for of in result.fixed
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--folder", type=Path, default=Path("runs/primary"))
    parser.add_argument("--seeds", type=int, nargs="+", default=list(range(100, 110)))
    given = parser.parse_args()
    given.folder.mkdir(parents=True, exist_ok=True)
    results = given.folder / "results.jsonl"
    lines = results.read_text().splitlines() if results.exists() else []
    done = {row["seed"]: row for row in map(json.loads, lines)}
    for seed in given.seeds:
        if seed not in done:
            done[seed] = outcomes(given.folder / f"world{seed}", seed)
            with results.open("a") as file:
                file.write(json.dumps(done[seed]) + "\n")
        print(json.dumps(done[seed]), flush=True)
    for name in ("primary", "mitigation"):
        values = [done[seed][name]["less_baseline"]["estimate"] for seed in given.seeds]
        if len(values) > 1:
            half = student_t(0.975, len(values) - 1) * statistics.stdev(values) / math.sqrt(len(values))
            mean = statistics.mean(values)
            print(
                json.dumps(
                    {"of": name, "n": len(values), "mean": mean, "low": mean - half, "high": mean + half}
                )
            )


if __name__ == "__main__":
    main()
