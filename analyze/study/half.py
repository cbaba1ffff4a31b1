"""One side of a study's split: its questions, the stream at each entity, and the answers under an edit.

Positions are columns of the padded prompts. A judge may run longer texts that begin with these prompts: an
edit then acts on the same columns, or with generated=True on what stands behind them too.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from saelens_lite.lm.decoder import Decoder, evaluation_mode
from saelens_lite.lm.forward_state import EditInfo
from saelens_lite.lm.hooks import edit, run_to
from saelens_lite.lm.positions import Positions, Where

from .answers import Answers, Judge, NextToken
from .generation import OpenAnswer
from .kept import Kept, digest_of
from .questions import Batch, Position, Question, batches

Edit = Callable[[Where], AbstractContextManager]
"""From the tokens to edit, bool[batch width] or, with generated tokens, a function of EditInfo, to the
edit."""


_COLUMNS = ("refused", "correct", "push")


class Outcome(NamedTuple):
    """The model's answers under one edit: float64[n] of 0 and 1, and the margin where there is one.

    push: length of the change at the entity's last token over that of the stream, mean
    texts: the answers, where the judge gives them
    """

    refused: Tensor
    correct: Tensor
    margin: Tensor | None
    push: float
    texts: tuple[str, ...] = ()

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
    first: the first question of each of the `entities`
    """

    def __init__(
        self,
        model: nn.Module,
        tokenizer: Any,
        records: Sequence[Question],
        known: Sequence[bool],
        judge: NextToken | OpenAnswer | Judge,
        hook_point: str,
        position: Position,
        batch_size_seqs: int,
        generated: bool = False,
        kept: Kept | None = None,
    ) -> None:
        self.model, self.hook_point = model, hook_point
        self._decoder, self._generated, self._kept = Decoder(model), generated, kept
        self.known = torch.tensor(known, dtype=torch.bool)
        self.records, self.clusters = tuple(records), [record.cluster for record in records]
        self._size = batch_size_seqs
        self._batches = list(batches(tokenizer, records, batch_size_seqs, position))
        self._judges = [_bound(judge, tokenizer, batch.records) for batch in self._batches]
        self.acts = self._clean_acts()
        first: dict[tuple[str, bool], int] = {}
        for i, entity in enumerate(zip(self.clusters, known)):
            first.setdefault(entity, i)
        self.first = rows = list(first.values())
        names, types = [self.clusters[i] for i in rows], [records[i].type for i in rows]
        self.entities = Entities(self.acts[rows], self.known[rows], names, types)

    def outcome(self, make: Edit | None = None, key: str = "") -> Outcome:
        """The answers under an edit, or as they are.

        key: says which edit it is, for what is kept between runs
        raises: ValueError for another number of answers, or from a judge that runs other texts
        """
        found = [self._of_batch(i, make, key) for i in range(len(self._batches))]
        refused, correct, push = (torch.cat([of[name] for of in found]) for name in _COLUMNS)
        margins = [of["margin"] for of in found]
        margin = None if any(m is None for m in margins) else torch.cat(margins)
        texts = tuple(text for of in found for text in of["texts"] or ())
        return Outcome(refused, correct, margin, float(push.mean()), texts)

    def _of_batch(self, i: int, make: Edit | None, key: str) -> dict[str, Any]:
        """refused, correct, push and margin float64[n], and texts, of one batch; margin and texts may be
        None."""
        if self._kept is None:
            return self._answered(i, make)
        inputs = self._batches[i].inputs
        real = zip(inputs["input_ids"], inputs["attention_mask"].bool())
        names = [digest_of(key, ids[mask]) for ids, mask in real]
        rows = [self._kept.get(name) for name in names]
        if None in rows:
            found = {name: of if of is None else list(of) for name, of in self._answered(i, make).items()}
            rows = [
                {name: of and (of[j] if name == "texts" else of[j].item()) for name, of in found.items()}
                for j in range(len(names))
            ]
            self._kept.add(dict(zip(names, rows)))
        columns = {name: [row[name] for row in rows] for name in rows[0]}
        return {
            name: None if None in of else of if name == "texts" else torch.tensor(of, dtype=torch.float64)
            for name, of in columns.items()
        }

    def _answered(self, i: int, make: Edit | None) -> dict[str, Any]:
        batch, reached, device = self._batches[i], [], self._decoder.device
        inputs = {name: value.to(device) for name, value in batch.inputs.items()}
        with (
            evaluation_mode(self._decoder),
            nullcontext() if make is None else make(self._where(batch)),
            self._recording(batch.last, reached),
        ):
            answers = self._judges[i](self.model, inputs)
        given = [len(answers.refused), len(answers.correct)]
        if given != [len(batch.records)] * 2:
            raise ValueError(
                f"judge expected to give {len(batch.records)} answers, refused and correct, got {given}"
            )
        if not reached:
            raise ValueError("judge expected to run the model on the prompts, got no pass of it")
        start = sum(len(of.records) for of in self._batches[:i])
        change = self._relative(reached[0], slice(start, start + len(batch.records)))
        margin = None if answers.margin is None else answers.margin.cpu().double()
        columns = (answers.refused.cpu().double(), answers.correct.cpu().double(), change.double())
        texts = None if answers.texts is None else list(answers.texts)
        return {**dict(zip(_COLUMNS, columns)), "margin": margin, "texts": texts}

    def tokens_of(self, i: int) -> tuple[list[int], list[int], int]:
        """Of question i: its tokens, those of the entity (or prompt), and the place of the last of these."""
        batch, row = self._batches[i // self._size], i % self._size
        real = batch.inputs["attention_mask"][row].bool()
        ids, whole = batch.inputs["input_ids"][row][real], batch.whole[row][real]
        return ids.tolist(), ids[whole].tolist(), int(whole.nonzero().max())

    def push(self, make: Edit) -> float:
        """How far an edit moves the stream, without answers."""
        return float(self._relative(self._clean_acts(make), slice(None)).mean())

    def _relative(self, acts: Tensor, rows: slice) -> Tensor:
        return (acts - self.acts[rows]).norm(dim=1) / self.acts[rows].norm(dim=1)

    def _where(self, batch: Batch) -> Where:
        return _and_behind(batch.entity) if self._generated else batch.entity

    def _clean_acts(self, make: Edit | None = None) -> Tensor:
        """float32[n d_model] at the last token of each entity."""
        found = []
        for batch in self._batches:
            edited = nullcontext() if make is None else make(self._where(batch))
            with evaluation_mode(self._decoder), torch.no_grad(), edited:
                acts = run_to(self._decoder, [self.hook_point], **batch.inputs)[self.hook_point]
            found.append(acts[batch.last.to(acts.device)].float().cpu())
        return torch.cat(found)

    def _recording(self, last: Tensor, into: list[Tensor]) -> AbstractContextManager:
        """Keeps the stream at the entities' last tokens, of the first pass: a judge may generate."""

        def record(acts: Tensor, info: EditInfo) -> Tensor:
            if not into:
                if len(acts) != len(last) or acts.shape[1] < last.shape[1]:
                    raise ValueError(
                        f"a judge expected to run the {len(last)} prompts of {last.shape[1]} columns that "
                        "it got, "
                        "or longer texts that begin with them, row by row, got a first pass of "
                        f"{list(acts.shape[:2])}: put what follows behind input_ids and attention_mask"
                    )
                prompt = acts.detach()[:, : last.shape[1]]
                into.append(prompt[last.to(acts.device)].float().cpu())
            return acts

        return edit(self._decoder, self.hook_point, record)


def _and_behind(mask: Tensor) -> Callable[[EditInfo], Tensor]:
    """What the mask says of the prompt, and all that comes behind it."""
    in_prompt = Positions(where=mask)

    def where(info: EditInfo) -> Tensor:
        return in_prompt(info) | (info.columns >= mask.shape[1])

    return where


def _bound(
    judge: NextToken | OpenAnswer | Judge, tokenizer: Any, records: Sequence[Question]
) -> Callable[..., Answers]:
    if isinstance(judge, NextToken | OpenAnswer):
        return judge.bound(tokenizer, records)
    return lambda model, inputs: judge(model, inputs, records)
