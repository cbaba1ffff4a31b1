"""Sparse probing: how well a few latents of an SAE tell labelled texts apart, beside the activations.

What is fitted (fit.py) sees training texts alone; the test texts are scored once. The table always has the
probe of all activations and DiffMean, to which probes of latents often lose (Kantamneni et al. 2025), and a
probe of the number of tokens: where one class has longer texts, anything that adds up over tokens knows it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from saelens_lite.errors import nearest
from saelens_lite.misfits import names_misfits

from ..stats.bootstrap import Interval, bootstrap_statistic
from ..stats.document_split import Split
from ..stats.ranks import weighted_auroc
from ..stats.rival_report import RivalReport
from ..stats.rivals import Rival, against_rivals
from .clusters import classes_of, clusters_of, folds_of, sides
from .fit import (
    INVERSE_L2,
    SELECTIONS,
    FittedProbe,
    Preparation,
    all_columns,
    fit_probe,
    mean_direction,
    strongest_latents,
)
from .pooling import PooledLatents
from .report import ACTS, DIFF_MEAN, LENGTH, ProbeReport, ProbeRow


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class _Task:
    """of_class: int64[n], of each text; clusters: int64[n], equal for texts that belong together."""

    of_class: np.ndarray
    classes: list[Hashable]
    clusters: Tensor

    def sides(self, split: Split) -> tuple[np.ndarray, np.ndarray]:
        return sides(self.clusters, self.of_class, self.classes, split)

    @property
    def probed(self) -> list[int]:
        """The classes that have a probe of their own: of two only the second."""
        return [1] if len(self.classes) == 2 else list(range(len(self.classes)))

    def aurocs(self, scores: np.ndarray, of_class: np.ndarray, weights: Tensor | None = None) -> Tensor:
        """float64[r], means over classes by row of weights float64[r n], or 1 each; scores: float64[n m]."""
        weights = torch.ones(1, len(of_class), dtype=torch.float64) if weights is None else weights
        each = [weighted_auroc(scores[:, j], of_class == i, weights) for j, i in enumerate(self.probed)]
        return torch.stack(each).mean(0)


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class _Contestant:
    name: str
    features: Any
    prepare: Preparation
    sae: str | None = None
    k: int | None = None


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class _Fitted:
    """scores: float64[n_test m], log odds of each probed class; probes: one for each of the m."""

    scores: np.ndarray
    probes: list[FittedProbe]


@names_misfits
def sparse_probes(
    features: PooledLatents,
    labels: Sequence[Hashable],
    groups: Sequence[Hashable] | None = None,
    *,
    k: Sequence[int] = (1, 2, 5, 16),
    select_by: str = "mean_difference",
    split: Split | None = None,
    n_splits: int = 1,
    inverse_l2: Sequence[float] = INVERSE_L2,
    n_folds: int = 4,
    n_shuffles: int = 3,
    rivals: Mapping[str, Rival] | None = None,
    n_resamples: int = 2000,
    confidence: float = 0.95,
) -> ProbeReport:
    """Probes of k latents and of all latents of each SAE, of activations, DiffMean and text length.

    labels: the class of each text, str, int or bool; of two the last in order is the positive one, of more
        each is probed against the rest
    groups: of each text what it shares with others (its author, entity, source); related texts, and texts
        equal but for case and white space, are on one side, in one fold, and drawn together for intervals
    k: numbers of latents; select_by: "mean_difference" or "standardised", see `fit.strongest_latents`
    split: by default a test share of 0.3; n_splits: repeat with further seeds, for the noise of the split
    inverse_l2: C among which cross-validation in n_folds of the training texts chooses
    n_shuffles: repetitions of the control with shuffled labels, at the C found with the true ones
    rivals: what else of each text could give its class away, such as `sl.stats.surface_rivals(tokenizer,
        texts)` or its source; of two classes, every probe gets a verdict of `sl.stats.against_rivals` beside
        these and its number of tokens
    raises: ValueError for arguments that do not fit each other, or too few texts of a class on a side;
        ImportError without scikit-learn
    Who takes the best of several settings (pool, hook point, SAE) by these numbers has chosen on the test
    texts: another seed of the split, or other texts, say what the choice is worth.
    source: Gurnee et al. 2023, arXiv:2305.01610; SAEBench, arXiv:2503.09532; Kantamneni et al. 2025,
        arXiv:2502.16681
    """
    try:
        import sklearn.linear_model  # noqa: F401
    except ImportError as error:
        raise ImportError(
            "sparse_probes expected scikit-learn, which is not installed: pip install 'saelens_lite[probes]'"
        ) from error
    if select_by not in SELECTIONS:
        raise ValueError(
            f"select_by expected one of {SELECTIONS}, got {select_by!r}{nearest(str(select_by), SELECTIONS)}"
        )
    if n_splits < 1 or n_folds < 2 or n_shuffles < 0:
        raise ValueError(
            f"expected n_splits ≥ 1, n_folds ≥ 2, n_shuffles ≥ 0, got {n_splits}, {n_folds}, {n_shuffles}"
        )
    if not inverse_l2 or min(inverse_l2) <= 0:
        raise ValueError(f"inverse_l2 expected positive numbers, got {tuple(inverse_l2)}")
    split = split or Split(test_fraction=0.3)
    classes, of_class = classes_of(labels, len(features))
    task = _Task(of_class, classes, clusters_of(features.documents, groups))
    contestants = _contestants(features, k, select_by)

    splits = [dataclasses.replace(split, seed=split.seed + i) for i in range(n_splits)]
    runs = [_fit_all(contestants, task, each, n_folds, inverse_l2) for each in splits]
    fitted = runs[0]
    train, test = task.sides(split)
    interval = _intervals(fitted, task, test, n_resamples, confidence, split.seed)
    over_splits = _over_splits(runs, task, splits) if n_splits > 1 else None
    shuffled = _shuffled(contestants, fitted, task, split, n_shuffles) if n_shuffles else None
    guard = None
    if len(classes) == 2:
        surface = {"tokens": features.n_tokens} | dict(rivals or {})
        how = {"n_resamples": n_resamples, "confidence": confidence, "seed": split.seed}
        guard = _guard(contestants, fitted, task, split, surface, how)

    n = len(contestants)
    rows = []
    for i, (contestant, one) in enumerate(zip(contestants, fitted)):
        f1, accuracy = _decisions(one.scores, of_class[test], task)
        numbers: dict[str, Any] = {}
        for name, place in (("auroc", i), ("less_acts", n + i)):
            numbers[name] = float(interval.estimate[place])
            numbers |= {f"{name}_{end}": float(getattr(interval, end)[place]) for end in ("low", "high")}
        rows.append(
            ProbeRow(
                name=contestant.name,
                sae=contestant.sae,
                k=contestant.k,
                **numbers,
                f1=f1,
                accuracy=accuracy,
                shuffled=None if shuffled is None else float(shuffled[i]),
                inverse_l2=tuple(probe.inverse_l2 for probe in one.probes),
                converged=all(probe.converged for probe in one.probes),
                latents=tuple(probe.latents for probe in one.probes),
                splits_mean=None if over_splits is None else float(over_splits[:, i].mean()),
                splits_sd=None if over_splits is None else float(over_splits[:, i].std(ddof=1)),
                verdict=None
                if guard is None or contestant.name == LENGTH
                else guard[contestant.name].verdict,
            )
        )
    names = ("n_truncated", "max_tokens", "pool", "acts_pool", "hook_point", "model_name")
    return ProbeReport(
        rows=tuple(rows),
        classes=tuple(classes),
        n_train=tuple(np.bincount(of_class[train], minlength=len(classes)).tolist()),
        n_test=tuple(np.bincount(of_class[test], minlength=len(classes)).tolist()),
        n_clusters=(len(task.clusters[train].unique()), len(task.clusters[test].unique())),
        n_copies=len(features) - len(features.documents.unique()),
        selection=select_by,
        **{name: getattr(features, name) for name in names},
        seed=split.seed,
        n_splits=n_splits,
        n_shuffles=n_shuffles,
        n_resamples=n_resamples,
        confidence=confidence,
        guard=guard,
    )


def _guard(
    contestants: Sequence[_Contestant],
    fitted: Sequence[_Fitted],
    task: _Task,
    split: Split,
    rivals: Mapping[str, Rival],
    how: Mapping[str, Any],
) -> RivalReport:
    """Every probe of two classes beside the surface of the texts."""
    scores = {
        contestant.name: one.probes[0].scores(contestant.features)
        for contestant, one in zip(contestants, fitted)
        if contestant.name != LENGTH
    }
    of_second = torch.from_numpy(task.of_class == 1)
    return against_rivals(scores, of_second, rivals, task.clusters, split=split, **how)


def _contestants(features: PooledLatents, k: Sequence[int], select_by: str) -> list[_Contestant]:
    found = [
        _Contestant(ACTS, features.acts, all_columns),
        _Contestant(DIFF_MEAN, features.acts, mean_direction),
        _Contestant(LENGTH, np.log(features.n_tokens)[:, None], all_columns),
    ]
    for name, latents in features.by_name.items():
        for number in k:
            if not 1 <= number <= latents.shape[1]:
                raise ValueError(f"k expected 1 to {latents.shape[1]}, the latents of {name!r}, got {number}")
            found.append(
                _Contestant(f"{name} k={number}", latents, strongest_latents(number, select_by), name, number)
            )
        found.append(_Contestant(f"{name} all {latents.shape[1]:,}", latents, all_columns, name))
    return found


def _fit_all(
    contestants: Sequence[_Contestant], task: _Task, split: Split, n_folds: int, inverse_l2: Sequence[float]
) -> list[_Fitted]:
    train, test = task.sides(split)
    of_train = task.clusters.numpy()[train]
    targets = [task.of_class[train] == i for i in task.probed]
    choose = len(inverse_l2) > 1
    folds = [folds_of(of_train, target, n_folds, split.seed) if choose else [] for target in targets]
    found = []
    for contestant in contestants:
        inside, outside = contestant.features[train], contestant.features[test]
        probes = [
            fit_probe(inside, positive, contestant.prepare, its_folds, inverse_l2)
            for positive, its_folds in zip(targets, folds)
        ]
        found.append(_Fitted(np.stack([probe.scores(outside) for probe in probes], axis=1), probes))
    return found


def _intervals(
    fitted: Sequence[_Fitted], task: _Task, test: np.ndarray, n_resamples: int, confidence: float, seed: int
) -> Interval:
    """AUROC of each probe, then its distance from that of the first, from the same draws of clusters."""

    def statistic(weights: Tensor) -> Tensor:
        each = torch.stack([task.aurocs(one.scores, task.of_class[test], weights) for one in fitted], dim=1)
        return torch.cat([each, each - each[:, :1]], dim=1)

    how = {"n_resamples": n_resamples, "confidence": confidence, "seed": seed}
    return bootstrap_statistic(statistic, task.clusters[test], **how)


def _decisions(scores: np.ndarray, of_class: np.ndarray, task: _Task) -> tuple[float, float]:
    """(F1, accuracy): of two classes by the sign of the log odds, of more by each sign and by the highest."""
    f1 = []
    for j, i in enumerate(task.probed):
        said, true = scores[:, j] > 0, of_class == i
        f1.append(2 * float((said & true).sum()) / float(said.sum() + true.sum()))
    decided = (scores[:, 0] > 0).astype(int) if scores.shape[1] == 1 else scores.argmax(1)
    return float(np.mean(f1)), float((decided == of_class).mean())


def _over_splits(runs: Sequence[Sequence[_Fitted]], task: _Task, splits: Sequence[Split]) -> np.ndarray:
    """AUROC float64[n_splits n_contestants] on each split's own test texts."""
    tests = [task.sides(split)[1] for split in splits]
    return np.array(
        [[float(task.aurocs(one.scores, task.of_class[t])) for one in run] for run, t in zip(runs, tests)]
    )


def _shuffled(
    contestants: Sequence[_Contestant], fitted: Sequence[_Fitted], task: _Task, split: Split, n_shuffles: int
) -> np.ndarray:
    """Mean AUROC of every probe with the labels of either side shuffled, at the C of the true labels."""
    train, test = task.sides(split)
    found = np.zeros((n_shuffles, len(contestants)))
    for repeat in range(n_shuffles):
        generator, drawn = np.random.default_rng([split.seed % 2**63, repeat]), task.of_class.copy()
        for side in (train, test):
            drawn[side] = generator.permutation(drawn[side])
        for column, (contestant, true) in enumerate(zip(contestants, fitted)):
            inside, outside = contestant.features[train], contestant.features[test]
            scores = []
            for i, probe in zip(task.probed, true.probes):
                again = fit_probe(inside, drawn[train] == i, contestant.prepare, [], [probe.inverse_l2])
                scores.append(again.scores(outside))
            found[repeat, column] = float(task.aurocs(np.stack(scores, axis=1), drawn[test]))
    return found.mean(0)
