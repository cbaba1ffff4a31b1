"""One side of a study's split: its questions, the stream at each entity, and the answers under an edit."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from saelens_lite.lm.decoder import Decoder, evaluation_mode
from saelens_lite.lm.forward_state import EditInfo
from saelens_lite.lm.hooks import edit, run_to

from .answers import Answers, Judge, NextToken
from .questions import Position, Question, batches

Edit = Callable[[Tensor], AbstractContextManager]
"""From the tokens to edit, bool[batch width], to the edit."""


class Outcome(NamedTuple):
    """The model's answers under one edit: float64[n] of 0 and 1, and the margin where there is one.

    push: length of the change at the entity's last token over that of the stream, mean
    """

    refused: Tensor
    correct: Tensor
    margin: Tensor | None
    push: float

    def measures(self, known: Tensor) -> dict[str, Tensor]:
        found = {
            "hallucination": 1 - self.refused[~known],
            "refusal": self.refused[known],
            "accuracy": self.correct[known],
            "wrong": (1 - self.refused - self.correct)[known],
        }
        if self.margin is not None:
            found |= {"answer_margin": -self.margin[~known], "refusal_margin": self.margin[known]}
        return found


class Entities(NamedTuple):
    """One row for each entity: what is chosen from are entities, not questions.

    acts: float32[n d_model] at its last token, in its first question; known: bool[n]; names, types: n each
    """

    acts: Tensor
    known: Tensor
    names: list[str]
    types: list[str]


class Side:
    """Questions about known: bool[n] and other entities.

    clusters: the entity or group of each; acts: float32[n d_model] at the entity's last token
    """

    def __init__(
        self,
        model: nn.Module,
        tokenizer: Any,
        records: Sequence[Question],
        known: Sequence[bool],
        judge: NextToken | Judge,
        hook_point: str,
        position: Position,
        batch_size_seqs: int,
    ) -> None:
        self.model, self.hook_point = model, hook_point
        self._decoder = Decoder(model)
        self.known = torch.tensor(known, dtype=torch.bool)
        self.clusters = [record.cluster for record in records]
        self._batches = list(batches(tokenizer, records, batch_size_seqs, position))
        self._judges = [_bound(judge, tokenizer, batch.records) for batch in self._batches]
        self.acts = self._clean_acts()
        first: dict[tuple[str, bool], int] = {}
        for i, entity in enumerate(zip(self.clusters, known)):
            first.setdefault(entity, i)
        rows = list(first.values())
        names, types = [self.clusters[i] for i in rows], [records[i].type for i in rows]
        self.entities = Entities(self.acts[rows], self.known[rows], names, types)

    def outcome(self, make: Edit | None = None) -> Outcome:
        """The answers under an edit, or as they are. raises: ValueError for another number of them"""
        answers, seen, device = [], [], self._decoder.device
        for batch, judge in zip(self._batches, self._judges):
            inputs, reached = {name: value.to(device) for name, value in batch.inputs.items()}, []
            with (
                evaluation_mode(self._decoder),
                nullcontext() if make is None else make(batch.entity),
                self._recording(batch.last, reached),
            ):
                answers.append(judge(self.model, inputs))
            seen += reached
            given = [len(answers[-1].refused), len(answers[-1].correct)]
            if given != [len(batch.records)] * 2:
                raise ValueError(
                    f"judge expected to give {len(batch.records)} answers, refused and correct, got {given}"
                )
        refused, correct = (torch.cat([of[i].cpu().double() for of in answers]) for i in (0, 1))
        margins = [of.margin for of in answers]
        margin = None if any(m is None for m in margins) else torch.cat([m.cpu().double() for m in margins])
        return Outcome(refused, correct, margin, self._push(torch.cat(seen)))

    def push(self, make: Edit) -> float:
        """How far an edit moves the stream, without answers."""
        return self._push(self._clean_acts(make))

    def _push(self, acts: Tensor) -> float:
        return float(((acts - self.acts).norm(dim=1) / self.acts.norm(dim=1)).mean())

    def _clean_acts(self, make: Edit | None = None) -> Tensor:
        """float32[n d_model] at the last token of each entity."""
        found = []
        for batch in self._batches:
            edited = nullcontext() if make is None else make(batch.entity)
            with evaluation_mode(self._decoder), torch.no_grad(), edited:
                acts = run_to(self._decoder, [self.hook_point], **batch.inputs)[self.hook_point]
            found.append(acts[batch.last.to(acts.device)].float().cpu())
        return torch.cat(found)

    def _recording(self, last: Tensor, into: list[Tensor]) -> AbstractContextManager:
        """Keeps the stream at the entities' last tokens, of the first pass: a judge may generate."""

        def record(acts: Tensor, info: EditInfo) -> Tensor:
            if not into:
                into.append(acts.detach()[last.to(acts.device)].float().cpu())
            return acts

        return edit(self._decoder, self.hook_point, record)


def _bound(judge: NextToken | Judge, tokenizer: Any, records: Sequence[Question]) -> Callable[..., Answers]:
    if isinstance(judge, NextToken):
        return judge.bound(tokenizer, records)
    return lambda model, inputs: judge(model, inputs, records)
