"""One linear probe: what it sees of the features, and a logistic regression on it.

All that is fitted (which latents, their scale, the regularisation, the weights) sees training texts only, and
is fitted anew in every fold of cross-validation. Unlike stats/logistic.py, a probe here does not centre
sparse features, keeps its scale for later texts and begins a fit at the last one's weights: its numbers are
others, so the two stay apart.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from scipy.sparse import csr_matrix

Seen = Callable[[Any], Any]
"""From features, a CSR or array [n d], to what the regression sees of them, float64[n m]."""

Preparation = Callable[[Any, np.ndarray], tuple[Seen, tuple[int, ...]]]
"""From features and bool labels of training texts to what is seen, and the latents that were chosen."""

SELECTIONS = ("mean_difference", "standardised")

INVERSE_L2 = (1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0)
"""C of scikit-learn that cross-validation chooses among; larger values shrink weights less."""

_MOST_ITERATIONS = 1000


@dataclass(frozen=True, slots=True, eq=False)
class FittedProbe:
    """A probe for one class against the rest.

    inverse_l2: C that cross-validation chose; converged: whether the fit ended before its limit of iterations
    latents: those chosen, strongest first; none where all features are used
    """

    seen: Seen
    regression: Any
    inverse_l2: float
    converged: bool
    latents: tuple[int, ...]

    def scores(self, features: Any) -> np.ndarray:
        """float64[n], log odds of the class."""
        return self.regression.decision_function(self.seen(features))


def fit_probe(
    features: Any,
    positive: np.ndarray,
    prepare: Preparation,
    folds: Sequence[tuple[np.ndarray, np.ndarray]],
    inverse_l2: Sequence[float] = INVERSE_L2,
) -> FittedProbe:
    """A logistic regression with an L2 penalty, C by the log loss on the folds' held-out texts.

    The log loss, unlike AUROC, also tells penalties apart that leave the order of scores as it is.

    features: CSR or array [n d] of training texts; positive: bool[n]
    folds: unused where inverse_l2 has one value
    """
    strengths = sorted(inverse_l2)
    if len(strengths) > 1:
        found = np.zeros(len(strengths))  # nats
        for fitted, held_out in folds:
            seen, _ = prepare(features[fitted], positive[fitted])
            inside, outside = seen(features[fitted]), seen(features[held_out])
            start = None
            for i, strength in enumerate(strengths):
                start, _ = _regression(inside, positive[fitted], strength, start)
                log_odds = start.decision_function(outside)
                found[i] += np.logaddexp(0, np.where(positive[held_out], -log_odds, log_odds)).sum()
        chosen = strengths[int(found.argmin())]
    else:
        chosen = strengths[0]
    seen, latents = prepare(features, positive)
    regression, converged = _regression(seen(features), positive, chosen, None)
    return FittedProbe(seen, regression, chosen, converged, latents)


def _regression(seen: Any, positive: np.ndarray, inverse_l2: float, start: Any) -> tuple[Any, bool]:
    """A fitted regression, from the weights of `start` where given, and whether it converged."""
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression

    regression = LogisticRegression(C=inverse_l2, max_iter=_MOST_ITERATIONS, warm_start=True)
    if start is not None:
        regression.coef_, regression.intercept_ = start.coef_.copy(), start.intercept_.copy()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        regression.fit(seen, positive)
    return regression, bool(regression.n_iter_.max() < _MOST_ITERATIONS)


# What a probe sees ------------------------------------------------------------------------------------------


def all_columns(features: Any, positive: np.ndarray) -> tuple[Seen, tuple[int, ...]]:
    """Every column over its standard deviation in training; a CSR is not centred, and stays sparse."""
    from scipy.sparse import diags, issparse

    mean, deviation = _moments(features)
    scale = np.where(deviation > 0, 1 / np.where(deviation > 0, deviation, 1.0), 0.0)
    if issparse(features):
        return (lambda rows: rows.astype(np.float64) @ diags(scale)), ()
    return (lambda rows: (rows - mean) * scale), ()


def strongest_latents(k: int, by: str) -> Preparation:
    """The k latents whose means differ most between positive and other texts, standardised.

    by: "mean_difference" |mean₁ − mean₀| in the SAE's own scale, as SAEBench has it: latents of large
        activations are favoured; "standardised" the same over the latent's standard deviation
    """

    def prepare(features: csr_matrix, positive: np.ndarray) -> tuple[Seen, tuple[int, ...]]:
        chosen = ranked_latents(features, positive, by)[:k]
        standard, _ = all_columns(features[:, chosen].toarray(), positive)
        return (lambda rows: standard(rows[:, chosen].toarray())), tuple(chosen.tolist())

    return prepare


def ranked_latents(features: csr_matrix, positive: np.ndarray, by: str) -> np.ndarray:
    """int64[d_sae], the latents in falling order of `by`; equals in the order of their index."""
    difference = np.abs(_mean(features[positive]) - _mean(features[~positive]))
    if by == "standardised":
        _, deviation = _moments(features)
        difference = np.divide(difference, deviation, out=np.zeros_like(difference), where=deviation > 0)
    return np.argsort(-difference, kind="stable")


def mean_direction(features: np.ndarray, positive: np.ndarray) -> tuple[Seen, tuple[int, ...]]:
    """One column: the features along the difference of the two means (DiffMean)."""
    direction = _mean(features[positive]) - _mean(features[~positive])
    standard, _ = all_columns(features.astype(np.float64) @ direction[:, None], positive)
    return (lambda rows: standard(rows.astype(np.float64) @ direction[:, None])), ()


def _mean(features: Any) -> np.ndarray:
    """float64[d], of a CSR or an array."""
    return np.asarray(features.astype(np.float64).mean(axis=0)).ravel()


def _moments(features: Any) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation of every column: float64[d] each; a spread of rounding errors is none."""
    from scipy.sparse import issparse

    rows = features.astype(np.float64)
    mean, square = _mean(rows), _mean(rows.multiply(rows) if issparse(rows) else rows**2)
    variance = square - mean**2
    return mean, np.sqrt(np.where(variance > 1e-12 * square, variance, 0.0))
