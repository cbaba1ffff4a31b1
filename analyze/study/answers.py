"""What a model answers: refused, right or wrong, by its next token or a function of the caller's."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from saelens_lite.lm.decoder import Decoder
from saelens_lite.lm.forward_state import placed_inputs
from saelens_lite.misfits import names_misfits

from .questions import Question


class Answers(NamedTuple):
    """Of some records, in their order."""

    refused: Tensor
    """bool[n]: no answer was given; or float[n], the share of several answers that were refusals"""
    correct: Tensor
    """bool[n]: the right one was; or float[n], the share of several that were right"""
    margin: Tensor | None = None
    """float[n]: by how much the model prefers to refuse, in logits; None where that cannot be said"""
    texts: Sequence[str] | None = None
    """what was answered, where that is a text"""


Judge = Callable[[nn.Module, dict[str, Tensor], Sequence[Question]], Answers]
"""From the model, perhaps edited, input_ids and attention_mask (padded on the left, on its device) and their
records; it may call `model.generate(**inputs)`, whose prompt is then what is edited, or run longer texts
that begin with these prompts, such as prompts with an option behind each."""


@dataclass(frozen=True, slots=True)
class NextToken:
    """The model's answer is its next token: a refusal if in `refusal`, right if it begins a right answer.

    refusal: words (of which the first token counts) or token ids that mean "I do not know"
    options: words or ids of answers that alone are compared with refusal, as in "Do you know …?" with
        refusal=["No"], options=["Yes"]; without them all tokens are
    separator: what stands between a prompt and its answer
    """

    refusal: Sequence[str | int]
    options: Sequence[str | int] | None = None
    separator: str = " "

    @names_misfits
    def bound(
        self, tokenizer: Any, records: Sequence[Question]
    ) -> Callable[[nn.Module, dict[str, Tensor]], Answers]:
        """The judge of these records.

        raises: ValueError for no refusal, one that is an option or begins a right answer; the judge, for
            logits that are not finite
        """
        prompt = records[0].prompt
        ids = partial(first_tokens, tokenizer, separator=self.separator)
        refusals = ids(prompt, self.refusal)
        options = None if self.options is None else ids(prompt, self.options)
        if not refusals or (options is not None and (not options or set(options) & set(refusals))):
            raise ValueError(
                f"NextToken expected tokens that refuse, and others as options if any, got {self}"
            )
        right = [ids(record.prompt, record.answers) for record in records]
        for record, ids in zip(records, right):
            if set(ids) & set(refusals):
                raise ValueError(
                    f"the right answer {record.answers} to {record.prompt!r} begins like a refusal: "
                    f"{self.refusal}"
                )
        n_right = max(1, *map(len, right))
        table = torch.tensor([ids + [-1] * (n_right - len(ids)) for ids in right])

        def judge(model: nn.Module, inputs: dict[str, Tensor]) -> Answers:
            logits = _next_logits(model, inputs)
            refusing = torch.zeros(logits.shape[1], dtype=torch.bool)
            refusing[refusals] = True
            answering = ~refusing
            if options is not None:
                answering = torch.zeros_like(refusing)
                answering[options] = True
            best, token = logits.masked_fill(~answering, -torch.inf).max(1)
            margin = logits.masked_fill(~refusing, -torch.inf).amax(1) - best
            if not margin.isfinite().all():
                raise ValueError("NextToken expected finite logits, got nan or infinity: lower the dose")
            return Answers(margin > 0, (margin <= 0) & (token[:, None] == table).any(1), margin)

        return judge


def first_tokens(tokenizer: Any, prompt: str, words: Sequence[str | int], separator: str = " ") -> list[int]:
    """The first token of each word after the prompt; ids are given back as they are."""
    after = partial(_token_after, tokenizer, prompt)
    return [word if isinstance(word, int) else after(separator + word) for word in words]


def refusal_ids(judge: Any, tokenizer: Any, prompt: str) -> list[int] | None:
    """The tokens by which a judge knows a refusal, if it does by tokens."""
    words = getattr(judge, "refusal", None)
    if words is None or callable(words):
        return None
    return first_tokens(tokenizer, prompt, words, getattr(judge, "separator", " "))


def _token_after(tokenizer: Any, prompt: str, text: str) -> int:
    """The first token of a text behind the prompt. raises: ValueError where it begins in the prompt, or for
    none"""
    encoded = tokenizer(prompt + text, return_offsets_mapping=True)
    for token, (start, end) in zip(encoded["input_ids"], encoded["offset_mapping"]):
        if end > len(prompt):
            if start < len(prompt):
                break
            return token
    raise ValueError(f"an answer expected to begin with a token of its own, got {text!r} after {prompt!r}")


def _next_logits(model: nn.Module, inputs: dict[str, Tensor]) -> Tensor:
    """float32[batch vocab] on the CPU, after the last column."""
    decoder = Decoder(model)
    given = placed_inputs(decoder, inputs)
    if decoder.accepts("logits_to_keep"):
        given["logits_to_keep"] = 1
    with torch.no_grad():
        return model(**given).logits[:, -1].float().cpu()


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
