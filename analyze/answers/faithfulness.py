"""Answers with a context: which latents tell the faithful from the others, beside their overlap.

Latents are max-pooled over the answer's tokens, read behind context and question, and chosen by their mutual
information with the label on one half of the groups. On the other half they stand beside rivals that see
words alone, first of all the share of the answer's words that the context has (`sl.stats.against_rivals`).

source: latents max-pooled over the answer and chosen by mutual information, arXiv:2512.08892, where a
generalised
    additive model takes the place of the logistic regression here
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from saelens_lite.lm.decoder import Decoder
from saelens_lite.misfits import names_misfits
from saelens_lite.sae.autoencoder import SparseAutoencoder

from ..probing.pooling import pooled_latents
from ..stats.document_split import Split
from ..stats.logistic import fit_few
from ..stats.rival_report import RivalReport
from ..stats.rivals import Rival, against_rivals
from ..stats.surface import surface_rivals
from .normal_forms import triviaqa_normal

if TYPE_CHECKING:
    from scipy.sparse import csr_matrix

TEMPLATE = "{context}\n\nQuestion: {question}\nAnswer: {answer}"


@dataclass(frozen=True, kw_only=True, slots=True)
class Grounded:
    """An answer to a question about a context."""

    context: str
    question: str
    answer: str
    faithful: bool
    """Whether the context says so."""
    group: str = ""
    """What belongs together, such as the document; by default the context."""
    source: str = ""
    """Where the answer is from, such as a model; a rival where there are several."""

    def __post_init__(self) -> None:
        if not (self.context.strip() and self.answer.strip()):
            raise ValueError(f"a record expected a context and an answer, got {self}")


@dataclass(frozen=True, slots=True, eq=False)
class Faithfulness:
    """What `faithful_latents` found; `print(found)`.

    latents: int64[n], most informative first; information: float64[n], with the label, in nats, on the
        selecting side
    guard: each latent, and all together, beside the rivals, on the testing side
    """

    latents: Tensor
    information: Tensor
    guard: RivalReport

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers, for JSON."""
        chosen = {"latents": self.latents.tolist(), "information": self.information.tolist()}
        return chosen | {"guard": self.guard.to_dict()}

    def __str__(self) -> str:
        return str(self.guard)


def overlap(answer: str, text: str) -> float:
    """Share of the answer's words, in their normal form, that the text has; 0 for an answer without words."""
    words, there = triviaqa_normal(answer).split(), set(triviaqa_normal(text).split())
    return sum(word in there for word in words) / len(words) if words else 0.0


@names_misfits
def swapped_answers(records: Sequence[Grounded], seed: int = 0) -> list[Grounded]:
    """The records, half of them with the answer to another question of their group, and then not faithful.

    Which half, and whose answer, is drawn from (seed, context, question). A record whose group has no other
    answer stays as it is.
    """
    by_group: dict[str, list[str]] = {}
    for record in records:
        by_group.setdefault(record.group or record.context, []).append(record.answer)

    def drawn(record: Grounded, what: str) -> bytes:
        return hashlib.sha256(f"{seed}\n{record.context}\n{record.question}\n{what}".encode()).digest()

    found = []
    for record in records:
        own = triviaqa_normal(record.answer)
        others = {a for a in by_group[record.group or record.context] if triviaqa_normal(a) != own}
        if others and drawn(record, "")[0] % 2:
            record = replace(record, answer=min(others, key=lambda a: drawn(record, a)), faithful=False)
        found.append(record)
    return found


@names_misfits
def faithful_latents(
    model: nn.Module,
    tokenizer: Any,
    sae: SparseAutoencoder,
    records: Sequence[Grounded],
    *,
    n: int = 8,
    template: str = TEMPLATE,
    beside: Mapping[str, Rival] | None = None,
    hook_point: str | None = None,
    split: Split | None = None,
    batch_size_texts: int = 16,
    n_resamples: int = 2000,
    seed: int = 0,
) -> Faithfulness:
    """Latents that tell faithful answers from others, with a verdict each beside what the words alone say.

    n: latents to choose; template: with {context}, {question} and, at its end, {answer}
    beside: further scores of each record that are shown and confound nothing, such as the answer's log
        probability
    split: by group; hook_point: naming one, the caller vouches that the SAE fits there
    raises: ValueError for records of one label on a side, a template of another form, a text longer than the
        model's context, or n out of range; ImportError without scipy
    """
    if not template.endswith("{answer}") or any(
        template.count(f"{{{of}}}") != 1 for of in ("context", "question")
    ):
        raise ValueError(
            f"template expected {{context}} and {{question}} once, and {{answer}} last, got {template!r}"
        )
    if not 1 <= n <= sae.d_sae or not records:
        raise ValueError(f"expected records, and 1 to {sae.d_sae} latents, got {len(records)} and n={n}")
    before = [_filled(template, record) for record in records]
    texts = [prompt + record.answer for prompt, record in zip(before, records)]
    _check_room(model, tokenizer, texts)
    spans = [(len(prompt), len(text)) for prompt, text in zip(before, texts)]
    how = {"hook_point": hook_point, "pool": "max", "spans": spans, "batch_size_texts": batch_size_texts}
    features = pooled_latents(model, tokenizer, texts, sae, **how)
    labels = torch.tensor([record.faithful for record in records])
    groups = [record.group or record.context for record in records]
    split = split or Split()
    selects = ~split.tests(groups)
    if labels[selects].all() or not labels[selects].any():
        raise ValueError("expected faithful and other answers on the selecting side, got one label alone")
    pooled, inside = features.latents, selects.numpy()
    information = mutual_information(pooled[inside], labels[selects])
    order = information.argsort(descending=True, stable=True)[:n]
    chosen = torch.from_numpy(pooled[:, order.numpy()].toarray()).double()
    weights, bias = fit_few(chosen[selects], labels[selects])
    scores = {f"latent {latent}": chosen[:, i] for i, latent in enumerate(order.tolist())}
    scores[f"{n} latents together"] = chosen @ weights + bias
    acts = torch.from_numpy(features.acts).double()
    direction = acts[selects & labels].mean(0) - acts[selects & ~labels].mean(0)
    guard = against_rivals(
        scores,
        labels,
        _rivals(tokenizer, records),
        groups,
        beside={"DiffMean": acts @ direction} | dict(beside or {}),
        split=split,
        n_resamples=n_resamples,
        seed=seed,
    )
    return Faithfulness(order, information[order], guard)


def mutual_information(pooled: csr_matrix, labels: Tensor) -> Tensor:
    """float64[d_sae]: of each latent with the label, in nats; a latent is silent, low or high, at or above
    the median of its positive values."""
    columns, ones = pooled.tocsc(), labels.cpu().numpy().astype(np.int64)
    n, d_sae = columns.shape
    counts = np.diff(columns.indptr)
    column = np.repeat(np.arange(d_sae), counts)
    order = np.lexsort((columns.data, column))
    middle = np.minimum(columns.indptr[:-1] + counts // 2, max(0, len(order) - 1))
    medians = columns.data[order][middle] if len(order) else np.zeros(d_sae)
    high = columns.data >= medians[column]
    cells = np.bincount((column * 2 + ones[columns.indices]) * 2 + high, minlength=4 * d_sae)
    firing = cells.reshape(d_sae, 2, 2)
    of_label = np.bincount(ones, minlength=2)
    table = np.concatenate([of_label[None, :, None] - firing.sum(2, keepdims=True), firing], axis=2) / n
    expected = table.sum(1, keepdims=True) * (of_label / n)[None, :, None]
    ratio = np.divide(table, expected, out=np.ones_like(table), where=table > 0)
    return torch.from_numpy((table * np.log(ratio)).sum((1, 2)))


def _filled(template: str, record: Grounded) -> str:
    """All but the answer; what a context says is never taken for a field."""
    parts = template.removesuffix("{answer}").split("{context}")
    return record.context.join(part.replace("{question}", record.question) for part in parts)


def _check_room(model: nn.Module, tokenizer: Any, texts: Sequence[str]) -> None:
    limit = getattr(Decoder(model).text_config, "max_position_embeddings", None)
    n_tokens = [len(ids) for ids in tokenizer(list(texts), verbose=False)["input_ids"]]
    n_long = 0 if limit is None else sum(n > limit for n in n_tokens)
    if n_long:
        raise ValueError(
            f"{n_long} of {len(texts)} records are longer than the model's {limit} tokens: cut their "
            "contexts to the passage that the answer is about"
        )


def _rivals(tokenizer: Any, records: Sequence[Grounded]) -> dict[str, Rival]:
    found: dict[str, Rival] = {
        "overlap with the context": [overlap(record.answer, record.context) for record in records],
        "overlap with the question": [overlap(record.answer, record.question) for record in records],
        "words of the context": [float(len(record.context.split())) for record in records],
    }
    answers = surface_rivals(tokenizer, [record.answer for record in records])
    found |= {f"answer's {name}": of for name, of in answers.items()}
    if len({record.source for record in records}) > 1:
        found["source"] = [record.source for record in records]
    return found
