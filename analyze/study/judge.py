"""A free answer judged: refused, correct or wrong, by text alone.

An answer is first tried as a refusal. One that is none is correct where it matches a right answer, and wrong
otherwise. Two rules say what a match is, both after normalisation:

    whole       the answer is the right answer, and nothing else
    contained   the words of the right answer stand in the answer, side by side and in their order

The contained rule fits sentences of chat models. A model that writes on after its answer is read up to the
first of `until`, or a right word that comes by later counts.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence, Set
from dataclasses import dataclass
from typing import Literal, get_args

from saelens_lite.errors import nearest
from saelens_lite.misfits import names_misfits

from ..answers.normal_forms import NORMAL_FORMS
from ..stats.raters import Agreement, agreement

Verdict = Literal["correct", "wrong", "refused"]
VERDICTS: tuple[Verdict, ...] = get_args(Verdict)

_CANNOT = r"(?:can ?not|can't|could ?n[o']t|am (?:not able|unable) to|'m (?:not able|unable) to)"
_TELLING = (
    r"(?:answer|provide|access|give|tell|say|find|determine|identify|confirm|verify|help|assist|recall|"
    r"be (?:sure|certain)|know)"
)
_NOT = r"(?:does not|doesn't|do not|don't|did not|didn't)"
_HAVING = r"have (?:any |enough |sufficient |specific )?(?:information|knowledge|data|details|access|context)"
_SAY = r"(?:provide|specify|mention|contain|include|give|state|say|indicate|identify)"
_SAID = r"(?:specified|mentioned|provided|stated|given|known|available|identified)"
_WRONG = r"(?:incorrect|inaccurate|false|flawed|not (?:correct|accurate|valid|true)|a false premise)"
_PROOF = r"(?:evidence|record|information|data|mention|indication|details?|answer)"
_IS = r"(?:is|are|was|were)"
_GIVEN = r"(?:context|passage|text|question|document|information|prompt)"
_KNOW = r"(?:know|recall|remember|recogni[sz]e)"
REFUSALS = (
    # the speaker does not know
    rf"\bI (?:really |honestly |just )?(?:do not|don't) (?:{_KNOW}|{_HAVING})\b",
    r"\bI(?: am|'m) (?:sorry|afraid)\b,?(?: but)? (?:that )?I (?:do not|don't|can ?not|can't|am|'m)\b",
    r"\bI(?: am|'m) (?:not (?:sure|certain|aware|familiar)|unsure|uncertain)\b(?!,? but)",
    r"\bI have no (?:idea|information|knowledge|record|comment|way of knowing)\b",
    r"^\W*(?:unknown|no idea|not sure|no comment|unsure|n/a|unclear|not known)\W*$",
    r"^\W*(?:it|that) ?(?:is|'s) (?:not known|unknown|unclear)\W*$",
    # the speaker cannot tell
    rf"\bI(?: |(?='m)){_CANNOT} {_TELLING}\b",
    rf"\bit ?(?:is|'s) (?:not possible|impossible) (?:for me )?to {_TELLING}\b",
    r"\b(?:as|being) an? (?:AI|artificial intelligence|(?:large )?language model)\b"
    r"[^.]*\b(?:do not|don't|can ?not|can't|unable)\b",
    r"\bcan ?not be (?:answered|determined|known)\b",
    # what there is does not say
    rf"\b{_GIVEN}\b[^.]{{0,60}}\b{_NOT} {_SAY}\b",
    rf"\b{_IS} not {_SAID}\b(?: [^.]*)?(?:\bcontext|\bpassage|\btext|\bquestion|\bI\b)",
    rf"\bthere {_IS} (?:no|not any|insufficient|not enough) (?:\w+ )?{_PROOF}\b",
    # the question is turned away
    rf"\b(?:question|statement|claim|premise)(?: [^.]{{0,40}})? (?:is|are|contains?) (?:\w+ )?{_WRONG}\b",
    rf"^\W*there {_IS} no\b",
)
"""Patterns, without regard to case, one of which a refusal matches: the speaker does not know, cannot tell,
says that what was given does not say, or turns the question away, as by "There is no …" at the beginning."""

_STRAIGHT = str.maketrans("’‘ʼ`´", "'''''")
_MATCHES = ("contained", "whole")


@dataclass(frozen=True, slots=True)
class Judge:
    """Judges free answers of any length.

        judge = Judge()
        judge.verdict("It was written by Jane Austen.", ["Austen", "Jane Austen"])    # "correct"

    refusal: regular expressions, one of which a refusal matches, without regard to case; or token ids, one of
        which begins it; or a function of the answer that says whether it is one
    match: "contained" or "whole", as above; or a function of the answer and the right answers
    normal: "triviaqa" or "squad", or a function from text to text
    until: the answer ends before the first of these
    raises: ValueError for an unknown rule, or a pattern that is none
    """

    refusal: Sequence[str] | Set[int] | Callable[[str], bool] = REFUSALS
    match: Literal["contained", "whole"] | Callable[[str, Sequence[str]], bool] = "contained"
    normal: Literal["triviaqa", "squad"] | Callable[[str], str] = "triviaqa"
    until: Sequence[str] = ()

    def __post_init__(self) -> None:
        for name, value, allowed in (("match", self.match, _MATCHES), ("normal", self.normal, NORMAL_FORMS)):
            if not callable(value) and value not in allowed:
                expected = " or ".join(map(repr, allowed))
                raise ValueError(
                    f"{name} expected {expected}, or a function, got {value!r}{nearest(str(value), allowed)}"
                )
        for name, value in (("refusal", self.refusal), ("until", self.until)):
            if isinstance(value, str):
                raise ValueError(f"{name} expected several texts, got {value!r}: write [{value!r}]")
        if "" in self.until:
            raise ValueError("until expected texts that end an answer, got an empty one")
        if self._patterns:
            for pattern in self.refusal:
                try:
                    re.compile(pattern)
                except (re.error, TypeError) as error:
                    raise ValueError(
                        "refusal expected regular expressions, or a set of token ids, got "
                        f"{pattern!r}: {error}"
                    ) from error

    @property
    def _patterns(self) -> bool:
        return not callable(self.refusal) and not isinstance(self.refusal, Set)

    @names_misfits
    def verdict(self, answer: str, right: str | Sequence[str], first_token: int | None = None) -> Verdict:
        """Whether an answer is "refused", "correct" or "wrong", tried in this order.

        right: all that is right, aliases too; none where nobody knows the answer, so that any is wrong
        first_token: the id with which the answer begins, for a judge by token ids; white space alone at the
            answer's beginning still counts
        raises: ValueError for a right answer that is empty, or without the first token where it is needed
        """
        answer = self._cut(answer)
        right = (right,) if isinstance(right, str) else tuple(right)
        if any(not alias.strip() for alias in right):
            raise ValueError(f"a right answer expected text, got {list(right)}: leave the empty one out")
        if self._refused(answer, first_token):
            return "refused"
        if callable(self.match):
            return "correct" if self.match(answer, right) else "wrong"
        return "correct" if any(self._matches(answer, alias) for alias in right) else "wrong"

    @names_misfits
    def agreement(
        self, answers: Sequence[str], right: Sequence[str | Sequence[str]], labels: Sequence[Verdict]
    ) -> Agreement:
        """How often its verdicts are those of labels given by others, with κ and where they differ.

        raises: ValueError for another number of one than of the others, or a label that is no verdict
        """
        if not len(answers) == len(right) == len(labels):
            raise ValueError(
                "agreement expected as many answers, right answers and labels, got "
                f"{len(answers)}, {len(right)} and {len(labels)}"
            )
        if odd := set(labels) - set(VERDICTS):
            raise ValueError(f"labels expected to be of {', '.join(VERDICTS)}, got {min(odd, key=str)!r}")
        return agreement([self.verdict(*one) for one in zip(answers, right)], labels)

    def _cut(self, answer: str) -> str:
        answer = answer.lstrip()
        ends = [place for stop in self.until if (place := answer.find(stop)) >= 0]
        return answer[: min(ends, default=len(answer))].rstrip()

    def _refused(self, answer: str, first_token: int | None) -> bool:
        if callable(self.refusal):
            return bool(self.refusal(answer))
        if isinstance(self.refusal, Set):
            if first_token is None:
                raise ValueError("a judge by token ids expected the answer's first token, got none")
            return first_token in self.refusal
        straight = answer.translate(_STRAIGHT)
        return any(re.search(pattern, straight, re.IGNORECASE) for pattern in self.refusal)

    def _matches(self, answer: str, alias: str) -> bool:
        """A right answer of which nothing is left, such as "The The" or "!!!", is compared with its marks."""
        normal = self.normal if callable(self.normal) else NORMAL_FORMS[self.normal]
        wanted = normal(alias)
        given = normal(answer) if wanted else _plain(answer)
        wanted = wanted or _plain(alias)
        return given == wanted if self.match == "whole" else f" {wanted} " in f" {given} "


def _plain(text: str) -> str:
    return " ".join(text.lower().split())
