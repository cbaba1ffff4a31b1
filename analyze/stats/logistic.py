"""Logistic regression on standardised rows, and the F1 of what it says."""

from __future__ import annotations

import torch
from torch import Tensor


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


def f1_of(said: Tensor, true: Tensor) -> float:
    """2 · both / (said + true), 0 where neither is ever so; bool[n] each."""
    total = int(said.sum()) + int(true.sum())
    return 2 * int((said & true).sum()) / total if total else 0.0
