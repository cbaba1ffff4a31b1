"""Texts that belong together, the side of the split each is on, and the folds in which a probe is chosen.

Two texts belong together when they are equal but for case and white space, or share a group, also by way of
third ones: a probe that has seen a text in training is not tested on its copy.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Sequence

import numpy as np
import torch
from torch import Tensor

from ..stats.document_split import Split

LEAST_CLUSTERS = 4
"""Clusters of each class that either side of the split must have."""


def clusters_of(documents: Tensor, groups: Sequence[Hashable] | None = None) -> Tensor:
    """int64[n], equal for texts that belong together: the smallest of their ids `documents`, int64[n].

    groups: of each text what it shares with others, such as its author or topic; None for nothing
    raises: ValueError for another number of groups than texts
    """
    names = documents.tolist()
    if groups is None:
        return documents.clone()
    groups = list(groups)
    if len(groups) != len(names):
        raise ValueError(f"groups expected one for each of {len(names)} texts, got {len(groups)}")
    parent: dict[Hashable, Hashable] = {}

    def root(node: Hashable) -> Hashable:
        while (above := parent.setdefault(node, node)) != node:
            parent[node] = node = parent[above]
        return node

    for name, group in zip(names, groups):
        if not _is_missing(group):
            parent[root(("text", name))] = root(("group", group))
    roots = [root(("text", name)) for name in names]
    smallest: dict[Hashable, int] = {}
    for name, top in zip(names, roots):
        smallest[top] = min(name, smallest.get(top, name))
    return torch.tensor([smallest[top] for top in roots], dtype=torch.int64)


def classes_of(labels: Sequence[Hashable], n_texts: int) -> tuple[list[Hashable], np.ndarray]:
    """The classes in order, and int64[n] of each text's class.

    raises: ValueError for another number of labels than texts, one that is no plain value, or one class
    """
    found = [label.item() if isinstance(label, np.generic | Tensor) else label for label in labels]
    if len(found) != n_texts:
        raise ValueError(f"labels expected one for each of {n_texts} texts, got {len(found)}")
    for i, label in enumerate(found):
        if _is_missing(label) or not isinstance(label, str | int | float):
            raise ValueError(f"labels expected a str, int or bool for each text, got {label!r} at place {i}")
    numbers = all(isinstance(label, int | float) for label in found)
    classes = sorted(set(found), key=None if numbers else lambda label: (type(label).__name__, str(label)))
    if len(classes) < 2:
        raise ValueError(f"labels expected at least two classes, got {classes}")
    index = {label: i for i, label in enumerate(classes)}
    return classes, np.array([index[label] for label in found])


def sides(
    clusters: Tensor, of_class: np.ndarray, classes: Sequence[Hashable], split: Split
) -> tuple[np.ndarray, np.ndarray]:
    """Places of the texts that train and of those that test: int64[n_train], int64[n_test].

    raises: ValueError unless either side has LEAST_CLUSTERS clusters of every class
    """
    tests = split.tests(clusters).numpy()
    for side, here in (("training", ~tests), ("test", tests)):
        for i, label in enumerate(classes):
            n = len(np.unique(clusters.numpy()[here & (of_class == i)]))
            if n < LEAST_CLUSTERS:
                raise ValueError(
                    f"the {side} side expected at least {LEAST_CLUSTERS} unrelated texts of class {label!r}, "
                    f"got {n}; all texts: {dict(Counter(classes[c] for c in of_class.tolist()))}. Give more "
                    "texts, leave the class out, or choose another split or seed"
                )
    return np.flatnonzero(~tests), np.flatnonzero(tests)


def folds_of(
    clusters: np.ndarray, positive: np.ndarray, n_folds: int, seed: int
) -> list[tuple[np.ndarray, np.ndarray]]:
    """(fitted, held out) places for cross-validation, with clusters whole and classes spread evenly.

    A fold that lacks one of the two labels on either side is left out.
    raises: ValueError where none is left
    """
    from sklearn.model_selection import StratifiedGroupKFold

    n_folds = min(n_folds, *(len(np.unique(clusters[positive == label])) for label in (False, True)))
    folding = StratifiedGroupKFold(n_splits=max(2, n_folds), shuffle=True, random_state=seed % 2**32)
    folds = list(folding.split(np.zeros(len(positive)), positive, clusters))
    usable = [fold for fold in folds if all(0 < positive[part].sum() < len(part) for part in fold)]
    if not usable:
        raise ValueError(
            "cross-validation expected both labels in several unrelated texts of the training side"
        )
    return usable


def _is_missing(value: Hashable) -> bool:
    return value is None or (isinstance(value, float) and value != value)
