"""From chosen latents to their effects: every edit on the testing side, with controls, rivals and fixed
outcomes."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from saelens_lite.progress import bar

from ..edits.controls import matched_latents
from ..edits.neutral_text import NeutralText, side_effects
from ..edits.refusal_logit import TradeOff, constants, refusal_logit
from ..latents.moments import latent_stats
from ..stats.document_split import document_ids
from .fixed_outcomes import MITIGATION_DOSES, FixedOutcome, fixed_outcome, mitigating_dose
from .half import Edit, Outcome, Side
from .kept import digest_of
from .planned_edits import Chosen, EditsOf, Planned, Prepared, along, as_far, planned_edits
from .result import Detection, Flipped, StudyResult, assembled
from .surface import across_types, guarded


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Effects:
    """What is measured, of one study; its fields are those of `HallucinationStudy.run`.

    side, choosing: the testing and the selecting one; choices: by "trained" and, if there is one, "baseline"
    refusals: token ids whose logit is the rival of every edit, if the judge has any
    instructed: the testing side with an instruction before each prompt
    """

    model: nn.Module
    hook_point: str
    side: Side
    choosing: Side
    choices: Mapping[str, Chosen]
    doses: Sequence[float]
    n_controls: int
    score: str
    rivals: Mapping[str, Edit]
    neutral: NeutralText | None
    modes: Sequence[str]
    sizes: Sequence[int]
    refusals: Sequence[int] | None
    instructed: Side | None
    bootstrap: dict[str, Any]

    def measured(
        self,
        directions: Mapping[str, Tensor],
        detections: Callable[[Side], list[Detection]],
    ) -> StudyResult:
        """directions: from unknown to known, by name; detections: how well latents read, on a side"""
        side, choosing = self.side, self.choosing
        clean, choosing_clean = side.outcome(), choosing.outcome()
        pushes: dict[tuple[bool, str, float], float] = {}
        prepared = []  # all controls are drawn first: too few latents are reported before the long part
        for name in self.choices:
            edits = self._edits(name)
            for of in planned_edits(edits, name, self.doses, side.push, pushes, self.modes, self.sizes):
                prepared.append((of, *self._controls(name, of)))
        done = [(Planned("no edit"), clean)]
        for of, along_draws, ratio in bar(prepared, "edits and their controls", "edit"):
            done.append(self._with_controls(of, along_draws, ratio))
        for name in self.choices:
            done.append((Planned("splice", name), side.outcome(self._edits(name).splice, f"splice {name}")))
        for name, direction in directions.items():
            for (known, title, dose), push in pushes.items():
                if title in ("clamp known", "clamp unknown"):
                    edit = along(self.model, self.hook_point, direction if known else -direction, push)
                    sign, measure = ("+", "hallucination") if known else ("−", "refusal")
                    key = digest_of(name, known, direction, push)
                    done.append((Planned(f"{name} {sign}", "", dose, measure), side.outcome(edit, key)))
        done += [(Planned(name), side.outcome(edit, name)) for name, edit in self.rivals.items()]
        if self.instructed is not None:
            done.append((Planned("instruction"), self.instructed.outcome()))
        result = assembled(done, side, detections(side), self.bootstrap, self.score)
        trained = self.choices["trained"]
        latents = {"known": trained.known.latents, "unknown": trained.unknown.latents}
        both = (choosing, side)
        return dataclasses.replace(
            result,
            fixed=(self._primary(done), self._mitigation(clean, choosing_clean)),
            curve=self._curve(clean),
            guard=guarded(
                both,
                trained.sae,
                {who: of[: trained.n] for who, of in latents.items()},
                directions,
                (choosing_clean, clean),
                **self.bootstrap,
            ),
            across=tuple(across_types(choosing, side, trained.sae, "separation", trained.known.split)),
            flipped=tuple(_flipped(side, clean, done, self.doses)),
        )

    def _edits(self, name: str) -> EditsOf:
        return EditsOf(self.model, self.hook_point, self.choices[name], self.choosing.entities.acts)

    def _controls(self, name: str, of: Prepared) -> tuple[Tensor, float | None]:
        """Directions float[n_controls n d_model] of matched sets that move the stream as far."""
        sae, acts = self.choices[name].sae, self.choosing.entities.acts
        latents = torch.tensor(of.planned.latents)
        rates = latent_stats(sae, [acts]).rate
        how = {"n_draws": self.n_controls, "seed": self.bootstrap["seed"]}
        controls = matched_latents(sae, latents, rates, **how)
        scaled = as_far(sae, latents, of.target, self.side.acts, controls.directions, of.adds)
        return scaled, controls.rate_ratio

    def _with_controls(self, of: Prepared, draws: Tensor, ratio: float | None) -> tuple[Planned, Outcome]:
        planned, key = of.planned, digest_of(*of.planned[:6], of.target)
        if self.neutral is not None:
            how = {"hook_point": self.hook_point, **self.bootstrap}
            of_text = side_effects(self.model, partial(of.edit, "all"), self.neutral, **how)
            planned = planned._replace(side_effects=of_text)
        drawn = tuple(
            self.side.outcome(partial(of.edit, directions=draw), digest_of(key, draw)) for draw in draws
        )
        return planned._replace(controls=drawn, rate_ratio=ratio), self.side.outcome(of.edit, key)

    def _primary(self, done: Sequence[tuple[Planned, Outcome]]) -> FixedOutcome:
        clamps = {
            (edit.sae, edit.dose): (edit, outcome) for edit, outcome in done if edit.name == "clamp known"
        }
        trained = [clamps["trained", dose] for dose in self.doses]
        rival = [clamps["baseline", dose][1] for dose in self.doses if "baseline" in self.choices]
        return self._fixed(
            "primary",
            [outcome for _, outcome in trained],
            rival,
            [edit.controls for edit, _ in trained],
            self.doses,
        )

    def _mitigation(self, clean: Outcome, choosing_clean: Outcome) -> FixedOutcome:
        """The dose of each SAE is chosen on the selecting side."""
        outcomes, controls, own = {}, [], 0.0
        for name in self.choices:
            edits = self._edits(name)
            latents = edits.latents(False, self.choices[name].n)
            hold, unit = edits.clamp(latents), edits.typical(latents)

            def answered(side: Side, dose: float, hold: Any = hold, unit: Tensor = unit) -> Outcome:
                return side.outcome(partial(hold, dose), digest_of("mitigation", unit, dose))

            at = {dose: answered(self.choosing, dose) for dose in MITIGATION_DOSES}
            dose = mitigating_dose(choosing_clean, at, self.choosing.known)
            outcomes[name] = answered(self.side, dose)
            if name == "trained":
                planned = Planned("mitigation", name, dose, None, tuple(latents.tolist()), dose)
                of, own = Prepared(planned, partial(hold, dose), dose * unit), dose
                controls = [self._with_controls(of, *self._controls(name, of))[0].controls]
        rival = [outcomes["baseline"]] if "baseline" in outcomes else []
        return self._fixed("mitigation", [outcomes["trained"]], rival, controls, [own])

    def _fixed(
        self,
        name: str,
        trained: Sequence[Outcome],
        baseline: Sequence[Outcome],
        controls: Sequence[Sequence[Outcome]],
        doses: Sequence[float],
    ) -> FixedOutcome:
        ids = document_ids(self.side.clusters)
        clean = self.side.outcome()
        of = (clean, trained, baseline, controls, self.side.known, ids, doses)
        return fixed_outcome(name, *of, self.bootstrap)

    def _curve(self, clean: Outcome) -> tuple[TradeOff, ...]:
        if self.refusals is None or clean.margin is None:
            return ()
        found = []
        for constant in constants(clean.margin):
            outcome = self.side.outcome(
                lambda _where, by=constant: refusal_logit(self.model, self.refusals or (), by),
                f"refusal logit {constant}",
            )
            rates = {name: of.mean().item() for name, of in outcome.measures(self.side.known).items()}
            found.append(TradeOff(constant, rates["hallucination"], rates["refusal"], rates["accuracy"]))
        return tuple(found)


def _flipped(
    side: Side, clean: Outcome, done: Sequence[tuple[Planned, Outcome]], doses: Sequence[float], n: int = 5
) -> list[Flipped]:
    """Questions that the clamps nearest to dose 1 turn: at most n for each."""
    dose, found = min(doses, key=lambda one: abs(one - 1)), []
    for edit, outcome in done:
        if edit.sae != "trained" or edit.dose != dose or edit.name not in ("clamp known", "clamp unknown"):
            continue
        before, after = (_verdicts(of) for of in (clean, outcome))
        turned = [i for i, (one, other) in enumerate(zip(before, after)) if one != other]
        for i in turned[:n]:
            texts = tuple(of.texts[i] if of.texts else "" for of in (clean, outcome))
            record, known = side.records[i], bool(side.known[i])
            found.append(Flipped(edit.name, record.prompt, record.place, known, before[i], after[i], *texts))
    return found


def _verdicts(of: Outcome) -> list[str]:
    """By what holds for more than half of the answers."""
    return [
        "refused" if refused > 0.5 else "right" if correct > 0.5 else "wrong"
        for refused, correct in zip(of.refused.tolist(), of.correct.tolist())
    ]


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
