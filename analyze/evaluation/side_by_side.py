"""Several SAEs scored on the same rows, side by side, with a line where their l0 differ."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn

from saelens_lite.arguments import takes_folders
from saelens_lite.misfits import names_misfits
from saelens_lite.sae.autoencoder import SparseAutoencoder
from saelens_lite.store.reader import ActivationStore
from saelens_lite.text_table import Lines, Tabular, number

from ..latents.compatibility import recorded_fraction
from .evaluate import evaluate_sae
from .result import BASELINE, MEAN, TRAINED, ZERO, Evaluation

_L0_RATIO = 1.1
"""l0 that differ by more are said to differ."""


@dataclass(frozen=True, slots=True)
class Evaluations(Tabular):
    """What `evaluate_saes` found; `print(found)`. `found["A"]` is the evaluation of the SAE of that name."""

    evaluations: Mapping[str, Evaluation]

    @names_misfits
    def __getitem__(self, name: str) -> Evaluation:
        if name not in self.evaluations:
            raise KeyError(f"no SAE {name!r}, there are {', '.join(self.evaluations)}")
        return self.evaluations[name]

    def to_dict(self) -> dict[str, Any]:
        """The evaluation of each, as `Evaluation.to_dict`."""
        return {name: one.to_dict() for name, one in self.evaluations.items()}

    def _records(self) -> list[dict[str, Any]]:
        rows = {name: one.to_dict()["rows"] for name, one in self.evaluations.items()}
        return [{"sae": name} | row for name, found in rows.items() for row in found if row["given"]]

    def _tables(self) -> list[tuple[str, Lines]]:
        """A line for each SAE and its baseline; the ablations once, since all read the same rows."""
        lines: Lines = []
        for place, (name, one) in enumerate(self.evaluations.items()):
            [(_, [heads, *rows])] = one._tables()
            cells = {row[0]: row[1:] for row in rows}
            lines += [] if lines else [heads]
            lines.append([name, *cells[TRAINED]])
            if one.row(BASELINE).given:
                lines.append([f"{name}: {BASELINE}", *cells[BASELINE]])
            if place == len(self.evaluations) - 1:
                lines += [[ablation, *cells[ablation]] for ablation in (ZERO, MEAN)]
        return [("", lines)]

    def _notes(self) -> list[str]:
        first = next(iter(self.evaluations.values()))
        l0 = {name: one.row(TRAINED).l0 or 0.0 for name, one in self.evaluations.items()}
        fewest, most = min(l0, key=l0.__getitem__), max(l0, key=l0.__getitem__)
        notes = []
        if l0[most] > _L0_RATIO * l0[fewest]:
            notes.append(
                f"l0 differ, from {number(l0[fewest], '.1f')} ({fewest}) to {number(l0[most], '.1f')} "
                f"({most}): more latents reconstruct more, so compare fvu and ΔCE of SAEs of like l0 alone"
            )
        own = [note for note in first._notes() if not note.startswith((TRAINED, BASELINE, "fvu of the"))]
        return notes + own

    __str__ = Tabular.table


@takes_folders
@names_misfits
def evaluate_saes(
    saes: Mapping[str, SparseAutoencoder],
    store: ActivationStore,
    model: nn.Module | None = None,
    baselines: Mapping[str, SparseAutoencoder] | None = None,
    *,
    held_out_fraction: float | None = None,
    **how: Any,
) -> Evaluations:
    """`evaluate_sae` of each SAE, on the same rows of one hook point.

    saes: by name; baselines: those of some of them, by the same names
    held_out_fraction, how: as in `evaluate_sae`; by default the smallest share that one of them records,
        since documents of a smaller share are held out by all
    raises: as `evaluate_sae`; ValueError for no SAE, or SAEs of several hook points
    """
    if not saes:
        raise ValueError("evaluate_saes expected at least one SAE, got none")
    if held_out_fraction is None:
        held_out_fraction = recorded_fraction([*saes.values(), *(baselines or {}).values()])
    found = {}
    for name, sae in saes.items():
        baseline = (baselines or {}).get(name)
        found[name] = evaluate_sae(sae, store, model, baseline, held_out_fraction=held_out_fraction, **how)
    points = {name: one.hook_point for name, one in found.items()}
    if len(set(points.values())) > 1:
        read = ", ".join(f"{name} {point}" for name, point in points.items())
        raise ValueError(f"evaluate_saes expected SAEs of one hook point, got {read}: score each place alone")
    return Evaluations(found)
