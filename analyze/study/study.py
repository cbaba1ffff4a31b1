"""A study of what a model knows: latents that tell known from unknown entities, edited at the entity's end.

    study = HallucinationStudy(model, tokenizer, sae, records, NextToken(["unknown"]), baseline=frozen)
    study.label()                # who is known: supplied, or by what the model answers
    chosen = study.select(n=3)   # on one half of the entities
    print(study.run(chosen))     # on the other half: rates, intervals, controls, rivals

A hallucination is an answer where nothing is known. What should let the model answer (latents of known
entities held high, those of unknown ones removed) is tried on unknown entities, and the reverse on known
ones. Each edit stands beside matched random sets of latents, the same edit of an SAE whose decoder was never
trained, DiffMean, a probe and the reconstruction.
source: Ferrando et al. 2024, arXiv:2411.14257, with the controls that it lacks.
"""

from __future__ import annotations

import math
import re
import time
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from saelens_lite.lm.decoder import Decoder
from saelens_lite.misfits import names_misfits
from saelens_lite.sae.autoencoder import SparseAutoencoder

from ..edits.controls import diff_mean, probe_direction
from ..edits.latents import clamp
from ..edits.neutral_text import NeutralText
from ..edits.refusal_logit import QUANTILES
from ..edits.stream_edit import latent_acts_of
from ..latents.compatibility import fits
from ..stats.document_split import Selection, Split, select_latents
from ..stats.ranks import auroc
from .answers import Judge, NextToken, refusal_ids
from .effects import Cost, Effects, cost_of
from .fixed_outcomes import MITIGATION_DOSES
from .generation import OpenAnswer, passes_of_answer
from .half import Edit, Outcome, Side
from .kept import Kept, digest_of, fingerprint
from .labels import check_labels, labelled
from .planned_edits import MODES, Chosen, at_typical, typical
from .questions import POSITIONS, Position, Question
from .result import Detection, StudyResult


class HallucinationStudy:
    """The study of one model, one SAE and records.

    model, tokenizer: of Hugging Face, the tokenizer a fast one; neither is altered
    records: questions; at least two known and two unknown entities on each side of the split
    judge: `NextToken`, `OpenAnswer` for answers of any length, or a function (answers.Judge) that says which
        answers are refused and which right
    baseline: an SAE of the same training with a frozen random decoder (`train --baseline`)
    hook_point: naming one, the caller vouches that the SAEs fit there
    split: one side chooses latents, the other is measured; by entity, or group
    position: the tokens that are edited: the entity's "last" or "all", "prompt_last" or "everywhere" in the
        prompt
    generated: whether edits act on what comes behind the prompt too: generated tokens, or an option
    keep: file in which answers are kept as they come; the same study then resumes from it. None keeps none
    raises: ValueError for no records, SAEs that do not fit the model, or answers that another study kept
    """

    @names_misfits
    def __init__(
        self,
        model: nn.Module,
        tokenizer: Any,
        sae: SparseAutoencoder,
        records: Sequence[Question],
        judge: NextToken | OpenAnswer | Judge,
        *,
        baseline: SparseAutoencoder | None = None,
        hook_point: str | None = None,
        split: Split | None = None,
        position: Position = "last",
        generated: bool = False,
        batch_size_seqs: int = 256,
        keep: str | Path | None = None,
    ) -> None:
        if not records:
            raise ValueError("a study expected records, got none")
        if position not in POSITIONS:
            expected = ", ".join(map(repr, POSITIONS))
            raise ValueError(f"position expected one of {expected}, got {position!r}")
        decoder = Decoder(model)
        point = fits(sae, decoder, hook_point)
        self.model, self.sae, self.baseline, self.hook_point = model, sae, baseline, point
        self.tokenizer = tokenizer
        self.records, self.split = tuple(records), split or Split()
        how = {"hook_point": point, "position": position, "batch_size_seqs": batch_size_seqs}
        self._side_of = partial(Side, model, tokenizer, generated=generated, **how)
        self._judge, self._kept, self._batch_size_seqs = judge, None, batch_size_seqs
        self._answers: dict[str, Outcome] = {}
        self._testing = self.split.tests([record.cluster for record in self.records]).tolist()
        self._labels: list[bool | None] | None = None
        self._sides: dict[bool, Side] = {}
        width = self._side_of(self.records[:1], [False], judge=judge).entities.acts.shape[1]
        if baseline is not None:
            fits(baseline, decoder, point, vouched=hook_point is not None, name="the baseline")
        for of in (sae, baseline):
            if of is not None and of.d_model != width:
                raise ValueError(
                    f"a study at {point} expected SAEs of d_model={width}, got one of {of.d_model}"
                )
        if keep is not None:
            saes = [None if of is None else fingerprint(of) for of in (sae, baseline)]
            identity = {
                "model": fingerprint(model),
                "saes": saes,
                "judge": _named(judge),
                "generated": generated,
            }
            self._kept = Kept(keep, identity | how)

    @names_misfits
    def label(
        self,
        n_right: int = 2,
        *,
        by: Literal["answers", "share"] = "answers",
        min_share: float = 0.5,
        judge: NextToken | OpenAnswer | Judge | None = None,
    ) -> list[bool | None]:
        """Whether the model knows each record's entity: as the records say, or by what it answers.

        by: "answers": known with n_right right ones, or all of fewer questions, and unknown with none, as in
            Ferrando et al. 2024; "share": known where at least min_share of all answers about the entity are
            right, of several samples each, and unknown where none is, as in Gekhman et al. 2024,
            arXiv:2405.05904. Those between are left out (None)
        judge: of these answers, such as `OpenAnswer(n_samples=10, temperature=0.5)`; None takes the study's
        raises: ValueError unless both sides of the split then have two known and two unknown entities, or if
            some records say whether they are known and others do not
        """
        if by not in ("answers", "share") or not 0 < min_share <= 1:
            raise ValueError(
                f"label expected by='answers' or 'share' and 0 < min_share <= 1, got {by!r} and {min_share}"
            )
        given = [record.known for record in self.records]
        missing = given.count(None)
        if 0 < missing < len(given):
            raise ValueError(
                f"records expected all to have known, or none, got {missing} of {len(given)} without"
            )
        labels, answered = given, None
        if missing:
            answered = self.answers(judge)
            labels = labelled(self.records, answered.correct.tolist(), by, n_right, min_share)
        check_labels(self.records, self._testing, labels, answered)
        self._labels, self._sides = list(labels), {}
        return self._labels

    @names_misfits
    def select(
        self,
        n: int = 3,
        by: Literal["separation", "welch_t", "causal"] = "separation",
        *,
        n_ablated: int = 50,
        base_rates: Tensor | None = None,
        max_base_rate: float = 0.02,
        n_candidates: int = 64,
        sae: SparseAutoencoder | None = None,
    ) -> Chosen:
        """Latents of known and of unknown entities, on the selecting side alone.

        n: to clamp; n_ablated: at most so many, with a positive statistic, are kept for group ablations
        by: "separation" is the difference of firing rates at the entity's last token, "welch_t" that of mean
            activations over its standard error; of several types of entities the smallest counts (MaxMin of
            Ferrando et al. 2024). "causal" clamps each of the n_candidates of largest separation alone: how
            much more the model prefers to answer (known latents, on unknown entities) or to refuse (unknown
            latents, on known ones)
        base_rates: float[d_sae], firing rates on text at large (`latent_density(sae, store).density`);
            latents above max_base_rate are left out. None leaves out none
        raises: ValueError when fewer than n latents have a positive statistic, for a type without known or
            unknown entities on that side, or for another SAE
        """
        sae = sae or self.sae
        if n < 1:
            raise ValueError(f"select expected at least 1 latent to choose, got n={n}")
        if sae is not self.sae and sae is not self.baseline:
            raise ValueError(
                "select expected the study's SAE or its baseline, got another SAE: make a study of it"
            )
        side = self._side(testing=False)
        found = []
        for known in (True, False):
            statistic = self._statistic(sae, side, known, "separation" if by == "causal" else by)
            if base_rates is not None:
                statistic = statistic.masked_fill(base_rates.cpu() > max_base_rate, -torch.inf)
            if by == "causal":
                statistic = self._causal(sae, side, known, statistic, n_candidates)
            order = statistic.argsort(descending=True, stable=True)
            order = order[statistic[order] > 0][: max(n, n_ablated)]
            if len(order) < n:
                rare = "" if base_rates is None else f" and a base rate of at most {max_base_rate}"
                raise ValueError(
                    f"n={n} latents of {'known' if known else 'unknown'} entities were asked for, "
                    f"{len(order)} have a {by} above 0{rare}"
                )
            found.append(Selection(order, statistic[order], by, self.split, len(side.entities.names)))
        return Chosen(*found, n, sae)

    @names_misfits
    def run(
        self,
        chosen: Chosen | None = None,
        *,
        baseline: Chosen | None = None,
        doses: Sequence[float] = (0.5, 1.0, 2.0),
        n_controls: int = 100,
        score: Literal["rates", "logits"] = "rates",
        rivals: Mapping[str, Edit] | None = None,
        neutral: NeutralText | None = None,
        modes: Sequence[Literal["mean", "steer"]] = (),
        sizes: Sequence[int] = (),
        instructed: Sequence[Question] | None = None,
        seed: int = 0,
        n_resamples: int = 2000,
        confidence: float = 0.95,
    ) -> StudyResult:
        """Every edit on the testing side, beside its controls.

        The baseline's clamps, DiffMean and the probe move the stream of that side as far as the clamp at the
        same dose does, so that none wins by its length alone; ablations move it as far as they do, which
        stands beside. The model runs about edits · (1 + n_controls) times over that side.

        chosen, baseline: latents of the study's SAE and of its baseline, by default as `select` gives them
        doses: of clamps, in 95 % quantiles of a latent's positive activations on the selecting side
        n_controls: random sets for each edit: the same changes along latents that fire as often, scaled
            to move the stream as far
        score: what is tested: "rates" of answers and refusals, or how far the "logits" of the two are apart
        rivals: further edits by name, each made from the tokens to edit, bool[batch width]
        neutral: texts for side effects of the edits of latents, which then act on all their tokens
        modes: further edits: ablations to the "mean", typical values added whatever the latent is ("steer")
        sizes: groups of latents, the best so many, that are clamped and ablated too
        instructed: the study's questions with an instruction in their prompts, as a rival
        raises: ValueError for latents that the testing side had a say in, or that are another SAE's
        """
        if not set(modes) <= set(MODES) or any(size < 1 for size in sizes):
            raise ValueError(f"run expected modes of {MODES} and sizes from 1, got {modes} and {sizes}")
        if score not in ("rates", "logits"):
            raise ValueError(f"score expected 'rates' or 'logits', got {score!r}")
        apart = 0 < len(doses) == len(set(doses))
        if not apart or not all(0 < dose < math.inf for dose in doses) or n_controls < 1:
            raise ValueError(
                f"run expected doses above 0, each once, and at least 1 control, got {list(doses)} and "
                f"{n_controls}"
            )
        side, choosing = self._side(testing=True), self._side(testing=False)
        chosen = chosen or self.select()
        if baseline is None and self.baseline is not None:
            n_ablated = max(len(chosen.known.latents), len(chosen.unknown.latents))
            baseline = self.select(chosen.n, chosen.known.by, n_ablated=n_ablated, sae=self.baseline)
        if chosen.sae is not self.sae or (baseline is not None and baseline.sae is not self.baseline):
            raise ValueError(
                "run expected latents of the study's own SAE and baseline, got those of another SAE: select "
                "again"
            )
        choices = {"trained": chosen} | ({} if baseline is None else {"baseline": baseline})
        for choice in choices.values():
            choice.known.check_unseen(side.clusters)
            choice.unknown.check_unseen(side.clusters)

        bootstrap = {"n_resamples": n_resamples, "confidence": confidence, "seed": seed}
        directions = _directions(choosing, self.split)
        return Effects(
            model=self.model,
            hook_point=self.hook_point,
            side=side,
            choosing=choosing,
            choices=choices,
            doses=doses,
            n_controls=n_controls,
            score=score,
            rivals=rivals or {},
            neutral=neutral,
            modes=modes,
            sizes=sizes,
            refusals=refusal_ids(self._judge, self.tokenizer, self.records[0].prompt),
            instructed=None if instructed is None else self._instructed(instructed),
            bootstrap=bootstrap,
        ).measured(directions, lambda of: _detections(of, choices, directions))

    def _instructed(self, records: Sequence[Question]) -> Side:
        """The testing side, with other prompts for its questions."""
        if len(records) != len(self.records):
            raise ValueError(
                f"instructed expected the study's {len(self.records)} questions with other prompts, got "
                f"{len(records)}"
            )
        labels = self._labels or self.label()
        kept = [i for i, label in enumerate(labels) if self._testing[i] and label is not None]
        chosen, known = [records[i] for i in kept], [bool(labels[i]) for i in kept]
        return self._side_of(chosen, known, judge=self._judge, kept=self._kept)

    @names_misfits
    def answers(self, judge: NextToken | OpenAnswer | Judge | None = None) -> Outcome:
        """What the model answers to all records without an edit, by the study's judge or another."""
        judge = judge or self._judge
        key = "" if judge is self._judge else _named(judge)
        if key not in self._answers:
            side = self._side_of(self.records, [False] * len(self.records), judge=judge, kept=self._kept)
            self._answers[key] = side.outcome(key=key)
        return self._answers[key]

    @names_misfits
    def cost(self, **of_run: int) -> Cost:
        """What `run` takes at most, before anything is answered; of_run: n_doses, n_controls, n_more."""
        n_saes = 1 + (self.baseline is not None)
        n_fixed = n_saes * (len(MITIGATION_DOSES) + 1) + of_run["n_controls"] + 2 + len(QUANTILES)
        of_run["n_more"] = of_run.get("n_more", 0) + n_fixed
        return cost_of(
            sum(self._testing),
            n_saes=n_saes,
            batch_size_seqs=self._batch_size_seqs,
            passes_of_answer=passes_of_answer(self._judge),
            **of_run,
        )

    def seconds_of_batch(self) -> float:
        """Of one batch of answers without an edit, as it is now; the second of two is timed."""
        records = self.records[: self._batch_size_seqs]
        side = self._side_of(records, [False] * len(records), judge=self._judge)
        side.outcome()
        start = time.perf_counter()
        side.outcome()
        return time.perf_counter() - start

    def _side(self, testing: bool) -> Side:
        labels = self._labels or self.label()
        if testing not in self._sides:
            kept = [i for i, label in enumerate(labels) if self._testing[i] == testing and label is not None]
            records, known = [self.records[i] for i in kept], [bool(labels[i]) for i in kept]
            self._sides[testing] = self._side_of(records, known, judge=self._judge, kept=self._kept)
        return self._sides[testing]

    def _statistic(self, sae: SparseAutoencoder, side: Side, known: bool, by: Any) -> Tensor:
        """float64[d_sae], the smallest over types of entities."""
        acts, labels, names, types = side.entities
        smallest = torch.full((sae.d_sae,), torch.inf, dtype=torch.float64)
        for kind in sorted(set(types)):
            rows = [i for i, of in enumerate(types) if of == kind]
            if len(labels[rows].unique()) < 2:
                which = "unknown" if labels[rows[0]] else "known"
                raise ValueError(
                    f"select expected {which} entities of type {kind!r} on the selecting side too, got none"
                )
            of_rows = (acts[rows], labels[rows] == known, [names[i] for i in rows])
            every = select_latents(sae, *of_rows, n=sae.d_sae, by=by, split=self.split)
            smallest[every.latents] = torch.minimum(smallest[every.latents], every.statistic)
        return smallest

    def _causal(
        self, sae: SparseAutoencoder, side: Side, known: bool, separation: Tensor, n_candidates: int
    ) -> Tensor:
        """float64[d_sae]: the effect of each candidate, clamped alone; -inf for other latents."""
        candidates = separation.argsort(descending=True, stable=True)[:n_candidates]
        candidates = candidates[separation[candidates] > 0]
        effects = torch.full_like(separation, -torch.inf)
        clean, of = side.outcome(), side.known != known
        for latent in candidates:
            value = typical(sae, latent[None], side.entities.acts)
            hold = partial(at_typical, clamp, self.model, sae, latent[None], value, self.hook_point, 1.0)
            edited = side.outcome(hold, digest_of("causal", sae is self.sae, latent, value))
            by_margin = edited.margin is not None and clean.margin is not None
            change = edited.margin - clean.margin if by_margin else edited.refused - clean.refused
            effects[latent] = -change[of].mean() if known else change[of].mean()
        return effects


def _named(judge: Any) -> str:
    """What a judge is, the same in every run."""
    return re.sub(r" at 0x[0-9a-fA-F]+", "", repr(judge))


def _directions(choosing: Side, split: Split) -> dict[str, Tensor]:
    """DiffMean and, where scikit-learn is installed, that of a logistic probe: from unknown to known."""
    acts, known, names, _ = choosing.entities
    found = {"DiffMean": diff_mean(acts, known, names, split)}
    try:
        return found | {"probe": probe_direction(acts, known, names, split)}
    except ImportError:
        return found


def _detections(
    side: Side, choices: Mapping[str, Chosen], directions: Mapping[str, Tensor]
) -> list[Detection]:
    """How well single latents and directions tell known from unknown, on entities that chose neither."""
    acts, known_entities, _, _ = side.entities
    found = []
    for name, choice in choices.items():
        sae = choice.sae
        for who, of, selection in (
            ("known", known_entities, choice.known),
            ("unknown", ~known_entities, choice.unknown),
        ):
            latents = selection.latents[: choice.n]
            with torch.no_grad():
                z = latent_acts_of(sae, acts.to(sae.device, sae.dtype), latents.to(sae.device))
            columns = zip(latents.tolist(), selection.statistic.tolist(), z.float().cpu().T)
            for latent, statistic, column in columns:
                fires = (column > 0).double()
                separation = float(fires[of].mean() - fires[~of].mean())
                area = auroc(column[~of], column[of])
                found.append(Detection(name, who, latent, statistic, separation, area))
    for name, direction in directions.items():
        projected = acts @ direction.cpu().float()
        area = auroc(projected[~known_entities], projected[known_entities])
        found.append(Detection(name, "known", None, None, None, area))
    return found
