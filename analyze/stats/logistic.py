"""Logistic regression on standardised rows, and the F1 of what it says."""

from __future__ import annotations

import torch
from torch import Tensor

_MOST_STEPS, _LEAST_STEP = 100, 1e-9


def fit_logistic(inputs: Tensor, labels: Tensor, inverse_l2: float = 1.0) -> tuple[Tensor, float]:
    """Weights float64[d], in units of the inputs, and bias of a logistic regression on standardised inputs.

    inputs: float[n d]; labels: bool[n]; inverse_l2: C of scikit-learn, larger values shrink the weights less
    raises: ImportError without scikit-learn
    """
    try:
        from sklearn.linear_model import LogisticRegression
    except ImportError as error:
        raise ImportError(
            "expected scikit-learn, which is not installed: pip install 'saelens_lite[probes]'"
        ) from error
    rows = inputs.detach().cpu().double()
    mean, spread = rows.mean(0), rows.std(0, correction=0)
    spread = torch.where(spread > 0, spread, 1.0)
    probe = LogisticRegression(C=inverse_l2, max_iter=1000)
    probe.fit(((rows - mean) / spread).numpy(), labels.cpu().numpy())
    weights = torch.from_numpy(probe.coef_[0]) / spread
    return weights, float(probe.intercept_[0] - mean @ weights)


def fit_few(inputs: Tensor, labels: Tensor, inverse_l2: float = 1.0) -> tuple[Tensor, float]:
    """The same for few columns, by Newton's method, without scikit-learn; a constant one weighs nothing."""
    rows, labels = inputs.detach().cpu().double(), labels.cpu().double()
    mean, spread = rows.mean(0), rows.std(0, correction=0)
    spread = torch.where(spread > 0, spread, 1.0)
    columns = torch.nn.functional.pad((rows - mean) / spread, (0, 1), value=1.0)
    shrinking = torch.full_like(columns[0], 1 / inverse_l2)
    shrinking[-1] = 0.0  # the bias is free

    def loss(at: Tensor) -> float:
        log_odds = columns @ at
        fit = torch.nn.functional.binary_cross_entropy_with_logits(log_odds, labels, reduction="sum")
        return float(fit + (shrinking * at**2).sum() / 2)

    weights = torch.zeros_like(shrinking)
    for _ in range(_MOST_STEPS):
        p = (columns @ weights).sigmoid()
        gradient = columns.T @ (p - labels) + shrinking * weights
        hessian = (columns.T * (p * (1 - p)).clamp_min(1e-12)) @ columns + shrinking.diag()
        step = torch.linalg.solve(hessian, gradient)
        while step.abs().max() > _LEAST_STEP and loss(weights - step) > loss(weights):
            step = step / 2
        weights = weights - step
        if step.abs().max() <= _LEAST_STEP:
            break
    slopes = weights[:-1] / spread
    return slopes, float(weights[-1] - mean @ slopes)


def f1_of(said: Tensor, true: Tensor) -> float:
    """2 · both / (said + true), 0 where neither is ever so; bool[n] each."""
    total = int(said.sum()) + int(true.sum())
    return 2 * int((said & true).sum()) / total if total else 0.0
