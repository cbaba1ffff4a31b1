"""How sure a model's own output says it is, beside what its latents say.

    log p                sum over the answer's tokens, in nats; "mean log p" is that over their number
    entropy              mean over the answer's tokens of the entropy of what could stand there, in nats
    P(True)              the probability of "(A)" against "(B)", asked whether the answer is (A) true or (B)
    false agreement            share of further samples that say the same as the answer
    semantic entropy     entropy over meanings of the samples, in nats

Two answers say the same where their normal forms (TriviaQA's) are equal, or where an NLI model, given as a
function, says that each entails the other; meanings are found one by one, a sample joining the first that it
means.

source: P(True) Kadavath et al. 2022, arXiv:2207.05221; semantic entropy Kuhn et al. 2023, arXiv:2302.09664,
discrete
    as in Farquhar et al. 2024, doi:10.1038/s41586-024-07421-0
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from saelens_lite.misfits import names_misfits

from .continuations import continuations
from .normal_forms import triviaqa_normal

Entails = Callable[[str, str], bool]
"""Whether the first text, prompt and answer, entails the second."""

P_TRUE = (
    "Question: {prompt}\nProposed answer: {answer}\nIs the proposed answer:\n (A) True\n (B) False\n"
    "The proposed answer is:"
)


@names_misfits
def answer_confidence(
    model: nn.Module,
    tokenizer: Any,
    prompts: Sequence[str],
    answers: Sequence[str],
    samples: Sequence[Sequence[str]] | None = None,
    *,
    entails: Entails | None = None,
    separator: str = " ",
    batch_size_seqs: int = 16,
) -> dict[str, Tensor]:
    """Confidences of answers, float64[n] by the names above, as they stand beside in `against_rivals`.

    answers: one to each prompt; a white space at its beginning takes the separator's place
    samples: further answers to each prompt; without them there is no agreement and no semantic entropy
    entails: an NLI model; without it, answers of one normal form mean the same
    raises: ValueError for another number of one than of the others, a prompt without samples, or what has no
        tokens
    """
    if len(prompts) != len(answers) or (samples is not None and len(samples) != len(prompts)):
        n_samples = "" if samples is None else f", and samples of {len(samples)}"
        raise ValueError(
            f"expected an answer to each of {len(prompts)} prompts, got {len(answers)}{n_samples}"
        )
    if samples is not None and not all(samples):
        raise ValueError("expected samples of each prompt, got none of one: leave samples out, or the prompt")
    how = {"batch_size_seqs": batch_size_seqs}
    texts = [answer if answer[:1].isspace() else separator + answer for answer in answers]
    written = continuations(model, tokenizer, prompts, texts, **how)
    found = {
        "log p": [float(one.log_p.double().sum()) for one in written],
        "mean log p": [float(one.log_p.double().mean()) for one in written],
        "entropy": [float(one.entropy.double().mean()) for one in written],
    }
    asked = [P_TRUE.format(prompt=prompt, answer=answer.strip()) for prompt, answer in zip(prompts, answers)]
    says = [
        torch.stack(
            [one.log_p.double().sum() for one in continuations(model, tokenizer, asked, texts, **how)]
        )
        for texts in ([" (A)"] * len(asked), [" (B)"] * len(asked))
    ]
    found["P(True)"] = (says[0] - says[1]).sigmoid().tolist()
    if samples is not None:
        drawn = list(zip(prompts, answers, samples))
        found["agreement"] = [agreement_of(answer, of, prompt, entails) for prompt, answer, of in drawn]
        found["semantic entropy"] = [semantic_entropy(of, prompt, entails) for prompt, _, of in drawn]
    return {name: torch.tensor(values, dtype=torch.float64) for name, values in found.items()}


@names_misfits
def semantic_entropy(samples: Sequence[str], prompt: str = "", entails: Entails | None = None) -> float:
    """Entropy over the meanings of samples, in nats: 0 where all mean the same, log n where all differ."""
    counts: list[int] = []
    meanings: list[str] = []
    for sample in samples:
        place = next((i for i, of in enumerate(meanings) if _same(of, sample, prompt, entails)), None)
        if place is None:
            meanings.append(sample)
            counts.append(1)
        else:
            counts[place] += 1
    shares = torch.tensor(counts, dtype=torch.float64) / len(samples)
    return float(torch.special.entr(shares).sum())


def agreement_of(
    answer: str, samples: Sequence[str], prompt: str = "", entails: Entails | None = None
) -> float:
    """Share of the samples that mean the same as the answer."""
    return sum(_same(answer, sample, prompt, entails) for sample in samples) / len(samples)


def _same(one: str, other: str, prompt: str, entails: Entails | None) -> bool:
    if triviaqa_normal(one) == triviaqa_normal(other):
        return True
    if entails is None:
        return False
    first, second = (f"{prompt} {text.strip()}".strip() for text in (one, other))
    return bool(entails(first, second)) and bool(entails(second, first))
