"""Eight minutes on a GPU machine: is what a CPU cannot show right there, and how fast is it?

    make gpu                                              # of the Makefile, or
    python tests/bench/gpu.py --output gpu_run            # from a plain checkout; installs nothing
    python tests/bench/gpu.py --output dry --dry-run      # every step on a CPU: tiny, Triton interpreted

It needs torch >= 2.8, triton and transformers. Every step of gpu_steps.py runs in a process of its own with a
limit of its own; the next runs after one that fails. Results are written as they come: JSON lines in
DIR/gpu.jsonl, and DIR/gpu.md, the tables for RESULTS.md. A verdict closes. Peers (SAELens, sparsify) are
timed where they can be imported. Exit 1 if a step failed. Not a test.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path

LIMITS_S = {
    "environment": 30,
    "kernels": 60,
    "kinds": 60,
    "step_times": 110,
    "resume": 45,
    "harvest": 60,
    "analysis": 45,
    "generate": 30,
    "memory": 30,
    "processes": 45,
    "peers": 60,
}
"""Seconds a step may take. On an H100 they need less than half of these."""
TOTAL_S = 480
DRY_TIMES = 6
"""How much more of both a dry run may take, on a CPU that others use too."""
HERE = Path(__file__).resolve().parent


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--output", type=Path, required=True, help="folder of the results")
    parser.add_argument("--dry-run", action="store_true", help="tiny sizes on a CPU, Triton interpreted")
    parser.add_argument("--steps", nargs="+", choices=LIMITS_S, default=list(LIMITS_S))
    parser.add_argument("--break-step", choices=LIMITS_S, help="let this step fail, to see the rest go on")
    args = parser.parse_args()
    args.output.mkdir(parents=True, exist_ok=True)
    lines, table = args.output / "gpu.jsonl", args.output / "gpu.md"
    lines.write_text("")
    results, begun, times = [], time.monotonic(), DRY_TIMES if args.dry_run else 1
    for step in args.steps:
        left = times * TOTAL_S - (time.monotonic() - begun)
        results += (
            run(step, min(times * LIMITS_S[step], left), args, lines) if left > 5 else [skipped(step, lines)]
        )
        table.write_text(as_markdown(results))
    failed = [result["step"] for result in results if result.get("failed")]
    verdict = f"{len(args.steps) - len(set(failed))} of {len(args.steps)} steps passed"
    verdict += f"; failed: {', '.join(dict.fromkeys(failed))}" if failed else ""
    verdict += f"; {time.monotonic() - begun:.0f} s; tables in {table}"
    with table.open("a") as file:
        file.write(f"\n{verdict}\n")
    print(verdict)
    raise SystemExit(bool(failed))


def run(step: str, limit_s: float, args: argparse.Namespace, lines: Path) -> list[dict]:
    """The step's results, each a dict with "step"; the last one says what failed, if anything did."""
    env = os.environ | {"PYTHONPATH": f"{HERE.parents[1]}{os.pathsep}{HERE}", "PYTHONUNBUFFERED": "1"}
    env.pop("SAELENS_LITE_KERNELS", None)
    if args.dry_run:
        env |= {"TRITON_INTERPRET": "1", "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(HERE / "gpu_steps.py"), step, str(args.output)]
    command += ["--dry-run"] * args.dry_run + ["--break"] * (args.break_step == step)
    begun = time.monotonic()
    log = args.output / f"{step}.log"
    with log.open("w") as errors, lines.open("a") as out:
        process = subprocess.Popen(command, env=env, stdout=subprocess.PIPE, stderr=errors, text=True)
        try:
            said, _ = process.communicate(timeout=limit_s)
            problem = f"exit {process.returncode}" if process.returncode else None
        except subprocess.TimeoutExpired:
            process.kill()
            said, _ = process.communicate()
            problem = f"more than {limit_s:.0f} s"
        found = [json.loads(line) for line in said.splitlines() if line.startswith("{")]
        wrong = [result["wrong"] for result in found if result.get("wrong")]
        if problem and problem.startswith("exit"):
            last = [line for line in log.read_text().splitlines() if line.strip()][-1:]
            problem = f"{problem}: {last[0][:300] if last else 'nothing said'}"
        end = {"seconds": round(time.monotonic() - begun, 1)}
        if problem or wrong:
            end["failed"] = "; ".join(filter(None, [problem, *wrong]))
        found.append(end)
        for result in found:
            result["step"] = step
            out.write(json.dumps(result) + "\n")
    print(f"{step}: {end.get('failed', 'passed')} ({end['seconds']} s)", flush=True)
    return found


def skipped(step: str, lines: Path) -> dict:
    result = {"step": step, "failed": f"not begun: {TOTAL_S} s were over", "seconds": 0}
    with lines.open("a") as out:
        out.write(json.dumps(result) + "\n")
    print(f"{step}: {result['failed']}", flush=True)
    return result


def as_markdown(results: list[dict]) -> str:
    """A table a step; results of one step with other columns get a table of their own."""
    parts = []
    for step in dict.fromkeys(result["step"] for result in results):
        rows = [result for result in results if result["step"] == step]
        end = rows.pop()
        parts.append(f"### {step}: {end.get('failed', 'passed')} ({end['seconds']} s)\n")
        shown: list[str] = []
        for row in rows:
            names = [name for name in row if name not in ("step", "wrong")]
            if names != shown:
                shown = names
                parts.append("\n| " + " | ".join(names) + " |\n|" + "---|" * len(names))
            parts.append("| " + " | ".join(_cell(row[name]) for name in names) + " |")
        parts.append("")
    return "\n".join(parts) + "\n"


def _cell(value: object) -> str:
    text = f"{value:.4g}" if isinstance(value, float) else "" if value is None else str(value)
    return text.replace("|", "\\|")


if __name__ == "__main__":
    main()
