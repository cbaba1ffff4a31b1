"""Whether what a score reads is more than the surface of the items: the guard against shortcuts.

Known names may be shorter, and then any latent that counts tokens tells them from unknown ones. So each score
(a latent, a probe) stands beside rivals that see only the surface: lengths, token frequencies, the template.
What is fitted of either is fitted on the selecting side, and both are compared on the testing side.

A number is a rival as it is, as any function of itself (the share of label 1 in each stratum), and with all
others in one logistic regression; a category by the share of label 1 in each. A stratum is an exact value
where there are few, and a fifth of the items otherwise. The verdict on a score, by one-sided tests of
AUROC(score) − AUROC(rival) in a paired cluster bootstrap, at half the error that the confidence leaves, after
Holm over rivals and chance:

    beyond the rivals             above every one of them, and above chance
    confounded by X               X itself is above .5, and the score not above X; of several, X is the one
                                  that the score is least above, and all together where no single one is such
    no more than popularity       the same, where popularity alone is such a rival: how often an entity is met
                                  is no shortcut, yet something else than knowledge
    reads nothing                 not above .5, nor by the upper end of its interval of use
    undecided: too few entities   none of these, or fewer than LEAST_CLUSTERS of either label on a side

Beside the verdict stands the AUROC over pairs, one item of each label, that share a stratum of a rival.
source of the question: leaders on RAGTruth are matched by probes of shortcuts, arXiv:2509.19372
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from saelens_lite.misfits import names_misfits

from .bootstrap import holm, interval_of_draws, p_above_zero, statistic_draws
from .document_split import Documents, Split, document_ids
from .logistic import fit_few
from .ranks import weighted_auroc
from .rival_report import GuardedScore, InStrata, RivalReport, RivalScore

Rival = Tensor | np.ndarray | Sequence[float] | Sequence[str]
"""A number of each item, float[n], or a category, str each."""

BEYOND, NOTHING = "beyond the rivals", "reads nothing"
NO_MORE, UNDECIDED = "no more than popularity", "undecided: too few entities"
TOGETHER, POPULARITY = "all rivals together", "popularity"

LEAST_CLUSTERS = 10
"""Clusters of each label that a side must have for a verdict."""
USEFUL = 0.7
"""AUROC that a score may still have for its not being above .5 to leave it undecided."""
LEAST_PAIRS = 30
"""Pairs of equal stratum below which no AUROC is given."""
_FEW_VALUES, _N_QUANTILES = 20, 5


@names_misfits
def against_rivals(
    scores: Mapping[str, Rival],
    labels: Tensor,
    rivals: Mapping[str, Rival],
    documents: Documents | None = None,
    *,
    popularity: Rival | None = None,
    beside: Mapping[str, Rival] | None = None,
    split: Split | Tensor | None = None,
    n_resamples: int = 2000,
    confidence: float = 0.95,
    seed: int = 0,
) -> RivalReport:
    """Whether each score tells label 1 from label 0 better than the surface of the items does.

    scores: float[n] each, by name, such as the activations of latents; either sign of them may say 1
    labels: bool[n], such as whether the entity is known
    rivals: of each item a number, float[n], or a category, str each; at least one
    documents: what belongs together and is drawn together, such as the entity's name; None: each its own
    popularity: of each item, a rival whose verdict is its own and which is not fitted with the others
    beside: scores that are shown and confound nothing, such as a probe or the answer's log probability
    split: by default Split(), by document; or bool[n], which items test, such as those of another type
    raises: ValueError for values that are not finite or another number of them, no rivals, a side without
        both labels, or a document with items on both sides
    """
    labels = torch.as_tensor(labels).cpu().bool().reshape(-1)
    n, popular = len(labels), {} if popularity is None else {POPULARITY: popularity}
    names = [*scores, *rivals, *(beside or {}), *popular]
    if not scores or not rivals or len(set(names)) < len(names):
        raise ValueError(
            "against_rivals expected scores and rivals, at least one each, by names that differ, got "
            f"{names}; popularity has an argument of its own"
        )
    values = {
        name: _checked(name, of, n)
        for group in (scores, beside or {}, rivals, popular)
        for name, of in group.items()
    }
    ids = torch.arange(n) if documents is None else document_ids(documents)
    if len(ids) != n:
        raise ValueError(f"documents expected one for each of {n} items, got {len(ids)}")
    tests = _testing(split, ids)
    n_clusters = _clusters(ids, labels, ~tests), _clusters(ids, labels, tests)
    side = _Selecting(labels, ~tests)

    signs = {}
    for name in [*scores, *(beside or {})]:
        if not isinstance(values[name], Tensor):
            raise ValueError(f"{name!r} expected a number of each item, got categories")
        signs[name] = side.sign(values[name])
    columns = {name: sign * values[name] for name, sign in signs.items()}
    strata = {name: _strata(values[name]) for name in [*rivals, *popular]}
    contending = _rival_scores(values, strata, list(rivals), list(popular), side)
    table, of_test = torch.stack([*columns.values(), *contending.values()], dim=1)[tests], labels[tests]

    def statistic(weights: Tensor) -> Tensor:
        return weighted_auroc(table, of_test, weights)

    drawn = None
    if min(map(min, n_clusters)) >= LEAST_CLUSTERS:
        drawn = statistic_draws(statistic, ids[tests], n_resamples=n_resamples, seed=seed)
    at = {name: i for i, name in enumerate([*columns, *contending])}
    found = _Found(statistic(torch.ones(1, len(of_test)).double())[0], drawn, confidence)
    against = [found.row(name, at[name]) for name in contending]
    within = {name: _in_strata(table[:, : len(scores)], of_test, of[tests]) for name, of in strata.items()}
    guarded = [
        _guarded(
            found.row(name, i),
            signs[name],
            found.difference(i, [*(at[rival] for rival in contending), -1]),
            against,
            found.alpha,
            {rival: of[i] for rival, of in within.items()},
        )
        for i, name in enumerate(scores)
    ]
    shown = tuple(found.row(name, at[name]) for name in beside or {})
    return RivalReport(tuple(guarded), tuple(against), shown, n_clusters, confidence)


class _Found:
    """AUROCs of all columns on the testing side: estimate float64[m], and their draws, if there are any."""

    def __init__(self, estimate: Tensor, drawn: tuple[Tensor, Tensor, int] | None, confidence: float) -> None:
        self.estimate, self.confidence, self.alpha = estimate, confidence, (1 - confidence) / 2
        self._drawn = drawn

    def difference(self, i: int, others: Sequence[int]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """AUROC of column i less that of others, low, high and p, float64[n] each; nan without draws.

        others: columns, −1 for chance
        """
        estimate = self.estimate[i] - self._at(self.estimate, others)
        if self._drawn is None:
            unknown = torch.full_like(estimate, torch.nan)
            return estimate, unknown, unknown, unknown
        _, drawn, n = self._drawn
        less = drawn[:, i, None] - self._at(drawn, others)
        interval = interval_of_draws(estimate, less, n, self.confidence)
        return estimate, interval.low, interval.high, p_above_zero(less, n)

    def row(self, name: str, i: int) -> RivalScore:
        above, low, high, p = (float(of) for of in self.difference(i, [-1]))
        return RivalScore(name=name, auroc=0.5 + above, auroc_low=0.5 + low, auroc_high=0.5 + high, p=p)

    @staticmethod
    def _at(areas: Tensor, columns: Sequence[int]) -> Tensor:
        with_chance = torch.cat([areas, torch.full_like(areas[..., :1], 0.5)], dim=-1)
        return with_chance[..., list(columns)]


def _guarded(
    own: RivalScore,
    sign: int,
    difference: Sequence[Tensor],
    rivals: Sequence[RivalScore],
    alpha: float,
    in_strata: dict[str, InStrata],
) -> GuardedScore:
    """The verdict; difference: from each rival, and from chance."""
    less, low, high, p = difference
    adjusted = holm(p) if not p.isnan().any() else p
    closest = int(less[:-1].argmin())
    doubtful = [j for j in range(len(rivals)) if adjusted[j] > alpha and rivals[j].p <= alpha]
    if p.isnan().any():
        verdict = UNDECIDED
    elif (adjusted <= alpha).all():
        verdict = BEYOND
    elif own.p > alpha:
        verdict = UNDECIDED if own.auroc_high >= USEFUL else NOTHING
    elif surface := [j for j in doubtful if rivals[j].name != POPULARITY]:
        closest = min(surface, key=lambda j: (rivals[j].name == TOGETHER, float(less[j])))
        verdict = f"confounded by {rivals[closest].name}"
    elif doubtful:
        closest, verdict = doubtful[0], NO_MORE
    else:
        verdict = UNDECIDED
    return GuardedScore(
        name=own.name,
        sign=sign,
        auroc=own.auroc,
        auroc_low=own.auroc_low,
        auroc_high=own.auroc_high,
        closest=rivals[closest].name,
        less=float(less[closest]),
        less_low=float(low[closest]),
        less_high=float(high[closest]),
        p=float(adjusted.max()),
        verdict=verdict,
        in_strata=in_strata,
    )


class _Selecting:
    """What is fitted on the selecting side; labels, selects: bool[n]."""

    def __init__(self, labels: Tensor, selects: Tensor) -> None:
        self.labels, self.selects = labels, selects

    def sign(self, values: Tensor) -> int:
        once = torch.ones(1, int(self.selects.sum()), dtype=torch.float64)
        return -1 if weighted_auroc(values[self.selects], self.labels[self.selects], once) < 0.5 else 1

    def shares(self, codes: Tensor) -> Tensor:
        """float64[n]: the share of label 1 in each item's stratum int64[n], drawn to the overall share by one
        item."""
        inside, ones = codes[self.selects], self.labels[self.selects].double()
        n_codes = int(codes.max()) + 1
        counts = torch.bincount(inside, minlength=n_codes)
        sums = torch.bincount(inside, ones, minlength=n_codes)
        return ((sums + ones.mean()) / (counts + 1))[codes]

    def together(self, columns: Tensor) -> Tensor:
        """float64[n]: the log odds of one logistic regression."""
        weights, bias = fit_few(columns[self.selects], self.labels[self.selects])
        return columns @ weights + bias


def _rival_scores(
    values: Mapping[str, Tensor | list[str]],
    strata: Mapping[str, Tensor],
    rivals: Sequence[str],
    popular: Sequence[str],
    side: _Selecting,
) -> dict[str, Tensor]:
    """float64[n] by name: every rival alone, as it is and by stratum, and all of them together."""
    found, columns = {}, []
    for name in [*rivals, *popular]:
        value, codes = values[name], strata[name]
        if isinstance(value, Tensor):
            found[name] = side.sign(value) * value
            if len(codes.unique()) > 2 and name not in popular:
                found[f"{name} (any function)"] = side.shares(codes)
        else:
            found[name] = side.shares(codes)
        if name not in popular:
            one_hot = torch.nn.functional.one_hot
            columns.append(value[:, None] if isinstance(value, Tensor) else one_hot(codes).double())
    if len(rivals) > 1:
        found[TOGETHER] = side.together(torch.cat(columns, dim=1))
    return found


def _strata(value: Tensor | list[str]) -> Tensor:
    """int64[n]: the category, the count where there are few, else the fifth of the items."""
    if not isinstance(value, Tensor):
        number = {name: i for i, name in enumerate(sorted(set(value)))}
        return torch.tensor([number[name] for name in value])
    distinct, codes = value.unique(return_inverse=True)
    if len(distinct) <= _FEW_VALUES:
        return codes
    inner = torch.arange(1, _N_QUANTILES, dtype=torch.float64) / _N_QUANTILES
    return torch.searchsorted(value.quantile(inner), value)


def _in_strata(scores: Tensor, labels: Tensor, codes: Tensor) -> list[InStrata]:
    """Of each of m scores float64[n m], over pairs of one stratum int64[n]."""
    inside = torch.nn.functional.one_hot(codes).T.double()
    n_pairs = (inside @ labels.double()) * (inside @ (~labels).double())
    total = int(n_pairs.sum())
    if total < LEAST_PAIRS:
        return [InStrata(None, total)] * scores.shape[1]
    areas = weighted_auroc(scores, labels, inside[n_pairs > 0])
    return [InStrata(float(one), total) for one in n_pairs[n_pairs > 0] @ areas / total]


def _checked(name: str, given: Rival, n: int) -> Tensor | list[str]:
    """float64[n], or the categories."""
    if len(given) != n:
        raise ValueError(f"{name!r} expected a value of each of {n} items, got {len(given)}")
    if not isinstance(given, Tensor | np.ndarray) and any(isinstance(value, str) for value in given):
        return [str(value) for value in given]
    value = torch.as_tensor(given).detach().cpu().double().reshape(n, -1)
    if value.shape[1] != 1 or not value.isfinite().all():
        raise ValueError(f"{name!r} expected one finite number of each item, got {list(value.shape)}, or nan")
    return value[:, 0]


def _testing(split: Split | Tensor | None, ids: Tensor) -> Tensor:
    """bool[n]."""
    if not isinstance(split, Tensor):
        return (split or Split()).tests(ids)
    tests = split.cpu().bool().reshape(-1)
    if len(tests) != len(ids):
        raise ValueError(f"split expected whether each of {len(ids)} items tests, got {len(tests)}")
    if both := set(ids[tests].tolist()) & set(ids[~tests].tolist()):
        raise ValueError(f"{len(both)} documents have items on both sides of the split: divide by document")
    return tests


def _clusters(ids: Tensor, labels: Tensor, here: Tensor) -> tuple[int, int]:
    counts = tuple(len(ids[here & (labels == one)].unique()) for one in (False, True))
    if not min(counts):
        raise ValueError(
            "against_rivals expected both labels on either side of the split, got "
            f"{counts[0]} clusters of 0 and {counts[1]} of 1"
        )
    return counts
