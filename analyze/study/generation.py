"""Answers of any length, as the model writes them, greedily or drawn.

A draw depends on the seed, the question's tokens, the sample and the step alone: the order of the records,
the batch size and where a run was interrupted do not matter. What the model computes may differ by rounding
from batch to batch, as everywhere.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any

import torch
from torch import Tensor, nn

from saelens_lite.config import AtLeast, check_fields
from saelens_lite.hashing import hashed_uniform
from saelens_lite.misfits import names_misfits

from .answers import Answers, first_tokens
from .judge import Judge, Verdict
from .questions import Question


@dataclass(frozen=True, kw_only=True, slots=True)
class OpenAnswer:
    """The model's answer is what it writes after the prompt, and a judge of text says what it is worth.

    judge: `Judge`, or a function of the text and the question that returns "correct", "wrong" or "refused"
    max_new_tokens: of an answer, which ends earlier where the model ends it
    n_samples: answers to each question; rates are then shares of them
    temperature: 0 takes the likeliest token, more draws
    seed: of the draws
    refusal: words (of which the first token counts) or token ids that begin a refusal; with them there are
        margins, of the first token. None gives none
    separator: what stands between a prompt and such a word
    raises: ValueError for samples without a temperature, which would all be the same
    """

    judge: Judge | Callable[[str, Question], Verdict] = field(default_factory=Judge)
    max_new_tokens: Annotated[int, AtLeast(1)] = 32
    n_samples: Annotated[int, AtLeast(1)] = 1
    temperature: Annotated[float, AtLeast(0)] = 0.0
    seed: int = 0
    refusal: Sequence[str | int] | None = None
    separator: str = " "

    def __post_init__(self) -> None:
        check_fields(self)
        if self.n_samples > 1 and not self.temperature:
            raise ValueError(
                f"n_samples={self.n_samples} expected a temperature above 0, got 0: the samples would be "
                "equal"
            )

    @names_misfits
    def bound(
        self, tokenizer: Any, records: Sequence[Question]
    ) -> Callable[[nn.Module, dict[str, Tensor]], Answers]:
        """The judge of these records. Its answers' texts are those of the first sample."""
        refusals = None
        if self.refusal is not None:
            refusals = first_tokens(tokenizer, records[0].prompt, self.refusal, self.separator)

        def judge(model: nn.Module, inputs: dict[str, Tensor]) -> Answers:
            verdicts, texts, margins = [], [], []
            for sample in range(self.n_samples):
                tokens, margin = self._written(model, tokenizer, inputs, sample, refusals)
                texts.append([tokenizer.decode(row, skip_special_tokens=True) for row in tokens])
                margins.append(margin)
                verdicts.append(
                    [self._verdict(*one) for one in zip(texts[-1], records, [row[:1] for row in tokens])]
                )
            shares = [
                torch.tensor([[one == what for one in row] for row in verdicts]).double().mean(0)
                for what in ("refused", "correct")
            ]
            return Answers(*shares, margins[0], tuple(texts[0]))

        return judge

    def _verdict(self, text: str, record: Question, first: list[int]) -> Verdict:
        if isinstance(self.judge, Judge):
            return self.judge.verdict(text, record.answers, first[0] if first else None)
        return self.judge(text, record)

    def _written(
        self,
        model: nn.Module,
        tokenizer: Any,
        inputs: dict[str, Tensor],
        sample: int,
        refusals: list[int] | None,
    ) -> tuple[list[list[int]], Tensor | None]:
        """The tokens of one answer to each question, and by how much the first prefers to refuse."""
        from transformers import LogitsProcessorList

        of_model = getattr(model, "generation_config", None)
        ends = getattr(of_model, "eos_token_id", None)
        ends = tokenizer.eos_token_id if ends is None else ends
        ends = [] if ends is None else [ends] if isinstance(ends, int) else list(ends)
        pad = tokenizer.pad_token_id
        drawn = _Drawn(inputs, self.seed, sample, self.temperature, refusals)
        with torch.no_grad():
            out = model.generate(
                **inputs,
                logits_processor=LogitsProcessorList([drawn]),
                max_new_tokens=self.max_new_tokens,
                do_sample=False,
                num_beams=1,
                repetition_penalty=1.0,
                no_repeat_ngram_size=0,
                eos_token_id=ends or None,
                pad_token_id=pad if pad is not None else (ends or [0])[0],
            )
        rows = out[:, inputs["input_ids"].shape[1] :].tolist()
        ended = [next((i for i, token in enumerate(row) if token in ends), len(row)) for row in rows]
        return [row[:end] for row, end in zip(rows, ended)], drawn.margin


def passes_of_answer(judge: Any) -> int:
    """Forward passes that an answer takes at most; those of a caller's function count as one."""
    return judge.n_samples * judge.max_new_tokens if isinstance(judge, OpenAnswer) else 1


class _Drawn:
    """A processor of `generate` that leaves one token, the drawn one; at temperature 0 it leaves all."""

    def __init__(
        self,
        inputs: dict[str, Tensor],
        seed: int,
        sample: int,
        temperature: float,
        refusals: list[int] | None,
    ) -> None:
        self.margin: Tensor | None = None
        self._width = inputs["input_ids"].shape[1]
        real = zip(inputs["input_ids"].cpu(), inputs["attention_mask"].cpu().bool())
        self._questions = torch.tensor([_number(ids[mask]) for ids, mask in real]).numpy()
        self._keys, self._temperature, self._refusals = (seed, sample), temperature, refusals

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        step = input_ids.shape[1] - self._width
        if not scores.isfinite().any(1).all() or scores.isnan().any():
            raise ValueError("OpenAnswer expected finite logits, got nan or infinity: lower the dose")
        if step == 0 and self._refusals is not None:
            refusing = torch.zeros(scores.shape[1], dtype=torch.bool, device=scores.device)
            refusing[self._refusals] = True
            best = [scores.masked_fill(of, -torch.inf).amax(1) for of in (~refusing, refusing)]
            self.margin = (best[0] - best[1]).float().cpu()
        if not self._temperature:
            return scores
        chance = (scores.double() / self._temperature).softmax(1).cumsum(1)
        at = torch.from_numpy(hashed_uniform(self._questions, *self._keys, step)).to(chance)
        token = (chance <= at[:, None] * chance[:, -1:]).sum(1).clamp_max(scores.shape[1] - 1)
        return torch.full_like(scores, -torch.inf).scatter_(1, token[:, None], 0.0)


def _number(ids: Tensor) -> int:
    """Of a question's tokens: int64, a hash."""
    digest = hashlib.sha256(ids.long().numpy().tobytes()).digest()
    return int.from_bytes(digest[:8], "little", signed=True)
