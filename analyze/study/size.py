"""How large a study is: forward passes before it runs, entities that an effect needs, answers that look
alike."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import NormalDist
from typing import Any, NamedTuple

from .answers import first_tokens
from .questions import Question


def entities_needed(effect: float, sd: float, *, power: float = 0.8, confidence: float = 0.95) -> int:
    """Entities that a mean change of this size needs, to be told from none with the given chance.

    effect: mean change, above 0; sd: of the change from entity to entity, in the same unit
    returns: ⌈((z₁₋α/₂ + z_power) · sd / effect)²⌉, at least 2, in the normal approximation
    """
    if not effect > 0 or not sd >= 0 or not 0 < power < 1 or not 0 < confidence < 1:
        raise ValueError(
            "entities_needed expected an effect above 0, sd of at least 0, and power and confidence "
            "between 0 "
            f"and 1, got {effect}, {sd}, {power} and {confidence}"
        )
    normal = NormalDist()
    z = normal.inv_cdf(1 - (1 - confidence) / 2) + normal.inv_cdf(power)
    return max(2, math.ceil((z * sd / effect) ** 2))


class SharedTokens(NamedTuple):
    """Right answers that begin with the first token of another one.

    n_answers: questions with a right answer; n_shared: those whose first right answer begins like another
    n_tokens: different first tokens; commonest: the text of the commonest one, and how many answers it begins
    """

    n_answers: int
    n_shared: int
    n_tokens: int
    commonest: tuple[str, int]

    def __str__(self) -> str:
        text, n = self.commonest
        return (
            f"{self.n_shared} of {self.n_answers} right answers begin with the first token of a different "
            "answer "
            f"({self.n_tokens} first tokens; {text!r} begins {n})"
        )


def shared_first_tokens(
    tokenizer: Any, records: Sequence[Question], separator: str = " "
) -> SharedTokens | None:
    """How many right answers a judge of the first token takes for another; None without right answers."""
    told: dict[int, list[str]] = {}
    for record in records:
        if record.answers:
            answer = record.answers[0]
            [token] = first_tokens(tokenizer, record.prompt, [answer], separator)
            told.setdefault(token, []).append(answer)
    if not told:
        return None
    shared = sum(len(answers) for answers in told.values() if len(set(answers)) > 1)
    token, most = max(told.items(), key=lambda item: len(item[1]))
    n_answers = sum(map(len, told.values()))
    return SharedTokens(n_answers, shared, len(told), (tokenizer.decode([token]), len(most)))


class Cost(NamedTuple):
    """What a run takes.

    n_edits: times that the testing side is answered, controls included; n_batches: answers of a batch of it
    n_passes: forward passes, one for each token that is written
    """

    n_edits: int
    n_batches: int
    n_passes: int

    def hours(self, seconds_of_batch: float) -> float:
        return self.n_batches * seconds_of_batch / 3600


def cost_of(
    n_records: int,
    *,
    n_doses: int,
    n_controls: int,
    n_saes: int,
    batch_size_seqs: int,
    passes_of_answer: int = 1,
    n_more: int = 0,
) -> Cost:
    """Of a run whose testing side has n_records; each SAE is clamped in both directions at every dose,
    ablated in four ways, each with n_controls, and spliced once.

    n_more: further answers of that side, of edits without controls
    """
    n_edits = 1 + n_saes * ((2 * n_doses + 4) * (1 + n_controls) + 1) + 4 * n_doses + n_more
    n_batches = n_edits * math.ceil(n_records / batch_size_seqs)
    return Cost(n_edits, n_batches, n_batches * passes_of_answer)
