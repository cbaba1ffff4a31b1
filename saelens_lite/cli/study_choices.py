"""`saelens-lite study --multiple-choice`: TruthfulQA's scores of a model, by log probability."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import nn

from saelens_lite.json_data import loads
from saelens_lite.text_table import Lines, Tabular, span

if TYPE_CHECKING:
    from saelens_lite.analyze.answers.choices import Choice, MultipleChoice
    from saelens_lite.analyze.stats.bootstrap import Interval

SCORES = {"mc0": "accuracy", "mc1": "accuracy", "mc2": "mass"}
"""Lists of options in a file of TruthfulQA's form, and what of each is its score."""


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class ChoiceScores(Tabular):
    """found: by "mc0", "mc1" and "mc2", as far as the file has them"""

    found: dict[str, MultipleChoice]

    _left = 1
    __str__ = Tabular.table

    def _records(self) -> list[dict[str, Any]]:
        return [
            {"score": name.upper(), "asked": asked.to_dict(), "hidden": hidden.to_dict(), "n": n}
            for name, asked, hidden, n in self._scores()
        ]

    def _tables(self) -> list[tuple[str, Lines]]:
        heads = ["", "question asked", "95 % interval", "question hidden", "95 % interval", "questions"]
        lines = [
            [name.upper(), *_cells(asked), *_cells(hidden), f"{n:,}"]
            for name, asked, hidden, n in self._scores()
        ]
        return [("", [heads, *lines])]

    def _notes(self) -> list[str]:
        preset = next(iter(self.found.values())).preset
        return [
            f"by log probability, prompt {preset!r}; with the question hidden, wording alone tells"
        ]

    def _scores(self) -> list[tuple[str, Interval, Interval, int]]:
        return [
            (name, getattr(of, SCORES[name]), getattr(of, f"{SCORES[name]}_hidden"), len(of.scores))
            for name, of in self.found.items()
        ]


def _cells(of: Interval) -> list[str]:
    return [f"{of.estimate.item():.3f}", span(of.low.item(), of.high.item(), ".3f")]


def read_lists(path: str) -> dict[str, list[Choice]]:
    """The questions with each of the lists that a file has, read before a model is.

    raises: ValueError for a file of another form, or without any of the lists
    """
    from saelens_lite.analyze.answers.choices import read_choices
    from saelens_lite.data_files import opened

    with opened(path) as file:
        table = loads(file.read())
    first = table[0] if isinstance(table, list) and table and isinstance(table[0], dict) else {}
    names = [name for name in SCORES if f"{name}_targets" in first]
    if not names:
        raise ValueError(
            f"{path} expected questions with mc0_targets, mc1_targets or mc2_targets, as TruthfulQA's "
            f"mc_task.json has, got {', '.join(map(str, first)) or 'none'}"
        )
    return {name: read_choices(Path(path), name) for name in names}


def scored(
    model: nn.Module, tokenizer: Any, lists: dict[str, list[Choice]], preset: str | None, batch_size_seqs: int
) -> ChoiceScores:
    """The scores of a model. preset: as `multiple_choice` takes it"""
    from saelens_lite.analyze.answers.choices import multiple_choice

    how = {"preset": preset, "batch_size_seqs": batch_size_seqs}
    return ChoiceScores(
        {name: multiple_choice(model, tokenizer, choices, **how) for name, choices in lists.items()}
    )
