"""What a study's latents read beside the surface of its questions, and whether it carries over between
types."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from saelens_lite.sae.autoencoder import SparseAutoencoder

from ..edits.stream_edit import latent_acts_of
from ..stats.document_split import Split, select_latents
from ..stats.ranks import auroc
from ..stats.rival_report import RivalReport
from ..stats.rivals import LEAST_CLUSTERS, against_rivals
from .half import Outcome, Side


def guarded(
    sides: tuple[Side, Side],
    sae: SparseAutoencoder,
    latents: Mapping[str, Tensor],
    directions: Mapping[str, Tensor],
    clean: tuple[Outcome, Outcome],
    **bootstrap: Any,
) -> RivalReport | None:
    """Each chosen latent against surface rivals, one row an entity; None where a side has too few entities.

    sides: selecting and testing; clean: their answers without an edit; latents: by "known" and "unknown"
    directions: stand beside, as does the model's margin to refusal
    """
    acts = torch.cat([side.entities.acts for side in sides])
    labels = torch.cat([side.entities.known for side in sides])
    names = [name for side in sides for name in side.entities.names]
    testing = torch.cat([torch.full((len(side.entities.names),), i == 1) for i, side in enumerate(sides)])
    n_of = [int((labels[testing == t] == k).sum()) for t in (False, True) for k in (False, True)]
    if min(n_of) < LEAST_CLUSTERS:
        return None
    scores = {}
    for who, of in latents.items():
        with torch.no_grad():
            z = latent_acts_of(sae, acts.to(sae.device, sae.dtype), of.to(sae.device)).double().cpu()
        scores |= {f"latent {latent} ({who})": column for latent, column in zip(of.tolist(), z.T)}
    beside = {name: (acts @ direction.cpu().float()).double() for name, direction in directions.items()}
    margins = [of.margin for of in clean]
    if all(margin is not None for margin in margins):
        beside["margin to refusal"] = torch.cat([of[side.first] for of, side in zip(margins, sides)])
    rivals, popularity = surface_of(sides)
    return against_rivals(
        scores, labels, rivals, names, popularity=popularity, beside=beside, split=testing, **bootstrap
    )


def surface_of(sides: Sequence[Side]) -> tuple[dict[str, Any], list[float] | None]:
    """Rivals of the entities of all sides, each from its first question, and their popularity where all have
    it.

    Numbers: tokens and characters of the entity, tokens of the prompt, where the entity ends, and the mean
    log frequency of its tokens in all prompts. Categories: relation, type, source and template, where they
    vary.
    """
    prompts, entities, ends, records = [], [], [], []
    for side in sides:
        for i in side.first:
            ids, tokens, end = side.tokens_of(i)
            prompts.append(ids)
            entities.append(tokens)
            ends.append(end)
            records.append(side.records[i])
    counts = Counter(token for ids in prompts for token in ids)
    total = sum(counts.values())

    def log_frequency(tokens: list[int]) -> float:
        return float(torch.tensor([counts[token] / total for token in tokens]).log().mean())

    lengths = [record.place or (0, len(record.prompt)) for record in records]
    rivals: dict[str, Any] = {
        "tokens of the entity": [float(len(tokens)) for tokens in entities],
        "characters of the entity": [float(end - start) for start, end in lengths],
        "tokens of the prompt": [float(len(ids)) for ids in prompts],
        "position": [float(end) for end in ends],
        "unigram log frequency": [log_frequency(tokens) for tokens in entities],
    }
    for name in ("relation", "type", "source", "template"):
        rivals[name] = [getattr(record, name) for record in records]
    rivals = {name: of for name, of in rivals.items() if len(set(of)) > 1}
    popular = [record.popularity for record in records]
    return rivals or {"tokens of the entity": [0.0] * len(records)}, None if None in popular else popular


class AcrossTypes(NamedTuple):
    """AUROC of the best latent on entities of one type that chose nothing.

    inside: of the latent that entities of this type chose; outside: of that which the other types chose
    """

    type: str
    inside: float
    outside: float


def across_types(
    choosing: Side, testing: Side, sae: SparseAutoencoder, by: str, split: Split
) -> list[AcrossTypes]:
    """For each type with both labels on both sides, where there are several types."""
    found = []
    acts, known, names, types = choosing.entities
    for kind in sorted(set(types)):
        own = torch.tensor([of == kind for of in types])
        tested = torch.tensor([of == kind for of in testing.entities.types])
        labels = testing.entities.known[tested]
        if any(len(of.unique()) < 2 for of in (known[own], known[~own], labels)):
            continue
        areas = []
        for rows in (own, ~own):
            chosen = [name for name, here in zip(names, rows.tolist()) if here]
            of = select_latents(sae, acts[rows], known[rows], chosen, by=by, split=split).latents
            with torch.no_grad():
                of_test = testing.entities.acts[tested].to(sae.device, sae.dtype)
                z = latent_acts_of(sae, of_test, of.to(sae.device))[:, 0].float().cpu()
            areas.append(auroc(z[~labels], z[labels]))
        found.append(AcrossTypes(kind, *areas))
    return found
