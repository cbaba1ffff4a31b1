"""What the report of a long run costs: a metrics.jsonl of a million lines.

    python tests/bench/report_lines.py [--lines 1000000]

Lines are as training writes them: nine names each, held-out numbers every 1,000 steps. It prints the seconds
of the page (wall clock and of the processor), its peak memory, and that of the imports alone.
"""

from __future__ import annotations

import argparse
import json
import random
import resource
import tempfile
import time
from pathlib import Path

from saelens_lite.analyze.pages.report import report_page


def write_lines(path: Path, n_lines: int) -> None:
    draw = random.Random(0).random
    with path.open("w") as file:
        for step in range(1, n_lines + 1):
            line = {
                "step": step,
                "tokens": 4096 * step,
                "l0": 16 + draw(),
                "reconstruction": 8 / step + draw(),
            }
            line |= {"auxk": draw(), "dead@10000000": draw() if step > 1000 else None, "lr": draw() / 1000}
            line |= {"tokens_per_s": 50_000 * draw(), "left_out_share": 0.0}
            file.write(json.dumps(line) + "\n")
            if step % 1000 == 0:
                held_out = {"held_out_fvu": draw(), "held_out_l0": 16 + draw(), "held_out_delta_ce": draw()}
                file.write(json.dumps({"step": step, **held_out}) + "\n")


def peak_mb() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--lines", type=int, default=1_000_000)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as tmp:
        run = Path(tmp) / "run"
        run.mkdir()
        write_lines(run / "metrics.jsonl", args.lines)
        imports, wall, cpu = peak_mb(), time.perf_counter(), time.process_time()
        report_page(run, Path(tmp) / "report.html")
        wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
        print(f"{args.lines:,} lines: {wall:.1f} s ({cpu:.1f} s of processor), {peak_mb():.0f} MB at most,")
        print(f"of which {imports:.0f} MB after the imports")


if __name__ == "__main__":
    main()
