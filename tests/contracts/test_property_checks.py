"""The twelve properties of the analysis, and that each has tests: `pytest -m property_check` runs them
all."""

import ast
from collections import defaultdict
from pathlib import Path

TESTS = Path(__file__).parents[1]
CHECKS = {
    1: "EV of the mean predictor is 0; EV is unchanged by a constant shift and independent of the batch "
    "split.",
    2: "Identity SAE: ΔCE = 0, KL = 0, CE score = 1. Zero SAE: the row of zero ablation.",
    3: "A no-op edit leaves logits bit-identical; edits compose; hooks are gone after an exception.",
    4: "Streamed top-k, histogram and density equal brute force on a dense matrix; shards merged equal a "
    "single run; "
    "batch size does not matter.",
    5: "Steered generate: cache = no cache, batched = single, left = right padding; prompt-only leaves "
    "generated steps "
    "untouched.",
    6: "Clamped to v, a latent is v on re-encoding where encoder and decoder allow; scale 1 = no-op; ablate "
    "= clamp 0.",
    7: "Members of an interval lie inside its bin; bins cover all positives; zero is never shown.",
    8: "Token strings concatenated are the decoded text, for emoji, CJK, Cyrillic and byte tokens.",
    9: "Escape fuzz: a parsed page contains no element that came from token text; it loads with the network "
    "blocked.",
    10: "Bootstrap intervals cover about 95 % on simulated data; rank p is uniform under the null.",
    11: "Planted features: selection finds the known directions; frozen and random baselines do not.",
    12: "Toy hallucination study: sign of effect, random-control rank, trained > frozen, from one command.",
}


def marked() -> dict[int, list[str]]:
    """The tests of each property, by the decorator `@pytest.mark.property_check(n)`."""
    found = defaultdict(list)
    for file in sorted(TESTS.rglob("test_*.py")):
        text = file.read_text(encoding="utf-8")
        for function in ast.walk(ast.parse(text)) if "property_check(" in text else ():
            if isinstance(function, ast.FunctionDef) and function.name.startswith("test_"):
                for mark in function.decorator_list:
                    if isinstance(mark, ast.Call) and ast.unparse(mark.func) == "pytest.mark.property_check":
                        found[ast.literal_eval(mark.args[0])].append(
                            f"{file.relative_to(TESTS)}::{function.name}"
                        )
    return found


def test_each_property_has_a_test():
    found = marked()
    assert set(found) <= set(CHECKS), "a number that no property has"
    missing = [f"{n}: {CHECKS[n]}" for n in CHECKS if n not in found]
    assert not missing, missing
