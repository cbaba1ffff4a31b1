"""A monitor: how much a model's stream says "does not know", read while the model writes.

The score of a written token is read where it is predicted, at the token before it: the prompt's last token
for the first. So every token of an answer has one, and it is there before the token is. An answer's score is
its maximum over tokens. Or tokens of the prompt are read, such as an entity's, and their maximum is the
answer's.

A threshold keeps a false-alarm rate: of answers that are right, at most a share alpha exceeds it (conformal
quantile of right answers of the selecting side). A logistic curve of that side makes scores probabilities.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from saelens_lite.lm.decoder import Decoder
from saelens_lite.lm.forward_state import EditInfo
from saelens_lite.lm.hooks import edit, resolve
from saelens_lite.misfits import names_misfits
from saelens_lite.sae.autoencoder import SparseAutoencoder

from ..edits.stream_edit import latent_acts_of
from ..latents.compatibility import checked_latents, fits
from ..stats.bootstrap import Interval, bootstrap_statistic
from ..stats.calibration import brier_score, calibration_error, conformal_threshold
from ..stats.document_split import Documents, Split, document_ids
from ..stats.logistic import fit_few
from ..stats.ranks import weighted_auroc


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class Alarm:
    """What scores of answers are worth.

    threshold: above it is an alarm; infinity where too few right answers were there for alpha
    weight, bias: log odds of a wrong answer are weight · score + bias
    false_alarms, found: share of right and of wrong answers above the threshold, on the testing side, as are
    auroc, brier and calibration_error: of wrong against right answers, and of the probabilities
    n_selecting, n_testing: right and wrong answers on either side
    """

    alpha: float
    threshold: float
    weight: float
    bias: float
    false_alarms: float
    found: float
    auroc: Interval
    brier: float
    calibration_error: float
    n_selecting: tuple[int, int]
    n_testing: tuple[int, int]

    @names_misfits
    def probability(self, scores: Tensor) -> Tensor:
        """float64[...]: of a wrong answer."""
        return (self.weight * scores.double() + self.bias).sigmoid()

    def __str__(self) -> str:
        low, high = self.auroc.low.item(), self.auroc.high.item()
        return (
            f"alarm above {self.threshold:.4g}: of {self.n_testing[0]:,} right answers "
            f"{self.false_alarms:.1%} (meant: at most {self.alpha:.1%}), of {self.n_testing[1]:,} wrong ones "
            f"{self.found:.1%}; AUROC {self.auroc.estimate.item():.3f} ({low:.3f} to {high:.3f}), Brier "
            f"{self.brier:.3f}, calibration error {self.calibration_error:.3f}"
        )


@names_misfits
def fit_alarm(
    scores: Tensor,
    wrong: Tensor,
    documents: Documents | None = None,
    *,
    alpha: float = 0.05,
    split: Split | None = None,
) -> Alarm:
    """A threshold and probabilities from the selecting side, and what they are worth on the testing side.

    scores: float[n], of answers, as `Monitor.answers` gives them; wrong: bool[n]
    documents: what belongs together, such as the entity's name; None: each answer by itself
    alpha: share of right answers that may raise an alarm
    raises: ValueError for scores that are not finite, another number of the others, or a side without right
        and wrong answers
    """
    scores, wrong = torch.as_tensor(scores).detach().cpu().double(), torch.as_tensor(wrong).cpu().bool()
    ids = torch.arange(len(scores)) if documents is None else document_ids(documents)
    if scores.ndim != 1 or not scores.isfinite().all() or not len(scores) == len(wrong) == len(ids):
        raise ValueError(
            "fit_alarm expected a finite score, a label and a document of each answer, got "
            f"{list(scores.shape)}, {list(wrong.shape)} and {len(ids)}"
        )
    tests = (split or Split()).tests(ids)
    counts = [tuple(int((side & (wrong == one)).sum()) for one in (False, True)) for side in (~tests, tests)]
    if not min(map(min, counts)):
        raise ValueError(f"fit_alarm expected right and wrong answers on either side, got {counts}")
    threshold = conformal_threshold(scores[~tests & ~wrong], alpha)
    weight, bias = fit_few(scores[~tests, None], wrong[~tests])
    seen, of = scores[tests], wrong[tests]
    p = (float(weight) * seen + bias).sigmoid()
    area = bootstrap_statistic(lambda drawn: weighted_auroc(seen[:, None], of, drawn), ids[tests])
    return Alarm(
        alpha,
        threshold,
        float(weight),
        bias,
        float((seen[~of] > threshold).double().mean()),
        float((seen[of] > threshold).double().mean()),
        area,
        brier_score(p, of),
        calibration_error(p, of),
        *counts,
    )


class Monitor:
    """Reads a score of "does not know" while a model generates.

        monitor = Monitor(model, sae, [17, 903])
        with monitor.reading():
            out = model.generate(**inputs, max_new_tokens=20)
        monitor.tokens(out)      # float[answers new tokens]
        monitor.answers(out)     # float[answers], the maxima

    Inside, `generate(…, stopping_criteria=[monitor])` ends each answer whose score exceeds the threshold.

    sae: whose latents are read, or None for a direction, which needs hook_point
    latents_or_probe: latents that fire where the model does not know, whose activations are added; or a
        direction float[d_model], along which the stream is read, such as a probe's weights
    hook_point: naming one, the caller vouches that the SAE fits there
    threshold: of the score, such as `fit_alarm(…).threshold`
    raises: ValueError for what does not fit the model
    """

    @names_misfits
    def __init__(
        self,
        model: nn.Module,
        sae: SparseAutoencoder | None,
        latents_or_probe: Sequence[int] | Tensor,
        *,
        hook_point: str | None = None,
        threshold: float = math.inf,
    ) -> None:
        self.model, self.threshold = model, threshold
        self._decoder, self._sae = Decoder(model), sae
        if sae is None and hook_point is None:
            raise ValueError("a monitor without an SAE expected the probe's hook_point=")
        point = (
            resolve(self._decoder, hook_point).name if sae is None else fits(sae, self._decoder, hook_point)
        )
        self.hook_point, given = point, torch.as_tensor(latents_or_probe)
        self._latents, self._probe = None, None
        if given.is_floating_point():
            width = resolve(self._decoder, point).width(self._decoder)
            if given.ndim != 1 or (width is not None and len(given) != width) or not given.isfinite().all():
                raise ValueError(f"a probe expected {width} finite weights, got {list(given.shape)}")
            self._probe = given.detach()
        elif sae is None:
            raise ValueError("a monitor of latents expected their SAE, got None")
        else:
            self._latents = checked_latents(sae, latents_or_probe)
            if not len(self._latents):
                raise ValueError("a monitor expected at least one latent, got none")
        self._where: Tensor | None = None
        self._clear()

    def _clear(self) -> None:
        self._steps: list[Tensor] = []
        self._of_prompt: Tensor | None = None
        self._prompt_columns, self._n_examples = 0, 0

    @contextmanager
    @names_misfits
    def reading(self, where: Tensor | None = None) -> Iterator[Monitor]:
        """Reads inside, the last `generate` call.

        where: bool[batch width], tokens of the prompt, such as an entity's (`sl.lm.span_mask`), that are
            read in place of what is written
        raises: inside, ValueError for passes of several tokens behind the prompt, as in assisted decoding
        """
        self._clear()
        self._where = where
        with edit(self._decoder, self.hook_point, self._read):
            yield self

    @names_misfits
    def tokens(self, written: Any, eos_token_id: int | Sequence[int] | None = None) -> Tensor:
        """float32[answers n_new]: a score for each written token; nan behind an answer's end.

        written: what `generate` returned; with beams, that of return_dict_in_generate=True
        eos_token_id: tokens that end an answer, by default those of the model's generation_config
        raises: ValueError where nothing of it was read
        """
        sequences, beams = _sequences(written)
        if not self._steps:
            raise ValueError("a monitor expected a generate call inside reading() without where=, got none")
        read = torch.stack(self._steps, dim=1).cpu()
        new = sequences[:, self._prompt_columns :]
        if new.shape[1] > read.shape[1]:
            raise ValueError(
                f"expected an answer of at most the {read.shape[1]} tokens that were read, got "
                f"{new.shape[1]}: "
                "pass what the last generate call returned"
            )
        steps = torch.arange(new.shape[1])
        if beams is not None:
            found = read[beams[:, : new.shape[1]].clamp_min(0), steps]
            ended = beams[:, : new.shape[1]] < 0
        elif len(new) != len(read):
            raise ValueError(
                f"{len(read)} rows were read and {len(new)} answers returned, as with beams: generate with "
                "return_dict_in_generate=True, whose beam_indices say which row each token was in"
            )
        else:
            found, ended = read[:, : new.shape[1]], torch.zeros_like(new, dtype=torch.bool)
        return found.masked_fill(ended | self._behind_end(new, eos_token_id), torch.nan)

    @names_misfits
    def answers(self, written: Any, eos_token_id: int | Sequence[int] | None = None) -> Tensor:
        """float32[answers]: the maximum over an answer's tokens, or those of the prompt that were read."""
        if self._of_prompt is not None:
            n = len(_sequences(written)[0])
            every = self._of_prompt.view(self._n_examples, -1)[:, 0].cpu()
            return every.repeat_interleave(n // len(every))
        return self.tokens(written, eos_token_id).nan_to_num(-math.inf).amax(1)

    @names_misfits
    def __call__(self, input_ids: Tensor, scores: Any, **_: Any) -> Tensor:
        """bool[rows]: answers that end here, as a stopping criterion of `generate`."""
        read = self._of_prompt if self._of_prompt is not None else self._steps[-1] if self._steps else None
        if read is None or len(read) != len(input_ids):
            raise ValueError(
                "a monitor that stops answers expected generate inside its reading(), greedy or "
                "sampled; with "
                "beams, compare monitor.answers(…) with the threshold"
            )
        return (read > self.threshold).to(input_ids.device)

    def _read(self, acts: Tensor, info: EditInfo) -> Tensor:
        prompt = info.prompt_columns or acts.shape[1]
        last = int(info.columns[-1])
        if info.past_tokens == 0:
            where, self._prompt_columns = self._where, prompt
            self._n_examples = info.n_examples or len(acts)
            if last + 1 <= prompt:
                self._steps, self._of_prompt = [], None
        if self._where is not None:
            if info.past_tokens == 0 and last + 1 == prompt:
                self._of_prompt = self._at_prompt(acts, where)
            return acts
        step = last - (prompt - 1)
        if step < 0:
            return acts  # a part of a prompt that comes in chunks
        if acts.shape[1] > 1 and info.past_tokens > 0 and step > 0:
            raise ValueError(
                "a monitor expected one token a pass behind the prompt, got "
                f"{acts.shape[1]}: decode without an assistant"
            )
        del self._steps[step:]
        self._steps.append(self._scores(acts[:, -1]))
        return acts

    def _at_prompt(self, acts: Tensor, where: Tensor) -> Tensor:
        if where.shape[-1] != acts.shape[1] or len(acts) % len(where):
            raise ValueError(
                f"where expected the prompt's shape {[self._n_examples, acts.shape[1]]}, got "
                f"{list(where.shape)}"
            )
        mask = where.to(acts.device).bool().repeat_interleave(len(acts) // len(where), dim=0)
        if not mask.any(1).all():
            raise ValueError("where expected at least one token of each prompt, got a row without")
        every = acts.new_full(mask.shape, -math.inf, dtype=torch.float32)
        every[mask] = self._scores(acts[mask]).to(acts.device)
        return every.amax(1)

    def _scores(self, rows: Tensor) -> Tensor:
        """float32[n], of the stream float[n d_model]."""
        with torch.no_grad():
            if self._probe is not None:
                return (rows @ self._probe.to(rows)).float()
            sae = self._sae
            z = latent_acts_of(sae, rows.to(sae.device, sae.dtype), self._latents.to(sae.device))
            return z.sum(-1).float()

    def _behind_end(self, new: Tensor, ends: int | Sequence[int] | None) -> Tensor:
        """bool[answers n_new]: tokens behind the first that ends an answer."""
        if ends is None:
            ends = getattr(getattr(self.model, "generation_config", None), "eos_token_id", None)
        ends = [] if ends is None else torch.as_tensor(ends).reshape(-1).tolist()
        is_end = torch.isin(new, torch.tensor(ends, dtype=new.dtype))
        return is_end.cumsum(1) - is_end.long() > 0


def _sequences(written: Any) -> tuple[Tensor, Tensor | None]:
    """int64[answers width], and of each new token its row; None without beams; on the CPU."""
    beams = getattr(written, "beam_indices", None)
    sequences = getattr(written, "sequences", written)
    if not isinstance(sequences, Tensor):
        raise ValueError(f"expected what generate returned, got {type(written).__name__}")
    return sequences.cpu(), None if beams is None else beams.cpu().long()
