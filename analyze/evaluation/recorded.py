"""An evaluation as plain values, from the result or from the file that holds it."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from saelens_lite.json_data import Form, loads, misfit
from saelens_lite.store.places import canonical

from .result import TRAINED, Evaluation

_FORM: Form = {
    "hook_point": str, "held_out": bool, "n_tokens": int, "n_ce_tokens": int,
    "rows": [{"name": str, "given": bool, "fvu?": float, "delta_ce?": float}],
}  # fmt: skip


def recorded_evaluation(
    evaluation: Evaluation | str | os.PathLike[str], hook_point: str
) -> dict[str, Any]:
    """What Evaluation.to_dict() gives, of a result or of a file that `saelens-lite evaluate --output` wrote.

    raises: OSError where the file cannot be read; ValueError where it holds no evaluation of one SAE, or one
        at another hook point
    """
    values = evaluation.to_dict() if isinstance(evaluation, Evaluation) else _read(evaluation)
    at = values["hook_point"]
    if at != hook_point and canonical(at) is not None and canonical(hook_point) is not None:
        raise ValueError(f"expected an evaluation at {hook_point}, got one at {at}")
    return values


def _read(evaluation: str | os.PathLike[str]) -> dict[str, Any]:
    told = f"{evaluation} expected the evaluation of one SAE, which `saelens-lite evaluate --output` writes"
    try:
        values = loads(Path(evaluation).read_bytes())
    except ValueError as error:
        raise ValueError(f"{told}: {error}") from error
    if found := misfit(values, _FORM):
        raise ValueError(f"{told}: {found}")
    if TRAINED not in [row["name"] for row in values["rows"]]:
        raise ValueError(f"{told}: no row is named {TRAINED!r}")
    return values
