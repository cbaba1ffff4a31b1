"""The table and the verdicts of the quality benchmark, from its finished runs; for `quality.py --report`."""

from __future__ import annotations

import itertools
import json
import math
import statistics
from typing import Any

Line = dict[str, Any]
"""One finished run, as quality.py files it."""


def select(lines: list[Line], contestant: str, kind: str, steps: int | None) -> list[Line]:
    wanted = (contestant, kind, steps)
    return [line for line in lines if (line["contestant"], line["kind"], line["steps"]) == wanted]


def table_order(line: Line) -> tuple[Any, ...]:
    return (line["contestant"], line["kind"], line["steps"], line["l1_coeff"] or 0, line["lr"], line["seed"])


def interpolate(lines: list[Line], l0: float) -> float | None:
    """fvu at this l0, linear in log l0 between the two nearest runs; None outside their range."""
    points = sorted((math.log(line["l0"]), line["fvu"]) for line in lines)
    at = math.log(l0)
    for (left, fvu_left), (right, fvu_right) in itertools.pairwise(points):
        if left <= at <= right:
            return (
                fvu_left + (fvu_right - fvu_left) * (at - left) / (right - left) if right > left else fvu_left
            )
    return None


def best_seeds(lines: list[Line]) -> list[Line]:
    """All seeds at the learning rate with the least fvu on seed 0."""
    first_seed = [line for line in lines if line["seed"] == 0]
    if not first_seed:
        return []
    lr = min(first_seed, key=lambda line: line["fvu"])["lr"]
    return [line for line in lines if line["lr"] == lr]


def mean_of(lines: list[Line], name: str) -> float:
    return statistics.fmean(line[name] for line in lines)


def topk_verdict(label: str, ours: list[Line], saelens: list[Line], n_seeds: int) -> Line:
    if not ours or not saelens:
        return {"verdict": label, "missing": "runs of " + ("ours" if not ours else "saelens")}
    sides = {
        side: {
            "lr": lines[0]["lr"],
            "seeds": len(lines),
            "steps": lines[0]["steps"],
            "fvu": mean_of(lines, "fvu"),
            "fvu_min": min(line["fvu"] for line in lines),
            "fvu_max": max(line["fvu"] for line in lines),
            "dead": mean_of(lines, "dead"),
            "train_s": mean_of(lines, "train_s"),
        }
        for side, lines in (("ours", ours), ("saelens", saelens))
    }
    return {
        "verdict": label,
        **sides,
        "complete": all(side["seeds"] == n_seeds for side in sides.values()),
        "fvu_lower": sides["ours"]["fvu"] < sides["saelens"]["fvu"],
        "dead_no_higher": sides["ours"]["dead"] <= sides["saelens"]["dead"],
    }


KEEP_K_KINDS = ("topk", "batchtopk", "matryoshka")
DEFAULT_KIND = "topk"
"""Of TrainConfig."""


def keep_k_summary(lines: list[Line], steps: int) -> list[Line]:
    """A line for each side and kind that keeps k latents: its seeds at the learning rate that is best on seed
    0."""
    summary = []
    for contestant in ("saelens", "ours"):
        for kind in KEEP_K_KINDS:
            if not (seeds := best_seeds(select(lines, contestant, kind, steps))):
                continue
            fvus, l0s = ([line[name] for line in seeds] for name in ("fvu", "l0"))
            summary.append(
                {
                    "trainer": f"{contestant} {kind}",
                    "lr": seeds[0]["lr"],
                    "seeds": len(seeds),
                    "fvu": statistics.fmean(fvus),
                    "fvu_min": min(fvus),
                    "fvu_max": max(fvus),
                    "l0_min": min(l0s),
                    "l0_max": max(l0s),
                    "dead": max(line["dead"] for line in seeds),
                }
            )
    return summary


def print_keep_k(summary: list[Line]) -> None:
    """A markdown table of it, fvu and l0 of the SAEs as saved, dead the worst seed's."""
    print("| trainer | lr | seeds | fvu as saved (mean; least – greatest) | l0 as saved | dead |")
    print("|---|---|---|---|---|---|")
    for line in summary:
        print(
            f"| {line['trainer']} | {line['lr']:g} | {line['seeds']} | {line['fvu']:.4f}; "
            f"{line['fvu_min']:.4f} – "
            f"{line['fvu_max']:.4f} | {line['l0_min']:.2f} – {line['l0_max']:.2f} | {line['dead']:.4f} |"
        )


def default_verdict(summary: list[Line]) -> Line:
    """Whether our default's worst seed is below the best seed of each kind of theirs, and how far the l0 are
    apart."""
    label = "worst of our default below the best of each kind of SAELens"
    ours = next((line for line in summary if line["trainer"] == f"ours {DEFAULT_KIND}"), None)
    theirs = [line for line in summary if line["trainer"].startswith("saelens")]
    if ours is None or not theirs:
        return {"verdict": label, "missing": "runs of " + ("ours" if ours is None else "saelens")}
    return {
        "verdict": label,
        "ours_worst": ours["fvu_max"],
        "dead_worst": ours["dead"],
        **{
            line["trainer"].replace(" ", "_"): {
                "best": line["fvu_min"],
                "lower": ours["fvu_max"] < line["fvu_min"],
                "l0_apart": max(ours["l0_max"], line["l0_max"]) / min(ours["l0_min"], line["l0_min"]) - 1,
            }
            for line in theirs
        },
    }


def l1_verdict(ours: list[Line], saelens: list[Line]) -> Line:
    """Both curves at every l0 at which one side has a run and the other's range reaches."""
    ours, saelens = l1_curve(ours), l1_curve(saelens)
    l0s = sorted({line["l0"] for line in ours + saelens if line["l0"] > 0})
    compared = [
        {"l0": l0, "ours": ours_fvu, "saelens": saelens_fvu}
        for l0 in l0s
        if (ours_fvu := interpolate(ours, l0)) is not None
        and (saelens_fvu := interpolate(saelens, l0)) is not None
    ]
    lower = all(point["ours"] < point["saelens"] for point in compared) if compared else None
    return {
        "verdict": "relu against standard, fvu at equal l0",
        "compared": compared,
        "fvu_lower_everywhere": lower,
    }


def objective(line: Line) -> float:
    """An L1 SAE's own training objective on the validation rows, in the scaled space in which it was trained.

    Its learning rate is judged by this: fvu alone would favour whichever rate happens to land at a higher l0.
    """
    scale = line["input_scale"]
    return scale**2 * line["mse"] + line["l1_coeff"] * scale * line["l1"]


def l1_curve(lines: list[Line]) -> list[Line]:
    """The runs of an L1 kind at the learning rate with the least objective at the middle coefficient."""
    coeffs = sorted({line["l1_coeff"] for line in lines})
    middle = [line for line in lines if line["l1_coeff"] == coeffs[len(coeffs) // 2]]
    lr = min(middle, key=objective)["lr"] if middle else None
    return [line for line in lines if line["lr"] == lr]


def report(
    lines: list[Line], *, steps: int, longer_steps: int | None, step_time_ratio: float | None, n_seeds: int
) -> None:
    """A markdown table of every finished run, one of the kinds that keep k latents, then one JSON verdict a
    line.

    steps, longer_steps: of the comparison at equal steps, and of ours at equal wall-clock time (None before
    the step was timed)
    """
    print("| trainer | lr | l1 | seed | steps | fvu | l0 | dead | training s | CPU s |")
    print("|---|---|---|---|---|---|---|---|---|---|")
    for line in sorted(lines, key=table_order):
        l1 = "" if line["l1_coeff"] is None else f"{line['l1_coeff']:g}"
        print(
            f"| {line['contestant']} {line['kind']} | {line['lr']:g} | {l1} | {line['seed']} "
            f"| {line['steps']} | {line['fvu']:.4f} | {line['l0']:.1f} "
            f"| {line['dead']:.3f} | {line['train_s']:.0f} | {line.get('train_cpu_s', math.nan):.0f} |"
        )
    print()
    summary = keep_k_summary(lines, steps)
    print_keep_k(summary)
    print()
    print(json.dumps(default_verdict(summary)))
    saelens = best_seeds(select(lines, "saelens", "topk", steps))
    ours = best_seeds(select(lines, "ours", "topk", steps))
    longer = best_seeds(select(lines, "ours", "topk", longer_steps))
    print(json.dumps(topk_verdict("topk, equal steps", ours, saelens, n_seeds)))
    verdict = topk_verdict("topk, equal wall-clock time", longer, saelens, n_seeds)
    print(json.dumps({**verdict, "step_time_ratio": step_time_ratio}))
    relu, standard = select(lines, "ours", "relu", steps), select(lines, "saelens", "standard", steps)
    if relu and standard:
        print(json.dumps(l1_verdict(relu, standard)))
