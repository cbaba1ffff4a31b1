"""Who is known, from what was answered; counts by relation, with examples."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from saelens_lite.text_table import aligned

from .half import Outcome
from .questions import Question

_NAMES = {True: "known", False: "unknown", None: "between"}
_LONGEST = 60


def labelled(
    records: Sequence[Question],
    correct: Sequence[float],
    by: Literal["answers", "share"],
    n_right: int,
    min_share: float,
) -> list[bool | None]:
    """Whether each record's entity is known, by the share of right answers to each record."""
    of_entity: dict[str, list[float]] = {}
    for record, value in zip(records, correct):
        of_entity.setdefault(record.cluster, []).append(value)

    def known(right: list[float]) -> bool | None:
        if not any(right):
            return False
        enough = min_share * len(right) if by == "share" else min(n_right, len(right))
        return True if sum(right) >= enough else None

    labels = {cluster: known(right) for cluster, right in of_entity.items()}
    return [labels[record.cluster] for record in records]


def check_labels(
    records: Sequence[Question],
    testing: Sequence[bool],
    labels: Sequence[bool | None],
    answered: Outcome | None,
) -> None:
    """raises: ValueError unless both sides of the split have two known and two unknown entities

    answered: the answers that the labels come from, if they do
    """
    for side, name in ((False, "selecting"), (True, "testing")):
        for known in (True, False):
            of_records = zip(records, testing, labels)
            found = {record.cluster for record, t, label in of_records if t == side and label is known}
            if len(found) >= 2:
                continue
            source, way_out = "", "give records of more entities"
            if answered is not None:
                right, refused = (of.mean().item() for of in (answered.correct, answered.refused))
                source = f", labelled by what the model answers: {right:.1%} right, {refused:.1%} refused"
                of_which = "it knows" if known else "it does not know"
                way_out += f" {of_which}, take another model, or say in the records who is known"
            raise ValueError(
                f"a study expected at least 2 {'known' if known else 'unknown'} entities on the {name} side "
                f"of the split, got {len(found)} of {len(records)} records{source}: {way_out}"
            )


def label_counts(
    records: Sequence[Question], labels: Sequence[bool | None], outcome: Outcome, n_examples: int = 2
) -> str:
    """A table of questions by relation and label, and examples of each label.

    outcome: the answers without an edit
    """
    relations = list(dict.fromkeys(record.relation for record in records))
    table = [["relation", "questions", "entities", *_NAMES.values(), "right", "refused"]]
    for relation in [*relations, None] if len(relations) > 1 else relations:
        of = [i for i, record in enumerate(records) if relation in (None, record.relation)]
        entities = {records[i].cluster for i in of}
        counts = [str(sum(labels[i] is label for i in of)) for label in _NAMES]
        rates = [f"{float(column[of].mean()):.3f}" for column in (outcome.correct, outcome.refused)]
        name = "all" if relation is None else relation or "–"
        table.append([name, str(len(of)), str(len(entities)), *counts, *rates])
    lines = [aligned(table, left=1)]
    for label, name in _NAMES.items():
        of = [i for i, found in enumerate(labels) if found is label]
        lines += [f"{name}: {_example(records[i], outcome, i)}" for i in of[:n_examples]]
    return "\n".join(lines)


def _example(record: Question, outcome: Outcome, i: int) -> str:
    right = " or ".join(map(repr, record.answers[:3])) or "nothing"
    refused, correct = outcome.refused[i].item(), outcome.correct[i].item()
    verdict = (
        "refused" if refused == 1 else "right" if correct == 1 else "wrong" if not refused + correct else ""
    )
    verdict = verdict or f"{correct:.0%} right, {refused:.0%} refused"
    said = ""
    if outcome.texts:
        text = " ".join(outcome.texts[i].split())
        said = f"{text[:_LONGEST] + '…' if len(text) > _LONGEST else text!r}, "
    return f"{record.prompt[-_LONGEST:]!r} → {said}{verdict}; {right} is right"
